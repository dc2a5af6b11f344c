// One step of a decoder of Llama's form: what Python describes once, and what each step brings.
//
// Every layer is   x += norm(attention(norm(x))) * factor;  x += norm(mlp(norm(x))) * factor
// where each norm may be left out, and the MLP is down(activation(gate(x)) * up(x)).
#pragma once

#include "api.h"
#include "kernels.h"

namespace langport {

// Root mean square norm with weight plus offset; without a weight there is none.
struct StepNorm {
  const char* weight;
  float offset;
  float epsilon;
};

struct StepLinear {
  const void* weight;  // a PackedWeight, or PackedInts
  const void* bias;    // or null
  int32_t is_ints;
};

// Cosines and sines (rows, pairs) in float32. A token of a sequence of more than `trained_length` tokens, unless that is
// zero, has the row of its position plus `trained_length`.
struct StepRotary {
  const float* cosines;
  const float* sines;
  int64_t pairs;
  int64_t trained_length;
};

enum Gate : int32_t { kSilu = 0, kTanhGelu = 1 };

struct StepLayer {
  StepNorm before_attention, after_attention, before_mlp, after_mlp;
  StepNorm query_norm, key_norm;
  int32_t norms_heads;  // each head has its own root mean square; else all heads share one
  int32_t rotary;       // number of its tables; -1: the layer knows no positions
  StepLinear qkv, out, gate_up, down;
  float scale;
  float softcap;   // 0: none
  int64_t window;  // 0: none
  char* keys;      // (num_blocks, kv_heads, block_size, head_dim)
  char* values;
  float* key_scales;  // as in AttentionJob
  float* value_scales;
};

struct StepModel {
  int32_t dtype;
  int32_t gate;
  int64_t hidden, inner, heads, kv_heads, head_dim, block_size;
  float factor;
  int64_t num_layers;
  const StepLayer* layers;
  const StepRotary* rotaries;
  StepNorm last_norm;
};

struct StepInput {
  int64_t num_tokens;
  char* x;                   // (num_tokens, hidden) embeddings; overwritten
  char* out;                 // (num_tokens, hidden) states behind the last norm
  const int64_t* positions;  // of each token
  const int64_t* lengths;    // of each token's sequence
  const int64_t* slots;      // where each token's key and value are kept
  const SequenceList* sequences;
};

// ---- What a level computes for it, row by row ----

// Query, key and value of a token as (heads + 2 * kv_heads, head_dim): query and key are normalized and turned where they
// lie, then key and value copied to the cache.
struct HeadsJob {
  DType dtype;
  int64_t heads, kv_heads, head_dim, block_size;
  char* qkv;
  StepNorm query_norm, key_norm;
  bool norms_heads;
  const StepRotary* rotary;  // or null
  const int64_t* positions;
  const int64_t* lengths;
  const int64_t* slots;
  char* keys;
  char* values;
  float* key_scales;
  float* value_scales;
};

constexpr int64_t kMostPairs = 256;  // that are turned

// x += y * factor, both contiguous.
struct AddJob {
  DType dtype;
  int64_t columns;
  char* x;
  const char* y;
  float factor;
};

struct StepKernels {
  void (*turn_heads)(const HeadsJob& job, int64_t first_row, int64_t rows);
  void (*add)(const AddJob& job, int64_t first_row, int64_t rows);
  void (*gelu_mul)(const GatedJob& job, int64_t first_row, int64_t rows);
};

}  // namespace langport
