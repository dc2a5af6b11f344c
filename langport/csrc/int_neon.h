// Four 32-bit integers in a NEON register, and sums of products of 8-bit numbers.
#pragma once

#include "vec_neon.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 4;
  static constexpr int kColumnVecs = 2;
  static constexpr bool kHasWideRows = false;
  static constexpr int kShortLines = 0;

  int32x4_t v;

#if defined(__ARM_FEATURE_DOTPROD)
  // Four numbers of a row, for every lane, and 128 times their sum: the dot products take signed weights, 128 less.
  struct Numbers {
    int8x16_t all;
    int32x4_t more;
    explicit Numbers(int32_t word) : all(vreinterpretq_s8_s32(vdupq_n_s32(word))) {
      more = vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), all, vdupq_n_s8(1)), 7);
    }
  };
#else
  // Four numbers of a row, for every lane, as 16 bits: the first and third, the second and fourth.
  struct Numbers {
    int16x8_t even, odd;
    explicit Numbers(int32_t word) {
      const int16x8_t all = vreinterpretq_s16_s32(vdupq_n_s32(word));
      even = vshrq_n_s16(vshlq_n_s16(all, 8), 8);
      odd = vshrq_n_s16(all, 8);
    }
  };
#endif

  static IntVec all(int32_t x) { return {vdupq_n_s32(x)}; }
  static IntVec load(const char* p) { return {vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(p)))}; }
  // The nearest whole numbers, of two the even one.
  static IntVec nearest(Vec x) { return {vcvtnq_s32_f32(x.v)}; }
  // Numbers from -128 to 127 as bytes.
  void store_bytes(int8_t* p) const {
    const int16x4_t half = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
    std::memcpy(p, &bytes, 4);
  }
  int32_t total() const { return vaddvq_s32(v); }
  friend IntVec operator+(IntVec a, IntVec b) { return {vaddq_s32(a.v, b.v)}; }
  // Of each byte, as bytes.
  IntVec low_halves() const { return bytes(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(0x0f))); }
  IntVec high_halves() const { return bytes(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }
  void halves(IntVec& low, IntVec& high) const {
    low = low_halves();
    high = high_halves();
  }
  static IntVec bytes(uint8x16_t x) { return {vreinterpretq_s32_u8(x)}; }
  Vec floats() const { return {vcvtq_f32_s32(v)}; }

  // Adds, in every lane, the products of four weights, unsigned, and four numbers.
  static LANGPORT_INLINE IntVec dot(IntVec sums, IntVec weights, const Numbers& numbers) {
#if defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t less = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(weights.v), vdupq_n_u8(0x80)));
    return {vaddq_s32(vdotq_s32(sums.v, less, numbers.all), numbers.more)};
#else
    const int16x8_t words = vreinterpretq_s16_s32(weights.v);
    const int16x8_t even = vandq_s16(words, vdupq_n_s16(0x00ff));
    const int16x8_t odd = vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_s16(words), 8));
    const int32x4_t low = vmlal_s16(vmull_s16(vget_low_s16(even), vget_low_s16(numbers.even)), vget_low_s16(odd),
                                    vget_low_s16(numbers.odd));
    const int32x4_t high = vmlal_high_s16(vmull_high_s16(even, numbers.even), odd, numbers.odd);
    return {vaddq_s32(sums.v, vpaddq_s32(low, high))};
#endif
  }
};

}  // namespace
