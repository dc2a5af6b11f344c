// Four floats in plain C++; compilers make SSE or NEON of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
  const float small = static_cast<float>(magnitude) * 5.9604644775390625e-08f;  // 2 ** -24
  return sign ? -small : small;
}

// Rounds to the nearest, ties to even.
uint16_t half_of_float(float x) {
  const uint32_t bits = bits_of_float(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // below 2 ** -14: a float of 2 ** -24 steps, which adding 0.5 rounds
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

uint16_t bf16_of_float(float x) {
  const uint32_t bits = bits_of_float(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits | 0x400000) >> 16);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxPairRows = 4;
  static constexpr int kColumnVecs = 2;
  static constexpr int kScoreRows = 2;    // rows of attention whose scores are held in registers at once,
  static constexpr int kScoreGroups = 1;  // times this many vectors of keys;
  static constexpr int kPackedRows = 2;   // rows that share the values they load from a packed tile,
  static constexpr int kValueRows = 2;    // and from the cache

  float v[4];

  template <class F>
  static Vec each(F f) {
    Vec r;
    for (int i = 0; i < 4; i++) r.v[i] = f(i);
    return r;
  }
  static Vec zero() { return all(0.0f); }
  static Vec all(float x) {
    return each([&](int) { return x; });
  }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(r.v, p, 16);
    return r;
  }
  static Vec load(const float* p, int n) {
    Vec r = zero();
    std::memcpy(r.v, p, static_cast<size_t>(n < 4 ? n : 4) * 4);
    return r;
  }
  void store(float* p) const { std::memcpy(p, v, 16); }
  void store(float* p, int n) const { std::memcpy(p, v, static_cast<size_t>(n < 4 ? n : 4) * 4); }

  static void load_bf16_pairs(const void* p, Vec& first, Vec& second) { load_bf16_pairs(p, 4, first, second); }
  static void load_bf16_pairs(const void* p, int pairs, Vec& first, Vec& second) {
    uint16_t raw[8] = {};
    std::memcpy(raw, p, static_cast<size_t>(pairs < 4 ? pairs : 4) * 4);
    first = each([&](int i) { return float_of_bits(static_cast<uint32_t>(raw[2 * i]) << 16); });
    second = each([&](int i) { return float_of_bits(static_cast<uint32_t>(raw[2 * i + 1]) << 16); });
  }
  static Vec load_f16(const void* p, int n = 4) {
    uint16_t raw[4] = {};
    std::memcpy(raw, p, static_cast<size_t>(n < 4 ? n : 4) * 2);
    return each([&](int i) { return float_of_half(raw[i]); });
  }
  static Vec load_bf16(const void* p, int n = 4) {
    uint16_t raw[4] = {};
    std::memcpy(raw, p, static_cast<size_t>(n < 4 ? n : 4) * 2);
    return each([&](int i) { return float_of_bits(static_cast<uint32_t>(raw[i]) << 16); });
  }
  static Vec load_int8(const void* p, int n = 4) {
    int8_t raw[4] = {};
    std::memcpy(raw, p, static_cast<size_t>(n < 4 ? n : 4));
    return each([&](int i) { return static_cast<float>(raw[i]); });
  }
  void store_f16(void* p, int n) const {
    uint16_t raw[4];
    for (int i = 0; i < 4; i++) raw[i] = half_of_float(v[i]);
    std::memcpy(p, raw, static_cast<size_t>(n < 4 ? n : 4) * 2);
  }
  void store_bf16(void* p, int n) const {
    uint16_t raw[4];
    for (int i = 0; i < 4; i++) raw[i] = bf16_of_float(v[i]);
    std::memcpy(p, raw, static_cast<size_t>(n < 4 ? n : 4) * 2);
  }
  // What is read again after a store in 16 bits.
  Vec as_bf16() const {
    return each([&](int i) { return float_of_bits(static_cast<uint32_t>(bf16_of_float(v[i])) << 16); });
  }
  Vec as_f16() const {
    return each([&](int i) { return float_of_half(half_of_float(v[i])); });
  }

  friend Vec operator+(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend Vec operator/(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static Vec fma(Vec a, Vec b, Vec c) {
#ifdef __FP_FAST_FMAF
    return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
#else
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
  }
  static Vec max(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec round(Vec a) {
    return each([&](int i) { return std::nearbyint(a.v[i]); });
  }
  static Vec power_of_two(Vec n) {
    return each([&](int i) { return float_of_bits(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
  }
  static Vec keep_unless_less(Vec a, Vec b, Vec x) {
    return each([&](int i) { return a.v[i] < b.v[i] ? 0.0f : x.v[i]; });
  }

  static float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
  static float largest(Vec a) {
    const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
    return x > y ? x : y;
  }
  static Vec sum_each(Vec* a) {
    return each([&](int i) { return sum(a[i]); });
  }
  static void transpose(Vec* a) {
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < i; j++) std::swap(a[i].v[j], a[j].v[i]);
  }
};

}  // namespace
