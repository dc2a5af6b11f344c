#include "vec_avx2.h"
#include "kernels.inl"
#include "bulk.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "encoder.inl"
#include "int_avx2.h"
#include "ints.inl"

namespace langport {

const Level* avx2_level() {
  static const Level level = {
      "avx2", max_rows, tile_bytes, pack_rows, multiply_panel, attend, silu_mul, rms_norm, multiply_adds, read_memory,
      &int_kernels, &step_kernels, &encoder_kernels};
  return &level;
}

const BulkKernels* avx2_bulk_kernels() { return &bulk_kernels; }

}  // namespace langport
