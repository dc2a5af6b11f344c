// Eight 32-bit integers in an AVX register, and sums of products of 8-bit numbers.
#pragma once

#include "vec_avx2.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 4;
  static constexpr int kColumnVecs = 2;
  static constexpr bool kHasWideRows = true;
  // Two products of at most 15 times 127 in each half of a lane: eight of them, from four lines, stay below 2^15.
  static constexpr int kShortLines = 4;

  __m256i v;

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

  // The first and third byte of each lane as 16 bits, the second and fourth.
  IntVec even_bytes() const { return {_mm256_and_si256(v, _mm256_set1_epi16(0x00ff))}; }
  IntVec odd_bytes() const { return {_mm256_srli_epi16(v, 8)}; }
  // Adds, in every lane, the products of two weights and two numbers, of 16 bits.
  static LANGPORT_INLINE IntVec dot_wide(IntVec sums, IntVec weights, IntVec numbers) {
    return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(weights.v, numbers.v))};
  }
  // Adds the products of four weights of 4 bits and four numbers, in sums of 16 bits: two to a lane.
  static LANGPORT_INLINE IntVec dot_short(IntVec sums, IntVec weights, IntVec numbers) {
    return {_mm256_add_epi16(sums.v, _mm256_maddubs_epi16(weights.v, numbers.v))};
  }
  // Of each lane's two.
  IntVec pair_sums() const { return {_mm256_madd_epi16(v, _mm256_set1_epi16(1))}; }
};

}  // namespace
