// Sixteen floats in an AVX-512 register.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kMaxRows = 12;      // rows of a product held in registers at once,
  static constexpr int kMaxPairRows = 12;  // also of bfloat16,
  static constexpr int kColumnVecs = 2;   // times this many vectors of columns
  static constexpr int kScoreRows = 4;    // rows of attention whose scores are held in registers at once,
  static constexpr int kScoreGroups = 2;  // times this many vectors of keys;
  static constexpr int kPackedRows = 6;   // rows that share the values they load from a packed tile,
  static constexpr int kValueRows = 4;    // and from the cache

  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }

  // 32 bfloat16 numbers as pairs: the first of each pair, and the second.
  static void load_bf16_pairs(const void* p, Vec& first, Vec& second) { split(_mm512_loadu_si512(p), first, second); }
  static void load_bf16_pairs(const void* p, int pairs, Vec& first, Vec& second) {
    split(_mm512_maskz_loadu_epi32(mask(pairs), p), first, second);
  }
  static void split(__m512i raw, Vec& first, Vec& second) {
    first.v = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
    second.v = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Vec load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
  static Vec load_f16(const void* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p))}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static Vec load_bf16(const void* p) { return widen(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static Vec load_bf16(const void* p, int n) { return widen(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static Vec widen(__m256i raw) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))}; }
  static Vec load_int8(const void* p) { return whole(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static Vec load_int8(const void* p, int n) { return whole(_mm_maskz_loadu_epi8(mask(n), p)); }
  static Vec whole(__m128i raw) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw))}; }

  void store(float* p, int n) const {
    if (n >= 16) {
      store(p);
    } else {
      _mm512_mask_storeu_ps(p, mask(n), v);
    }
  }
  void store_f16(void* p, int n) const { put(p, f16_bits(), n); }
  __m256i f16_bits() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_bf16(void* p, int n) const { put(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(), 16)), n); }
  // A store with a mask takes several times as long as one without.
  static void put(void* p, __m256i raw, int n) {
    if (n >= 16) {
      _mm256_storeu_si256(static_cast<__m256i*>(p), raw);
    } else {
      _mm256_mask_storeu_epi16(p, mask(n), raw);
    }
  }
  // The bits of the nearest bfloat16, and something below them.
  __m512i bf16_bits() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  }
  // What is read again after a store in 16 bits.
  Vec as_bf16() const {
    return {_mm512_castsi512_ps(_mm512_and_si512(bf16_bits(), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }
  Vec as_f16() const { return {_mm512_cvtph_ps(f16_bits())}; }
  static __mmask16 mask(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // Where one is not a number, the result is b.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2 to the whole numbers n from -126 to 127.
  static Vec power_of_two(Vec n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
  }
  // x where a >= b or one is not a number, else zero.
  static Vec keep_unless_less(Vec a, Vec b, Vec x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), x.v)};
  }

  // Halves are added until one number is left, here as in sum_each.
  static float sum(Vec a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
  }
  static float largest(Vec a) {
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
  }
  // The sum of each of sixteen vectors.
  static Vec sum_each(Vec* a) {
    __m512 h[8], q[4], d[2];
    for (int i = 0; i < 4; i++) {
      h[i] = fold<0x44, 0xee>(a[i].v, a[i + 4].v);
      h[i + 4] = fold<0x44, 0xee>(a[i + 8].v, a[i + 12].v);
    }
    for (int i = 0; i < 4; i++) q[i] = fold<0x88, 0xdd>(h[i], h[i + 4]);
    // q[i] has four numbers each of a[i], a[i + 4], a[i + 8] and a[i + 12]
    for (int i = 0; i < 2; i++)
      d[i] = _mm512_add_ps(_mm512_shuffle_ps(q[i], q[i + 2], 0x44), _mm512_shuffle_ps(q[i], q[i + 2], 0xee));
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(d[0], d[1], 0x88), _mm512_shuffle_ps(d[0], d[1], 0xdd));
    // four at a time: the sums of a[0], a[2], a[1], a[3]
    return {_mm512_shuffle_ps(sums, sums, 0xd8)};
  }
  // Sixteen vectors of sixteen words: word j of vector i and word i of vector j change places.
  static void transpose(Vec* a) {
    __m512i pairs[16], quads[16];
    for (int i = 0; i < 16; i += 2) {
      const __m512i x = _mm512_castps_si512(a[i].v), y = _mm512_castps_si512(a[i + 1].v);
      pairs[i] = _mm512_unpacklo_epi32(x, y);
      pairs[i + 1] = _mm512_unpackhi_epi32(x, y);
    }
    // quads[4 * i + j]: in each quarter, of vectors 4 * i and the three after it, word j of that quarter
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; j++) {
        quads[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
        quads[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
      }
    for (int j = 0; j < 4; j++) {
      const __m512i upper_even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
      const __m512i upper_odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xdd);
      const __m512i lower_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
      const __m512i lower_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xdd);
      a[j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(upper_even, lower_even, 0x88));
      a[4 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(upper_odd, lower_odd, 0x88));
      a[8 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(upper_even, lower_even, 0xdd));
      a[12 + j].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(upper_odd, lower_odd, 0xdd));
    }
  }
  template <int kLow, int kHigh>
  static __m512 fold(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, kLow), _mm512_shuffle_f32x4(a, b, kHigh));
  }
};

}  // namespace
