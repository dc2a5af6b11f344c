// Sixteen 32-bit integers in an AVX-512 register, and sums of products of 8-bit numbers.
#pragma once

#include "vec_avx512.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 12;
  static constexpr int kColumnVecs = 2;

  __m512i v;

  // Four numbers of a row, for every lane.
#ifdef __AVX512VNNI__
  struct Numbers {
    __m512i v;
    explicit Numbers(int32_t word) : v(_mm512_set1_epi32(word)) {}
  };
#else
  struct Numbers {
    __m512i even, odd;  // as 16 bits: the first and third, the second and fourth
    explicit Numbers(int32_t word) {
      const __m512i all = _mm512_set1_epi32(word);
      even = _mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8);
      odd = _mm512_srai_epi16(all, 8);
    }
  };
#endif

  static IntVec all(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static IntVec load(const char* p) { return {_mm512_loadu_si512(p)}; }
  LANGPORT_INLINE void halves(IntVec& low, IntVec& high) const {
    const __m512i mask = _mm512_set1_epi8(0x0f);
    low.v = _mm512_and_si512(v, mask);
    high.v = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
  }
  Vec floats() const { return {_mm512_cvtepi32_ps(v)}; }

  // Adds, in every lane, the products of four weights, unsigned, and four numbers.
  static LANGPORT_INLINE IntVec dot(IntVec sums, IntVec weights, const Numbers& numbers) {
#ifdef __AVX512VNNI__
    return {_mm512_dpbusd_epi32(sums.v, weights.v, numbers.v)};
#else
    const __m512i even = _mm512_and_si512(weights.v, _mm512_set1_epi16(0x00ff));
    const __m512i odd = _mm512_srli_epi16(weights.v, 8);
    const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(even, numbers.even), _mm512_madd_epi16(odd, numbers.odd));
    return {_mm512_add_epi32(sums.v, products)};
#endif
  }
};

}  // namespace
