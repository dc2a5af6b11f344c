// Functions of the C interface that step.cpp calls, too.
#pragma once

#include "ints.h"
#include "kernels.h"

#define LANGPORT_API extern "C" __attribute__((visibility("default")))

namespace langport {

// The one that was chosen.
const Level& level();

// The sequences of a step: `counts` queries each, from row `rows` and position `positions` on (without causality, the
// length of the context), and their block tables, `table_stride` apart.
struct SequenceList {
  int64_t num_seqs;
  const int64_t* rows;
  const int64_t* positions;
  const int64_t* counts;
  const int64_t* tables;
  int64_t table_stride;
};

}  // namespace langport

LANGPORT_API void langport_linear(
    const langport::PackedWeight* weight, int64_t rows, const void* x, int64_t x_stride, const void* bias, void* out,
    int64_t out_stride);
LANGPORT_API void langport_int_linear(
    const langport::PackedInts* weight, int64_t rows, const void* x, int64_t x_stride, const void* bias, void* out,
    int64_t out_stride);
LANGPORT_API void langport_attend(const langport::AttentionJob* job, const langport::SequenceList* list);
LANGPORT_API void langport_silu_mul(
    int32_t dtype, int64_t rows, int64_t columns, const void* gate, const void* up, int64_t stride, void* out);
LANGPORT_API void langport_gelu_mul(
    int32_t dtype, int64_t rows, int64_t columns, const void* gate, const void* up, int64_t stride, void* out);
