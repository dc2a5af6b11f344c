// Four 32-bit integers, and sums of products of 8-bit numbers, in plain C++.
#pragma once

#include <cstring>

#include "vec_portable.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 4;
  static constexpr int kColumnVecs = 2;
  static constexpr bool kHasWideRows = false;
  static constexpr int kShortLines = 0;

  union {
    int32_t v[4];
    uint8_t bytes[16];
  };

  // Four numbers of a row, for every lane.
  struct Numbers {
    int8_t v[4];
    explicit Numbers(int32_t word) { std::memcpy(v, &word, 4); }
  };

  static IntVec all(int32_t x) { return {{{x, x, x, x}}}; }
  static IntVec load(const char* p) {
    IntVec r;
    std::memcpy(r.bytes, p, 16);
    return r;
  }
  // The nearest whole numbers, of two the even one.
  static IntVec nearest(Vec x) {
    const Vec rounded = Vec::round(x);
    IntVec r;
    for (int i = 0; i < 4; i++) r.v[i] = static_cast<int32_t>(rounded.v[i]);
    return r;
  }
  // Numbers from -128 to 127 as bytes.
  void store_bytes(int8_t* p) const {
    for (int i = 0; i < 4; i++) p[i] = static_cast<int8_t>(v[i]);
  }
  int32_t total() const { return v[0] + v[1] + v[2] + v[3]; }
  friend IntVec operator+(IntVec a, IntVec b) {
    for (int i = 0; i < 4; i++) a.v[i] += b.v[i];
    return a;
  }
  // Of each byte, as bytes.
  IntVec low_halves() const {
    IntVec r;
    for (int i = 0; i < 16; i++) r.bytes[i] = bytes[i] & 0x0f;
    return r;
  }
  IntVec high_halves() const {
    IntVec r;
    for (int i = 0; i < 16; i++) r.bytes[i] = bytes[i] >> 4;
    return r;
  }
  Vec floats() const {
    return Vec::each([&](int i) { return static_cast<float>(v[i]); });
  }

  // Adds, in every lane, the products of four weights, unsigned, and four numbers.
  static IntVec dot(IntVec sums, IntVec weights, const Numbers& numbers) {
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) sums.v[i] += weights.bytes[4 * i + j] * numbers.v[j];
    return sums;
  }
};

}  // namespace
