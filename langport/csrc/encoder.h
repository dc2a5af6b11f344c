// What encoders need beside products and RMS norms: attention of whole sequences, layer norms, activations.
#pragma once

#include "kernels.h"

namespace langport {

// Attention in which every token of a sequence sees all of it. The tokens of all sequences lie flat, without padding.
// Of query, key and value the heads of a token are contiguous, and tokens lie `stride` numbers apart.
struct SpanAttentionJob {
  DType dtype;
  int64_t heads, head_dim;
  const char* query;
  const char* key;
  const char* value;
  int64_t stride;
  char* out;  // (num_tokens, heads, head_dim), contiguous
  float scale;
  // Added to the scores of each head by the distance of key and query, or null: rows of `bias_stride` numbers, in which
  // column `own_column` is that of the query's own position; kSpanKeys more are read than are used.
  const float* biases;
  int64_t bias_stride;
  int64_t own_column;
};

// Some queries of a sequence.
struct Span {
  int64_t begin, length;  // the rows of its tokens
  int64_t first, count;   // queries, counted from `begin`
};

// Keys are padded to a multiple of this many, of weight zero.
constexpr int64_t kSpanKeys = 32;
constexpr int64_t kSpanRows = 14;  // queries at once, at most

// Scratch of one span and head, in floats: keys, values, some queries and their scores, and alignment.
inline size_t span_scratch(int64_t length, int64_t head_dim) {
  const auto keys = static_cast<size_t>((length + kSpanKeys - 1) / kSpanKeys * kSpanKeys);
  const auto padded = static_cast<size_t>((head_dim + kSpanKeys - 1) / kSpanKeys * kSpanKeys);
  return 2 * keys * padded + kSpanRows * (padded + keys) + 64;
}

enum class Activation : int32_t { kNone = 0, kGelu = 1, kTanhGelu = 2, kRelu = 3, kSilu = 4, kQuickGelu = 5 };

// Rows that are replaced by what an activation function makes of them.
struct ActivationJob {
  DType dtype;
  Activation function;
  int64_t columns;
  char* x;
  int64_t stride;
};

// Rows of x plus rows of the residual, unless that is null, normalized to mean 0 and variance 1, times weight plus bias.
struct LayerNormJob {
  DType dtype;
  int64_t columns;
  const char* x;
  const char* residual;
  const char* weight;
  const char* bias;  // or null
  float epsilon;
  char* out;  // all rows are contiguous
};

struct EncoderKernels {
  void (*attend)(const SpanAttentionJob& job, const Span& span, int64_t head, float* scratch);
  void (*activate)(const ActivationJob& job, int64_t first_row, int64_t rows);
  void (*layer_norm)(const LayerNormJob& job, int64_t first_row, int64_t rows);
};

}  // namespace langport
