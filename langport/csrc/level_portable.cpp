#include "vec_portable.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "encoder.inl"
#include "int_portable.h"
#include "ints.inl"

namespace langport {

const Level* portable_level() {
  static const Level level = {
      "portable", max_rows, tile_bytes, pack_rows, multiply_panel, attend, silu_mul, rms_norm, multiply_adds, read_memory,
      &int_kernels, &step_kernels, &encoder_kernels};
  return &level;
}

}  // namespace langport
