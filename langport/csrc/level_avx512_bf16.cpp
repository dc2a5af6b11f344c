// AVX-512 with products of bfloat16 pairs.
#include "vec_avx512.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "pairs.inl"
#include "encoder.inl"
#include "encoder_pairs.inl"
#include "int_avx512.h"
#include "ints.inl"

namespace {

struct PairLines {
  using Act = uint32_t;
  static constexpr DType kType = kBFloat16;
  static constexpr int kPerLine = 1;
  static constexpr int kMaxRows = 14;

  template <int R, int C>
  static LANGPORT_INLINE void add(Vec (&sums)[R][C], const char* line, int column, const uint32_t* act) {
    __m512i weights[C];
    for (int c = 0; c < C; c++) weights[c] = _mm512_loadu_si512(line + (column + c * kWidth) * 4);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(act[r]));
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = dot_pairs(sums[r][c], pair, weights[c]);
    }
  }
};

int max_rows_here(DType dtype) { return dtype == kBFloat16 ? PairLines::kMaxRows : max_rows(dtype); }

size_t tile_bytes_here(DType dtype, int64_t lines, int rows) {
  return dtype == kBFloat16 ? static_cast<size_t>(lines * rows) * 4 : tile_bytes(dtype, lines, rows);
}

// Rows as pairs, [pair of K][row], with zeros up to the end of the lines.
void pack_rows_here(DType dtype, const void* x, int64_t x_stride, int rows, int64_t k, int64_t lines, void* tile) {
  if (dtype != kBFloat16) return pack_rows(dtype, x, x_stride, rows, k, lines, tile);
  auto* target = static_cast<uint32_t*>(tile);
  const int64_t pairs = (k + 1) / 2;
  for (int row = 0; row < rows; row++) {
    const char* source = static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * 2;
    for (int64_t pair = 0; pair < k / 2; pair++) std::memcpy(target + pair * rows + row, source + pair * 4, 4);
    if (k % 2) {
      uint16_t last;
      std::memcpy(&last, source + (k - 1) * 2, 2);
      target[(pairs - 1) * rows + row] = last;
    }
  }
  std::memset(target + pairs * rows, 0, static_cast<size_t>((lines - pairs) * rows) * 4);
}

void multiply_panel_here(const PanelJob& job) {
  if (job.weight->dtype != kBFloat16) return multiply_panel(job);
  multiply_by_rows<PairLines>(job);
}

}  // namespace

namespace langport {

const Level* avx512_bf16_level() {
  static const Level level = {
      "avx512_bf16", max_rows_here, tile_bytes_here, pack_rows_here, multiply_panel_here,
      attend_pairs,  silu_mul,      rms_norm,        multiply_pairs, read_memory,
      &int_kernels, &step_kernels, &encoder_pair_kernels};
  return &level;
}

}  // namespace langport
