// NEON with sums of products of 8-bit numbers. Clang hears of them by -mcpu, which GCC takes for too little.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "vec_neon.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "encoder.inl"
#include "int_neon.h"
#include "ints.inl"

namespace langport {

const Level* neon_dot_level() {
  static const Level level = {
      "neon_dot", max_rows, tile_bytes, pack_rows, multiply_panel, attend, silu_mul, rms_norm, multiply_adds, read_memory,
      &int_kernels, &step_kernels, &encoder_kernels};
  return &level;
}

}  // namespace langport
