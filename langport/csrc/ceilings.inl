// What this processor can do at best at a level, for benchmarks/kernels.py to measure the kernels by. Included after
// kernels.inl.
#pragma once

namespace {

// Keeps the compiler from leaving out what nobody reads.
volatile float ceilings_sink;

// Multiplies and adds in registers, in so many chains that none waits for itself. Returns the number of additions and
// multiplications, of which a lane of multiply_add makes `per_lane`.
template <class F>
double multiply_in_registers(int64_t rounds, int per_lane, F&& multiply_add) {
  constexpr int kChains = kWidth == 16 ? 24 : 12;
  Vec sums[kChains];
  for (int i = 0; i < kChains; i++) sums[i] = Vec::all(static_cast<float>(i));  // all different, or they would be one
  const Vec a = Vec::all(0.5f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) sums[i] = multiply_add(a, a, sums[i]);
  }
  for (int i = 0; i < kChains; i++) ceilings_sink = Vec::sum(sums[i]);
  return static_cast<double>(rounds) * kChains * kWidth * per_lane;
}

double multiply_adds(DType, int64_t rounds) {
  return multiply_in_registers(rounds, 2, [](Vec a, Vec b, Vec sums) { return Vec::fma(a, b, sums); });
}

void read_memory(const char* data, size_t bytes) {
  constexpr size_t kAhead = 8192;
  constexpr int kVectors = 4;
  Vec sums[kVectors];
  for (int i = 0; i < kVectors; i++) sums[i] = Vec::zero();
  for (size_t at = 0; at + sizeof(sums) <= bytes; at += sizeof(sums)) {
    for (size_t line = 0; line < sizeof(sums); line += 64) LANGPORT_PREFETCH(data + at + kAhead + line);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; i++)
      sums[i] = sums[i] + Vec::load(reinterpret_cast<const float*>(data + at + static_cast<size_t>(i) * sizeof(Vec)));
  }
  for (int i = 0; i < kVectors; i++) ceilings_sink = Vec::sum(sums[i]);
}

}  // namespace
