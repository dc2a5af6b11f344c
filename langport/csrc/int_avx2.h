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
  // The nearest whole numbers, of two the even one.
  static IntVec nearest(Vec x) { return {_mm256_cvtps_epi32(x.v)}; }
  // Numbers from -128 to 127 as bytes.
  void store_bytes(int8_t* p) const {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  int32_t total() const {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 1);
  }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
  // Of each byte, as bytes.
  IntVec low_halves() const { return {_mm256_and_si256(v, _mm256_set1_epi8(0x0f))}; }
  IntVec high_halves() const { return {_mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0f))}; }
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
