// Four 32-bit integers, and sums of products of 8-bit numbers, in plain C++.
#pragma once

#include <cstring>

#include "vec_portable.h"

namespace {

struct IntVec {
  static constexpr int kMaxRows = 4;
  static constexpr int kColumnVecs = 2;

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
  void halves(IntVec& low, IntVec& high) const {
    for (int i = 0; i < 16; i++) {
      low.bytes[i] = bytes[i] & 0x0f;
      high.bytes[i] = bytes[i] >> 4;
    }
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
