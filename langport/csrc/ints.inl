// The kernels of ints.h, written once over Vec and IntVec; included after kernels.inl and the level's own int_*.h.
#pragma once

#include "ints.h"

namespace {

// n numbers of x, n at most a vector.
LANGPORT_INLINE Vec load_number(DType dtype, const char* p, int n) {
  switch (dtype) {
    case kFloat32: return Number<kFloat32>::load(p, n);
    case kBFloat16: return Number<kBFloat16>::load(p, n);
    default: return Number<kFloat16>::load(p, n);
  }
}

LANGPORT_INLINE void store_number(DType dtype, char* p, Vec x, int n) {
  switch (dtype) {
    case kFloat32: return Number<kFloat32>::store(p, x, n);
    case kBFloat16: return Number<kBFloat16>::store(p, x, n);
    default: return Number<kFloat16>::store(p, x, n);
  }
}

// The block's numbers as 8-bit ones, `numbers` padded to the tile's lines with zeros. Returns their scale; the sum of the
// 8-bit numbers goes to `sum`. A row with infinities or what is no number gets a scale that is no number.
inline float quantize_block(DType dtype, const char* x, int64_t numbers, int8_t* out, int32_t& sum) {
  const size_t size = size_of(dtype);
  Vec largest = Vec::zero(), broken = Vec::zero();
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const Vec v = load_number(dtype, x + static_cast<size_t>(i) * size, smaller(kWidth, numbers - i));
    largest = Vec::max(largest, Vec::max(v, Vec::zero() - v));
    broken = broken + v * Vec::zero();
  }
  float lanes[kWidth], flags[kWidth];
  largest.store(lanes);
  broken.store(flags);
  float top = 0, flag = 0;
  for (int i = 0; i < kWidth; i++) {
    top = lanes[i] > top ? lanes[i] : top;
    flag += flags[i];
  }
  constexpr float kSmallest = 1e-30f;
  const bool is_zero = !(top > kSmallest) || flag != 0;
  const float inverse = is_zero ? 0.0f : 127.0f / top;
  sum = 0;
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const int n = smaller(kWidth, numbers - i);
    const Vec v = load_number(dtype, x + static_cast<size_t>(i) * size, n);
    Vec::round(is_zero ? Vec::zero() : v * Vec::all(inverse)).store(lanes);
    for (int j = 0; j < n; j++) {
      const auto q = static_cast<int32_t>(lanes[j]);
      out[i + j] = static_cast<int8_t>(q);
      sum += q;
    }
  }
  return is_zero ? flag : top / 127.0f;
}

// A tile is [word of K][row], then [block][row] scales, then [block][row] starts: what the products begin at, so that
// the offset of the stored weights adds nothing.
void pack_int_rows(const PackedInts& weight, const void* x, int64_t x_stride, int rows, void* tile) {
  auto* words = static_cast<int32_t*>(tile);
  const int64_t num_words = weight.words();
  auto* scales = reinterpret_cast<float*>(words + num_words * rows);
  auto* starts = words + (num_words + weight.blocks) * rows;
  const int32_t offset = weight.bits == 8 ? 128 : 8;
  const size_t size = size_of(weight.dtype);
  alignas(64) int8_t numbers[kIntLargestBlock];
  for (int row = 0; row < rows; row++) {
    const char* source = static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * size;
    int64_t word = 0;
    for (int64_t index = 0; index < weight.blocks; index++) {
      const int64_t first = index * weight.block, left = weight.k - first;
      const int64_t count = left < weight.block ? left : weight.block;
      const int64_t block_words = weight.lines_of(index) * weight.per_line() / 4;
      std::memset(numbers + count, 0, static_cast<size_t>(block_words * 4 - count));
      int32_t sum;
      scales[index * rows + row] =
          quantize_block(weight.dtype, source + static_cast<size_t>(first) * size, count, numbers, sum);
      starts[index * rows + row] = -offset * sum;
      for (int64_t i = 0; i < block_words; i++, word++) std::memcpy(words + word * rows + row, numbers + i * 4, 4);
    }
  }
}

// One line of 8 bits, or of 4, times the numbers of R rows.
template <int kBits, int R, int C>
LANGPORT_INLINE void add_int_line(IntVec (&sums)[R][C], const char* line, const int32_t* words) {
  if constexpr (kBits == 8) {
    IntVec weights[C];
    for (int c = 0; c < C; c++) weights[c] = IntVec::load(line + c * kWidth * 4);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const IntVec::Numbers numbers(words[r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = IntVec::dot(sums[r][c], weights[c], numbers);
    }
  } else {
    IntVec low[C], high[C];
    for (int c = 0; c < C; c++) IntVec::load(line + c * kWidth * 4).halves(low[c], high[c]);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const IntVec::Numbers first(words[r]), second(words[R + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        sums[r][c] = IntVec::dot(sums[r][c], low[c], first);
        sums[r][c] = IntVec::dot(sums[r][c], high[c], second);
      }
    }
  }
}

template <int kBits, int R>
void multiply_int_rows(const IntPanelJob& job) {
  constexpr int C = IntVec::kColumnVecs;
  const PackedInts& weight = *job.weight;
  const char* panel = weight.data + static_cast<size_t>(job.panel) * weight.panel_bytes();
  const auto* all_words = static_cast<const int32_t*>(job.tile);
  const int64_t num_words = weight.words();
  const auto* scales = reinterpret_cast<const float*>(all_words + num_words * R);
  const auto* starts = all_words + (num_words + weight.blocks) * R;
  const size_t size = size_of(weight.dtype);
  for (int column = 0; column < kPanelColumns; column += C * kWidth) {
    Vec totals[R][C];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) totals[r][c] = Vec::zero();
    const char* line = panel;
    const int32_t* words = all_words;
    const char* next = job.prefetch;
    const int prefetch = column == 0 ? job.prefetch_bytes : 0;
    Vec row_scales[C];  // of the weights, for the block or for all of K
    for (int64_t index = 0; index < weight.blocks; index++) {
      const int64_t lines = weight.lines_of(index);
      IntVec sums[R][C];
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r][c] = IntVec::all(starts[index * R + r]);
      for (int64_t i = 0; i < lines; i++) {
        add_int_line<kBits, R, C>(sums, line + column * 4, words);
        line += kLineBytes;
        words += kBits == 8 ? R : 2 * R;
        for (int p = 0; p < prefetch; p += 64) LANGPORT_PREFETCH(next + p);
        next += prefetch;
      }
      if (weight.is_grouped) {
        for (int c = 0; c < C; c++)
          row_scales[c] =
              load_number(weight.dtype, line + static_cast<size_t>(column + c * kWidth) * size, kWidth);
        line += weight.scale_bytes();
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const Vec scale = Vec::all(scales[index * R + r]);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
          const Vec factor = weight.is_grouped ? scale * row_scales[c] : scale;
          totals[r][c] = totals[r][c] + sums[r][c].floats() * factor;
        }
      }
    }
    for (int c = 0; c < C; c++) {
      const int64_t begin = job.panel * kPanelColumns + column + c * kWidth;
      const int n = smaller(kWidth, weight.n - begin);
      if (n <= 0) break;
      Vec bias = Vec::zero();
      if (job.bias) bias = load_number(weight.dtype, static_cast<const char*>(job.bias) + static_cast<size_t>(begin) * size, n);
      if (!weight.is_grouped)
        row_scales[c] = load_number(weight.dtype, line + static_cast<size_t>(column + c * kWidth) * size, kWidth);
      for (int r = 0; r < R; r++) {
        Vec sum = weight.is_grouped ? totals[r][c] : totals[r][c] * row_scales[c];
        if (job.bias) sum = sum + bias;
        char* out = static_cast<char*>(job.out) + static_cast<size_t>(r * job.out_stride + begin) * size;
        store_number(weight.dtype, out, sum, n);
      }
    }
  }
}

template <int kBits, int R = IntVec::kMaxRows>
void multiply_ints_by_rows(const IntPanelJob& job) {
  if (job.rows == R) {
    multiply_int_rows<kBits, R>(job);
  } else if constexpr (R > 1) {
    multiply_ints_by_rows<kBits, R - 1>(job);
  }
}

void multiply_int_panel(const IntPanelJob& job) {
  if (job.weight->bits == 8) {
    multiply_ints_by_rows<8>(job);
  } else {
    multiply_ints_by_rows<4>(job);
  }
}

constexpr IntKernels int_kernels = {IntVec::kMaxRows, pack_int_rows, multiply_int_panel};

}  // namespace
