// Eight floats in an AVX register.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kMaxRows = 5;
  static constexpr int kMaxPairRows = 4;  // of bfloat16, whose pairs need twice the registers
  static constexpr int kColumnVecs = 2;
  static constexpr int kBulkRows = 6;     // rows at once, where there are many and weights come as floats
  static constexpr int kScoreRows = 3;    // rows of attention whose scores are held in registers at once,
  static constexpr int kScoreGroups = 1;  // times this many vectors of keys;
  static constexpr int kPackedRows = 2;   // rows that share the values they load from a packed tile,
  static constexpr int kValueRows = 2;    // and from the cache

  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }

  static void load_bf16_pairs(const void* p, Vec& first, Vec& second) {
    split(_mm256_loadu_si256(static_cast<const __m256i*>(p)), first, second);
  }
  static void load_bf16_pairs(const void* p, int pairs, Vec& first, Vec& second) {
    split(_mm256_maskload_epi32(static_cast<const int*>(p), mask(pairs)), first, second);
  }
  static void split(__m256i raw, Vec& first, Vec& second) {
    first.v = _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16));
    second.v = _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Vec load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
  static Vec load_f16(const void* p, int n) { return {_mm256_cvtph_ps(some(p, n))}; }
  static Vec load(const float* p, int n) {
    if (n >= 8) return load(p);
    return {_mm256_maskload_ps(p, mask(n))};
  }
  static Vec load_bf16(const void* p) { return widen(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static Vec load_bf16(const void* p, int n) { return widen(some(p, n)); }
  static Vec widen(__m128i raw) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))}; }
  static __m128i some(const void* p, int n) {
    if (n >= 8) return _mm_loadu_si128(static_cast<const __m128i*>(p));
    __m128i raw = _mm_setzero_si128();
    std::memcpy(&raw, p, static_cast<size_t>(n) * 2);
    return raw;
  }

  static Vec load_int8(const void* p) { return whole(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
  static Vec load_int8(const void* p, int n) {
    if (n >= 8) return load_int8(p);
    __m128i raw = _mm_setzero_si128();
    std::memcpy(&raw, p, static_cast<size_t>(n));
    return whole(raw);
  }
  static Vec whole(__m128i raw) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw))}; }

  static void put(void* p, __m128i raw, int n) {
    if (n >= 8) {
      _mm_storeu_si128(static_cast<__m128i*>(p), raw);
    } else {
      std::memcpy(p, &raw, static_cast<size_t>(n) * 2);
    }
  }

  // A store with a mask takes many times as long as one without.
  void store(float* p, int n) const {
    if (n >= 8) return store(p);
    _mm256_maskstore_ps(p, mask(n), v);
  }
  void store_f16(void* p, int n) const { put(p, f16_bits(), n); }
  __m128i f16_bits() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  void store_bf16(void* p, int n) const {
    const __m256i high = _mm256_srli_epi32(bf16_bits(), 16);
    put(p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)), n);
  }
  // The bits of the nearest bfloat16, and something below them.
  __m256i bf16_bits() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
  }
  // What is read again after a store in 16 bits.
  Vec as_bf16() const {
    return {_mm256_castsi256_ps(_mm256_and_si256(bf16_bits(), _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
  }
  Vec as_f16() const { return {_mm256_cvtph_ps(f16_bits())}; }
  static __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Vec power_of_two(Vec n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23))};
  }
  static Vec keep_unless_less(Vec a, Vec b, Vec x) {
    return {_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ), x.v)};
  }

  static float sum(Vec a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
  }
  static float largest(Vec a) {
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
  }
  static Vec sum_each(Vec* a) {
    __m256 q[4], d[2];
    for (int i = 0; i < 4; i++) {
      const __m256 x = a[i].v, y = a[i + 4].v;
      q[i] = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
    }
    for (int i = 0; i < 2; i++)
      d[i] = _mm256_add_ps(_mm256_shuffle_ps(q[i], q[i + 2], 0x44), _mm256_shuffle_ps(q[i], q[i + 2], 0xee));
    const __m256 sums = _mm256_add_ps(_mm256_shuffle_ps(d[0], d[1], 0x88), _mm256_shuffle_ps(d[0], d[1], 0xdd));
    return {_mm256_shuffle_ps(sums, sums, 0xd8)};
  }
  // Eight vectors of eight words: word j of vector i and word i of vector j change places.
  static void transpose(Vec* a) {
    __m256 quads[8];
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; j++) {
        const auto unpack = [&](int k) {
          return j ? _mm256_unpackhi_ps(a[k].v, a[k + 1].v) : _mm256_unpacklo_ps(a[k].v, a[k + 1].v);
        };
        const __m256 x = unpack(i), y = unpack(i + 2);
        quads[i + 2 * j] = _mm256_shuffle_ps(x, y, 0x44);
        quads[i + 2 * j + 1] = _mm256_shuffle_ps(x, y, 0xee);
      }
    for (int j = 0; j < 4; j++) {
      a[j].v = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
      a[4 + j].v = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
    }
  }
};

}  // namespace
