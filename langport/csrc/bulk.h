// Products of many rows with packed weights, for levels on which they are faster than by PanelJob.
#pragma once

#include "kernels.h"

namespace langport {

// Rows of x, cut into tiles of nearly equal size.
struct Tiles {
  int64_t rows, count;
  int64_t begin(int64_t tile) const { return rows * tile / count; }
  int size(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
};

// Many rows of x, multiplied with a few panels. `tiles` is what pack_rows made of them, one tile after the other.
struct BulkJob {
  const PackedWeight* weight;
  int64_t first_panel, panels;
  const float* tiles;
  Tiles split;
  const void* bias;  // n numbers of the weight's type, or null
  char* out;         // row 0, column 0 of the whole result
  int64_t out_stride;
  float* scratch;

  // Of the result that the panels have.
  int64_t columns() const {
    const int64_t left = weight->n - first_panel * kPanelColumns;
    return left < panels * kPanelColumns ? left : panels * kPanelColumns;
  }
};

constexpr int64_t kBulkWeights = 4096;  // of a slice of K, as floats: half of a small core's nearest cache

// Numbers of K that a tile holds of each row.
inline int64_t bulk_numbers(const PackedWeight& weight) { return weight.lines * (weight.dtype == kFloat32 ? 1 : 2); }

// Scratch of a BulkJob, in floats: some weights, and sums.
inline size_t bulk_scratch(int64_t rows, int64_t panels) {
  return static_cast<size_t>(kBulkWeights + rows * panels * kPanelColumns);
}

struct BulkKernels {
  int tile_rows;  // at most
  // `rows` rows of x as floats, [number of K][row].
  void (*pack_rows)(const PackedWeight& weight, const char* x, int64_t x_stride, int rows, float* tile);
  void (*multiply)(const BulkJob& job);
};

#ifdef LANGPORT_X86
const BulkKernels* avx2_bulk_kernels();
#endif

}  // namespace langport
