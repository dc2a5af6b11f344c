// Products with weights of 8 or 4 bits: whole numbers times a scale.
//
// Rows of x become 8-bit numbers with one scale for every block of K, weights stay the numbers they are. Within a block
// products are added up as 32-bit integers, which is exact; blocks are added up as floats in the order of K. So a
// result is the same, bit for bit, at every level, for any number of rows and threads.
#pragma once

#include "kernels.h"

namespace langport {

constexpr int kIntBlock = 128;  // numbers of K in a block where the weights of a row have one scale
constexpr int kIntLargestBlock = 1024;

// Stored in panels of 32 rows of W, as plain weights are (kernels.h): a line holds, for each column, the next 4 bytes of
// K. In 8 bits these are four numbers plus 128. In 4 bits, plus 8: the low halves hold four numbers, the high halves
// the four after them. After the lines of a block come its 32 scales; where there is one scale for a whole row of W,
// they come once, at the end of the panel.
struct PackedInts {
  DType dtype;  // of x, scales, bias and results
  int bits;
  int64_t n, k;
  int64_t block;  // numbers of K
  bool is_grouped;  // every block has scales of its own
  int64_t blocks;
  int64_t panels;
  char* data;
  size_t mapped_bytes;

  int64_t per_line() const { return bits == 8 ? 4 : 8; }
  int64_t lines_of(int64_t index) const {
    const int64_t left = k - index * block, numbers = left < block ? left : block;
    return (numbers + per_line() - 1) / per_line();
  }
  size_t scale_bytes() const { return kPanelColumns * size_of(dtype); }
  size_t block_bytes() const {
    return static_cast<size_t>(lines_of(0)) * kLineBytes + (is_grouped ? scale_bytes() : 0);
  }
  size_t panel_bytes() const {
    const size_t lines = static_cast<size_t>(lines_of(blocks - 1)) * kLineBytes;
    return static_cast<size_t>(blocks - 1) * block_bytes() + lines + scale_bytes();
  }
  // Of four numbers, in a row of x.
  int64_t words() const { return (blocks - 1) * block / 4 + lines_of(blocks - 1) * per_line() / 4; }
};

struct IntPanelJob {
  const PackedInts* weight;
  int64_t panel;
  const void* tile;  // of `rows` rows, as pack_int_rows made it
  int rows;
  const void* bias;  // n numbers or null
  void* out;         // row 0, column 0 of the whole result
  int64_t out_stride;
  const char* prefetch;  // what will be read next
  int prefetch_bytes;    // for every line of the panel
};

// Rows of a float weight that become whole numbers, with a scale for every `group` numbers.
struct QuantizeJob {
  DType dtype, scale_dtype;
  int bits;
  int64_t k, group;
  const char* weight;
  int8_t* values;
  char* scales;
};

struct IntKernels {
  int max_rows;
  // Of a row of x, packed for products with such a weight.
  size_t (*row_bytes)(const PackedInts& weight);
  void (*pack_rows)(const PackedInts& weight, const void* x, int64_t x_stride, int rows, void* tile);
  void (*multiply_panel)(const IntPanelJob& job);
  void (*quantize_rows)(const QuantizeJob& job, int64_t first_row, int64_t rows);
  // For benchmarks/kernels.py: multiplies in registers, as fast as the level can; the number of operations done.
  double (*multiply_adds)(int64_t rounds);
};

}  // namespace langport
