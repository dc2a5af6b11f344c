// Four floats in a NEON register.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr int kMaxRows = 4;
  static constexpr int kMaxPairRows = 4;
  static constexpr int kColumnVecs = 4;
  static constexpr int kScoreRows = 3;    // rows of attention whose scores are held in registers at once,
  static constexpr int kScoreGroups = 1;  // times this many vectors of keys;
  static constexpr int kPackedRows = 2;   // rows that share the values they load from a packed tile,
  static constexpr int kValueRows = 2;    // and from the cache

  float32x4_t v;

  static Vec zero() { return all(0.0f); }
  static Vec all(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const float* p, int n) {
    if (n >= 4) return load(p);
    float some[4] = {};
    std::memcpy(some, p, static_cast<size_t>(n) * 4);
    return load(some);
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store(float* p, int n) const {
    if (n >= 4) return store(p);
    float all[4];
    store(all);
    std::memcpy(p, all, static_cast<size_t>(n) * 4);
  }

  static void load_bf16_pairs(const void* p, Vec& first, Vec& second) {
    split(vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p))), first, second);
  }
  static void load_bf16_pairs(const void* p, int pairs, Vec& first, Vec& second) {
    uint32_t some[4] = {};
    std::memcpy(some, p, static_cast<size_t>(pairs < 4 ? pairs : 4) * 4);
    split(vld1q_u32(some), first, second);
  }
  static void split(uint32x4_t raw, Vec& first, Vec& second) {
    first.v = vreinterpretq_f32_u32(vshlq_n_u32(raw, 16));
    second.v = vreinterpretq_f32_u32(vandq_u32(raw, vdupq_n_u32(0xffff0000u)));
  }
  static Vec load_f16(const void* p, int n = 4) { return {vcvt_f32_f16(vreinterpret_f16_u16(some(p, n)))}; }
  static Vec load_bf16(const void* p, int n = 4) { return {vreinterpretq_f32_u32(vshll_n_u16(some(p, n), 16))}; }
  static uint16x4_t some(const void* p, int n) {
    uint16_t raw[4] = {};
    std::memcpy(raw, p, static_cast<size_t>(n < 4 ? n : 4) * 2);
    return vld1_u16(raw);
  }
  static Vec load_int8(const void* p, int n = 4) {
    uint32_t raw = 0;
    std::memcpy(&raw, p, static_cast<size_t>(n < 4 ? n : 4));
    const int16x8_t numbers = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(raw)));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(numbers)))};
  }

  void store_f16(void* p, int n) const { put(p, vreinterpret_u16_f16(vcvt_f16_f32(v)), n); }
  void store_bf16(void* p, int n) const { put(p, vshrn_n_u32(bf16_bits(), 16), n); }
  // The bits of the nearest bfloat16, and something below them.
  uint32x4_t bf16_bits() const {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t is_number = vceqq_f32(v, v);
    return vbslq_u32(is_number, rounded, quiet);
  }
  // What is read again after a store in 16 bits.
  Vec as_bf16() const { return {vreinterpretq_f32_u32(vandq_u32(bf16_bits(), vdupq_n_u32(0xffff0000u)))}; }
  Vec as_f16() const { return {vcvt_f32_f16(vcvt_f16_f32(v))}; }
  static void put(void* p, uint16x4_t raw, int n) {
    std::memcpy(p, &raw, static_cast<size_t>(n < 4 ? n : 4) * 2);
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  // As on other processors the second where one is no number; vmaxq and vminq would differ.
  static Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
  static Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
  static Vec power_of_two(Vec n) {
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
  }
  static Vec keep_unless_less(Vec a, Vec b, Vec x) {
    return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.v), vcltq_f32(a.v, b.v)))};
  }

  static float sum(Vec a) {
    const float32x2_t halves = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
    return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
  }
  static float largest(Vec a) {
    float x[4];
    a.store(x);
    const float even = x[0] > x[2] ? x[0] : x[2], odd = x[1] > x[3] ? x[1] : x[3];
    return even > odd ? even : odd;
  }
  static Vec sum_each(Vec* a) {
    transpose(a);
    return (a[0] + a[2]) + (a[1] + a[3]);
  }
  // Four vectors of four words: word j of vector i and word i of vector j change places.
  static void transpose(Vec* a) {
    const float32x4x2_t x = vtrnq_f32(a[0].v, a[1].v), y = vtrnq_f32(a[2].v, a[3].v);
    for (int i = 0; i < 2; i++) {
      a[i].v = vcombine_f32(vget_low_f32(x.val[i]), vget_low_f32(y.val[i]));
      a[i + 2].v = vcombine_f32(vget_high_f32(x.val[i]), vget_high_f32(y.val[i]));
    }
  }
};

}  // namespace
