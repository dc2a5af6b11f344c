#include "vec_neon.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "encoder.inl"
#include "int_neon.h"
#include "ints.inl"

namespace langport {

const Level* neon_level() {
  static const Level level = {
      "neon", max_rows, tile_bytes, pack_rows, multiply_panel, attend, silu_mul, rms_norm, multiply_adds, read_memory,
      &int_kernels, &step_kernels, &encoder_kernels};
  return &level;
}

}  // namespace langport
