// The kernels of step.h. Included after kernels.inl.
//
// Numbers are rounded to their type after every operation after which torch rounds them (layers/rotary.py), so that a step
// in one call and one that torch computes op by op give the same bits.
#pragma once

#include "step.h"

namespace {

constexpr float kSmallestScale = 1.17549435e-38f;  // the smallest normal number: keeps zeros zero where all are

template <DType kType>
LANGPORT_INLINE Vec rounded(Vec x) {
  if constexpr (kType == kBFloat16) return x.as_bf16();
  if constexpr (kType == kFloat16) return x.as_f16();
  return x;
}

// Cosines and sines of a token, rounded.
template <DType kType>
struct Angles {
  int64_t pairs = 0;
  float cosines[kMostPairs], sines[kMostPairs];

  void read(const StepRotary& rotary, int64_t position, int64_t length) {
    pairs = rotary.pairs;
    const bool is_long = rotary.trained_length && length > rotary.trained_length;
    const int64_t row = position + (is_long ? rotary.trained_length : 0);
    for (int64_t i = 0; i < pairs; i += kWidth) {
      const int n = smaller(kWidth, pairs - i);
      rounded<kType>(Vec::load(rotary.cosines + row * pairs + i, n)).store(cosines + i, n);
      rounded<kType>(Vec::load(rotary.sines + row * pairs + i, n)).store(sines + i, n);
    }
  }

  // The two halves of the first 2 * pairs numbers of a head are the sides of triangles.
  void turn(char* head) const {
    const size_t size = size_of(kType);
    for (int64_t i = 0; i < pairs; i += kWidth) {
      const int n = smaller(kWidth, pairs - i);
      char *first = head + static_cast<size_t>(i) * size, *second = head + static_cast<size_t>(pairs + i) * size;
      const Vec a = Number<kType>::load(first, n), b = Number<kType>::load(second, n);
      const Vec cosine = Vec::load(cosines + i, n), sine = Vec::load(sines + i, n);
      Number<kType>::store(first, rounded<kType>(a * cosine) - rounded<kType>(b * sine), n);
      Number<kType>::store(second, rounded<kType>(b * cosine) + rounded<kType>(a * sine), n);
    }
  }
};

template <DType kType>
void normalize_heads(const HeadsJob& job, const StepNorm& norm, char* heads, int64_t count) {
  if (norm.weight == nullptr) return;
  const int64_t columns = job.norms_heads ? job.head_dim : count * job.head_dim;
  const NormJob one{kType, 1, columns, heads, 0, 0, norm.weight, norm.offset, norm.epsilon, heads};
  const size_t bytes = static_cast<size_t>(columns) * size_of(kType);
  for (int64_t i = 0; i < count * job.head_dim / columns; i++) rms_norm_row<kType>(one, heads + i * bytes, heads + i * bytes);
}

// A head as whole numbers from -127 to 127, and what they are multiplied with. Where one of its numbers is not finite that
// is no number, and so is what comes of it. `in_int8` of ops/attention.py does the same, bit for bit.
template <DType kType>
void keep_int8(const char* head, int64_t head_dim, char* numbers, float* scale) {
  const size_t size = size_of(kType);
  Vec largest = Vec::zero(), nothing = Vec::zero();
  for (int64_t i = 0; i < head_dim; i += kWidth) {
    const Vec x = Number<kType>::load(head + static_cast<size_t>(i) * size, smaller(kWidth, head_dim - i));
    largest = Vec::max(largest, Vec::max(x, Vec::zero() - x));
    nothing = nothing + (x - x);
  }
  const float step = Vec::largest(largest) / 127.0f;
  *scale = (step > kSmallestScale ? step : kSmallestScale) + Vec::sum(nothing);
  if (std::isnan(*scale)) {
    std::memset(numbers, 0, static_cast<size_t>(head_dim));
    return;
  }
  for (int64_t i = 0; i < head_dim; i += kWidth) {
    const int n = smaller(kWidth, head_dim - i);
    float whole[kWidth];
    Vec::round(Number<kType>::load(head + static_cast<size_t>(i) * size, n) / Vec::all(*scale)).store(whole);
    for (int j = 0; j < n; j++) numbers[i + j] = static_cast<char>(static_cast<int>(whole[j]));
  }
}

// Key and value of a token and kv head to their place in the cache, counted in heads.
template <DType kType>
void keep_head(const HeadsJob& job, const char* key, const char* value, int64_t place) {
  const size_t at = static_cast<size_t>(place * job.head_dim);
  if (job.key_scales != nullptr) {
    keep_int8<kType>(key, job.head_dim, job.keys + at, job.key_scales + place);
    keep_int8<kType>(value, job.head_dim, job.values + at, job.value_scales + place);
    return;
  }
  const size_t size = size_of(kType), bytes = static_cast<size_t>(job.head_dim) * size;
  std::memcpy(job.keys + at * size, key, bytes);
  std::memcpy(job.values + at * size, value, bytes);
}

template <DType kType>
void turn_heads_of(const HeadsJob& job, int64_t first_row, int64_t rows) {
  const size_t head_bytes = static_cast<size_t>(job.head_dim) * size_of(kType);
  const size_t kv_bytes = static_cast<size_t>(job.kv_heads) * head_bytes;
  Angles<kType> angles;
  for (int64_t row = first_row; row < first_row + rows; row++) {
    char* query = job.qkv + static_cast<size_t>(row * (job.heads + 2 * job.kv_heads)) * head_bytes;
    char* key = query + static_cast<size_t>(job.heads) * head_bytes;
    normalize_heads<kType>(job, job.query_norm, query, job.heads);
    normalize_heads<kType>(job, job.key_norm, key, job.kv_heads);
    if (job.rotary != nullptr) {
      angles.read(*job.rotary, job.positions[row], job.lengths[row]);
      for (int64_t head = 0; head < job.heads + job.kv_heads; head++)
        angles.turn(query + static_cast<size_t>(head) * head_bytes);
    }
    const int64_t block = job.slots[row] / job.block_size, place = job.slots[row] % job.block_size;
    for (int64_t head = 0; head < job.kv_heads; head++) {
      const char* source = key + static_cast<size_t>(head) * head_bytes;
      const int64_t row = (block * job.kv_heads + head) * job.block_size + place;
      keep_head<kType>(job, source, source + kv_bytes, row);
    }
  }
}

void turn_heads(const HeadsJob& job, int64_t first_row, int64_t rows) {
  switch (job.dtype) {
    case kFloat32: return turn_heads_of<kFloat32>(job, first_row, rows);
    case kBFloat16: return turn_heads_of<kBFloat16>(job, first_row, rows);
    case kFloat16: return turn_heads_of<kFloat16>(job, first_row, rows);
  }
}

template <DType kType>
void add_rows(const AddJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(kType);
  const Vec factor = Vec::all(job.factor);
  for (int64_t i = first_row * job.columns; i < (first_row + rows) * job.columns; i += kWidth) {
    const int n = smaller(kWidth, (first_row + rows) * job.columns - i);
    char* x = job.x + static_cast<size_t>(i) * size;
    Vec y = Number<kType>::load(job.y + static_cast<size_t>(i) * size, n);
    if (job.factor != 1.0f) y = rounded<kType>(y * factor);
    Number<kType>::store(x, Number<kType>::load(x, n) + y, n);
  }
}

void add(const AddJob& job, int64_t first_row, int64_t rows) {
  switch (job.dtype) {
    case kFloat32: return add_rows<kFloat32>(job, first_row, rows);
    case kBFloat16: return add_rows<kBFloat16>(job, first_row, rows);
    case kFloat16: return add_rows<kFloat16>(job, first_row, rows);
  }
}

// x times half of 1 + tanh(u), which is 1 / (1 + e ** -2u). Source: Hendrycks and Gimpel 2016, the approximation.
LANGPORT_INLINE Vec tanh_gelu(Vec x) {
  const Vec twice_u = Vec::all(1.5957691216f) * (x + Vec::all(0.044715f) * x * x * x);
  return x / (Vec::all(1.0f) + exponential(Vec::zero() - twice_u));
}

void gelu_mul(const GatedJob& job, int64_t first_row, int64_t rows) {
  gate_rows_by_type<tanh_gelu>(job, first_row, rows);
}

constexpr StepKernels step_kernels = {turn_heads, add, gelu_mul};

}  // namespace
