// The kernels of sample.h. Included after kernels.inl.
#pragma once

#include "sample.h"

namespace {

// A whole vector. With a mask, a load takes longer, and a store several times as long.
template <DType kType>
LANGPORT_INLINE Vec load_whole(const char* p) {
  if constexpr (kType == kFloat32) return Vec::load(reinterpret_cast<const float*>(p));
  return Number<kType>::load(p, kWidth);
}

template <DType kType, bool kDivides, bool kStores>
void read_numbers(const char* source, int64_t count, float divisor, float* x, float* largest) {
  const size_t size = size_of(kType);
  const Vec all_divisor = Vec::all(divisor);
  for (int64_t begin = 0; begin < count; begin += kSampleBlock) {
    const int64_t end = begin + smaller(kSampleBlock, count - begin);
    Vec most = Vec::all(-INFINITY);
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) {
      Vec numbers = load_whole<kType>(source + static_cast<size_t>(i) * size);
      if constexpr (kDivides) numbers = numbers / all_divisor;
      if constexpr (kStores) numbers.store(x + i);
      most = Vec::max(numbers, most);
    }
    float block = Vec::largest(most);
    if (i < end) {
      Vec numbers = Number<kType>::load(source + static_cast<size_t>(i) * size, smaller(kWidth, end - i));
      if constexpr (kDivides) numbers = numbers / all_divisor;
      float rest[kWidth];
      numbers.store(rest);
      for (int64_t j = 0; i + j < end; j++) {
        if constexpr (kStores) x[i + j] = rest[j];
        block = rest[j] > block ? rest[j] : block;
      }
    }
    largest[begin / kSampleBlock] = block;
  }
}

template <DType kType>
void read_type(const char* source, int64_t count, float divisor, float* x, float* largest) {
  if (x == nullptr) return read_numbers<kType, false, false>(source, count, divisor, x, largest);
  if (divisor == 1.0f) return read_numbers<kType, false, true>(source, count, divisor, x, largest);
  read_numbers<kType, true, true>(source, count, divisor, x, largest);
}

void read_row(DType dtype, const char* source, int64_t count, float divisor, float* x, float* largest) {
  switch (dtype) {
    case kFloat32: return read_type<kFloat32>(source, count, divisor, x, largest);
    case kBFloat16: return read_type<kBFloat16>(source, count, divisor, x, largest);
    case kFloat16: return read_type<kFloat16>(source, count, divisor, x, largest);
  }
}

float exponentials(const float* x, int64_t count, float shift, float* out) {
  const Vec all_shift = Vec::all(shift);
  Vec sum = Vec::zero();
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Vec found = exponential(Vec::load(x + i) - all_shift);
    if (out != nullptr) found.store(out + i);
    sum = sum + found;
  }
  float total = Vec::sum(sum);
  if (i < count) {
    float rest[kWidth];
    exponential(Vec::load(x + i, smaller(kWidth, count - i)) - all_shift).store(rest);
    for (int64_t j = 0; i + j < count; j++) {
      if (out != nullptr) out[i + j] = rest[j];
      total += rest[j];
    }
  }
  return total;
}

constexpr SampleKernels sample_kernels = {read_row, exponentials};

}  // namespace
