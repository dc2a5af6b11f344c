// What one instruction-set level offers, and the words that all of them share.
//
// The rule of this library: an element of a result depends on its own inputs only, never on how many rows are computed
// together, on which of them it is, or on the number of threads. So every element is added up in one fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace langport {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr size_t size_of(DType dtype) { return dtype == kFloat32 ? 4 : 2; }

// Weights are stored in panels of 32 rows of W (columns of the result) times the whole of K. A panel is a run of lines:
// a line holds, for each of the 32 columns, the next 4 bytes of K: one float32 or two 16-bit numbers. In float16, the
// 32 first numbers of the pairs come before the 32 second ones; in bfloat16 each pair stays together.
constexpr int kPanelColumns = 32;
constexpr int kLineBytes = kPanelColumns * 4;
// K is padded with zeros to whole units. A tile register of AMX takes 16 lines; the others take two at a time.
constexpr int kLinesPerUnit = 16;

struct PackedWeight {
  DType dtype;
  int64_t n, k;
  int64_t lines;  // per panel
  int64_t panels;
  char* data;
  size_t mapped_bytes;

  size_t panel_bytes() const { return static_cast<size_t>(lines) * kLineBytes; }
};

// Some rows of x, multiplied with one panel. `tile` is what pack_rows made of the rows.
struct PanelJob {
  const PackedWeight* weight;
  int64_t panel;
  const void* tile;
  int rows;
  const void* bias;  // n numbers of the weight's type, or null
  void* out;         // row 0, column 0 of the whole result
  int64_t out_stride;
  const char* prefetch;  // what will be read next
  int prefetch_lines;    // of 64 bytes, for every two lines of the panel: 0, 2 or 4
};

struct AttentionJob {
  DType dtype;
  int64_t heads, kv_heads, head_dim, block_size;
  const char* query;  // (num_tokens, heads, head_dim)
  int64_t query_token_stride, query_head_stride;
  const char* keys;  // (num_blocks, kv_heads, block_size, head_dim)
  const char* values;
  // Of whole numbers of 8 bits (num_blocks, kv_heads, block_size); null where keys and values are of the type.
  const float* key_scales;
  const float* value_scales;
  char* out;  // (num_tokens, heads, head_dim), contiguous
  float scale;
  float softcap;       // 0: none
  int64_t window;      // 0: none
  const float* sinks;  // (heads,) or null
  bool is_causal;
  // Added to the scores of each head, or null: rows of `bias_stride` numbers, kContextTile more than are ever used.
  const float* biases;
  int64_t bias_stride;
  int64_t own_column;  // of a key at the query's own position; -1: a key's column is its position

  size_t head_bytes() const { return static_cast<size_t>(head_dim) * (key_scales == nullptr ? size_of(dtype) : 1); }
};

// Consecutive queries of one sequence.
struct QueryRun {
  int64_t row;       // of the first query among the tokens
  int64_t position;  // of the first query in its sequence; without causality, the context of all
  int64_t count;
  const int64_t* table;  // block numbers
};

// What one thread does at a time: some kv heads of a run.
struct AttentionItem {
  int64_t run, first_head, heads;
};

constexpr int kContextTile = 64;  // tokens whose scores are weighed together, counted from the context's beginning
// Query rows (queries times heads that share a key) that run through a context together: at most, and before there is
// work for all threads.
constexpr int kQueryRows = 256;
constexpr int kFewQueryRows = 16;

// Scratch of one attention item, in floats: a tile of keys and values and their scales, then query, result, scores, and a
// few numbers per row.
inline size_t attention_scratch(int64_t rows, int64_t head_dim) {
  const size_t padded = static_cast<size_t>((head_dim + 63) / 64 * 64);
  return static_cast<size_t>(rows) * (2 * padded + kContextTile + 5) + 2 * kContextTile * (padded + 1) + 160;
}

struct GatedJob {
  DType dtype;
  int64_t columns;
  const char* gate;
  const char* up;
  int64_t stride;  // of gate and up
  char* out;       // contiguous
};

// Rows (num_tokens, heads, columns), each divided by its root mean square and multiplied with weight plus offset.
struct NormJob {
  DType dtype;
  int64_t heads, columns;
  const char* x;
  int64_t token_stride, head_stride;
  const char* weight;
  float offset;
  float epsilon;
  char* out;  // contiguous
};

struct IntKernels;
struct StepKernels;
struct EncoderKernels;

struct Level {
  const char* name;
  int (*max_rows)(DType dtype);
  size_t (*tile_bytes)(DType dtype, int64_t lines, int rows);
  void (*pack_rows)(DType dtype, const void* x, int64_t x_stride, int rows, int64_t k, int64_t lines, void* tile);
  void (*multiply_panel)(const PanelJob& job);
  void (*attend)(const AttentionJob& job, const QueryRun& run, int64_t first_head, int64_t heads, float* scratch);  // kv heads
  void (*silu_mul)(const GatedJob& job, int64_t first_row, int64_t rows);
  void (*rms_norm)(const NormJob& job, int64_t first_row, int64_t rows);
  // The ceilings: multiplies in registers as fast as for numbers of this type, and returns how many operations that were;
  // reads memory.
  double (*multiply_adds)(DType dtype, int64_t rounds);
  void (*read_memory)(const char* data, size_t bytes);
  const IntKernels* ints;
  const StepKernels* step;
  const EncoderKernels* encoder;
};

const Level* portable_level();
#ifdef LANGPORT_X86
const Level* avx2_level();
const Level* avx512_level();
const Level* avx512_vnni_level();
const Level* avx512_bf16_level();
const Level* amx_level();
#endif
#ifdef LANGPORT_ARM
const Level* neon_level();
const Level* neon_dot_level();
#endif

}  // namespace langport
