#include "vec_avx512.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "encoder.inl"
#include "int_avx512.h"
#include "ints.inl"

namespace langport {

const Level* avx512_level() {
  static const Level level = {
      "avx512", max_rows, tile_bytes, pack_rows, multiply_panel, attend, silu_mul, rms_norm, multiply_adds, read_memory,
      &int_kernels, &step_kernels, &encoder_kernels};
  return &level;
}

}  // namespace langport
