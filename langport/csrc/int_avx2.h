// Eight 32-bit integers in an AVX register, and sums of products of 8-bit numbers.
#pragma once

#include "vec_avx2.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 4;
  static constexpr int kColumnVecs = 2;

  __m256i v;

  // Four numbers of a row, for every lane, as 16 bits: the first and third, the second and fourth.
  struct Numbers {
    __m256i even, odd;
    explicit Numbers(int32_t word) {
      const __m256i all = _mm256_set1_epi32(word);
      even = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8);
      odd = _mm256_srai_epi16(all, 8);
    }
  };

  static IntVec all(int32_t x) { return {_mm256_set1_epi32(x)}; }
  static IntVec load(const char* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  LANGPORT_INLINE void halves(IntVec& low, IntVec& high) const {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    low.v = _mm256_and_si256(v, mask);
    high.v = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
  }
  Vec floats() const { return {_mm256_cvtepi32_ps(v)}; }

  // Adds, in every lane, the products of four weights, unsigned, and four numbers.
  static LANGPORT_INLINE IntVec dot(IntVec sums, IntVec weights, const Numbers& numbers) {
    const __m256i even = _mm256_and_si256(weights.v, _mm256_set1_epi16(0x00ff));
    const __m256i odd = _mm256_srli_epi16(weights.v, 8);
    const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(even, numbers.even), _mm256_madd_epi16(odd, numbers.odd));
    return {_mm256_add_epi32(sums.v, products)};
  }
};

}  // namespace
