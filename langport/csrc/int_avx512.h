// Sixteen 32-bit integers in an AVX-512 register, and sums of products of 8-bit numbers.
#pragma once

#include "vec_avx512.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 8;
  static constexpr int kColumnVecs = 2;
  static constexpr bool kHasWideRows = false;
  static constexpr int kShortLines = 0;

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
  // The nearest whole numbers, of two the even one.
  static IntVec nearest(Vec x) { return {_mm512_cvtps_epi32(x.v)}; }
  // Numbers from -128 to 127 as bytes.
  void store_bytes(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
  int32_t total() const { return _mm512_reduce_add_epi32(v); }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
  // Of each byte, as bytes.
  IntVec low_halves() const { return {_mm512_and_si512(v, _mm512_set1_epi8(0x0f))}; }
  IntVec high_halves() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0f))}; }
  Vec floats() const { return {_mm512_cvtepi32_ps(v)}; }

  // Adds, in every lane, the products of four weights, unsigned, and four numbers.
  static LANGPORT_INLINE IntVec dot(IntVec sums, IntVec weights, const Numbers& numbers) {
#ifdef __AVX512VNNI__
    // Not the intrinsic: GCC 12 copies every sum around it, and has no registers left for that.
    asm("vpdpbusd %2, %1, %0" : "+v"(sums.v) : "v"(weights.v), "v"(numbers.v));
    return sums;
#else
    const __m512i even = _mm512_and_si512(weights.v, _mm512_set1_epi16(0x00ff));
    const __m512i odd = _mm512_srli_epi16(weights.v, 8);
    const __m512i products = _mm512_add_epi32(_mm512_madd_epi16(even, numbers.even), _mm512_madd_epi16(odd, numbers.odd));
    return {_mm512_add_epi32(sums.v, products)};
#endif
  }
};

}  // namespace
