// Drawing the next token of every row of a step's logits: what Python hands over, and what a level computes for it.
#pragma once

#include "kernels.h"

namespace langport {

// Numbers of a row that are added up, or searched for their largest, as one.
constexpr int64_t kSampleBlock = 256;

// What may be done to a row's logits.
enum EditKind : int32_t { kPenalize = 0, kKeepOnly = 1, kAdd = 2, kBan = 3, kForce = 4 };

// `count` places, from `first` on in the job's columns (kAdd: and values).
struct SampleEdit {
  int32_t kind;
  float penalty;
  int64_t first, count;
};

struct SampleRow {
  double number;  // from 0 to below 1: which token is drawn
  double top_p;   // 1: off
  double min_p;   // 0: off
  int64_t top_k;  // 0: off
  int64_t first_edit, num_edits;
  int64_t mask;  // which of the masks; -1: none
  float temperature;      // 0: the likeliest token
  int32_t num_likeliest;  // whose log-probabilities are wanted beside the token's own; -1: none at all
};

struct SampleJob {
  int32_t dtype;
  int32_t scores_processed;  // log-probabilities describe the logits after edits and temperature, not before
  int64_t rows, columns, stride;
  const char* logits;  // (rows, columns)
  const SampleRow* asked;
  const SampleEdit* edits;
  const int32_t* edit_columns;
  const float* edit_values;
  const uint32_t* masks;  // of mask_words each, a bit per token, set where it is allowed
  int64_t mask_words;
  // Results: (rows,) and (rows, most_likeliest), as many of the latter as the row asks for.
  int64_t most_likeliest;
  int64_t* tokens;
  float* logprobs;
  int64_t* likeliest;
  float* likeliest_logprobs;
};

struct SampleKernels {
  // `count` numbers over `divisor` to `x`, and the largest of every block of them. With no `x`, the divisor is 1.
  void (*read)(DType dtype, const char* source, int64_t count, float divisor, float* x, float* largest);
  // e ** (x - shift) of `count` numbers, to `out` unless that is null. Returns their sum.
  float (*exponentials)(const float* x, int64_t count, float shift, float* out);
};

// Those of the chosen level; each level has those of its kind of vectors.
const SampleKernels& samples();

const SampleKernels* portable_samples();
#ifdef LANGPORT_X86
const SampleKernels* avx2_samples();
const SampleKernels* avx512_samples();
#endif
#ifdef LANGPORT_ARM
const SampleKernels* neon_samples();
#endif

}  // namespace langport
