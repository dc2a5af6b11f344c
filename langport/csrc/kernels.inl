// The kernels, written once over Vec; every level includes this file after its own vec_*.h and compiles it with its own
// flags. Everything is in unnamed namespaces, so that no level's code can be taken for another's when linked.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"

#if defined(__GNUC__)
#define LANGPORT_INLINE inline __attribute__((always_inline))
#define LANGPORT_PREFETCH(p) __builtin_prefetch((p), 0, 2)
#else
#define LANGPORT_INLINE inline
#define LANGPORT_PREFETCH(p) ((void)(p))
#endif

namespace {

using namespace langport;

constexpr int kWidth = Vec::kWidth;

// How numbers of each type are read and written in memory: n of them, at most a vector.
template <DType>
struct Number;

template <>
struct Number<kFloat32> {
  static Vec load(const char* p, int n) { return Vec::load(reinterpret_cast<const float*>(p), n); }
  static void store(char* p, Vec x, int n) { x.store(reinterpret_cast<float*>(p), n); }
};

template <>
struct Number<kBFloat16> {
  static Vec load(const char* p, int n) { return Vec::load_bf16(p, n); }
  static void store(char* p, Vec x, int n) { x.store_bf16(p, n); }
};

template <>
struct Number<kFloat16> {
  static Vec load(const char* p, int n) { return Vec::load_f16(p, n); }
  static void store(char* p, Vec x, int n) { x.store_f16(p, n); }
};

int smaller(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }

// e ** x to about one unit in the last place; what would be below float's normal numbers is zero.
// Source: the polynomial of Cephes' expf, S. Moshier.
LANGPORT_INLINE Vec exponential(Vec x) {
  const Vec low = Vec::all(-87.3f);
  const Vec y = Vec::max(low, Vec::min(Vec::all(88.0f), x));
  const Vec n = Vec::max(Vec::round(y * Vec::all(1.44269504f)), Vec::all(-126.0f));
  Vec r = Vec::fma(n, Vec::all(-0.693359375f), y);
  r = Vec::fma(n, Vec::all(2.12194440e-4f), r);
  Vec p = Vec::all(1.9875691500e-4f);
  p = Vec::fma(p, r, Vec::all(1.3981999507e-3f));
  p = Vec::fma(p, r, Vec::all(8.3334519073e-3f));
  p = Vec::fma(p, r, Vec::all(4.1665795894e-2f));
  p = Vec::fma(p, r, Vec::all(1.6666665459e-1f));
  p = Vec::fma(p, r, Vec::all(5.0000001201e-1f));
  p = Vec::fma(p * r, r, r + Vec::all(1.0f));
  return Vec::keep_unless_less(x, low, p * Vec::power_of_two(n));
}

LANGPORT_INLINE Vec hyperbolic_tangent(Vec x) {
  const Vec one = Vec::all(1.0f);
  const Vec limited = Vec::max(Vec::all(-20.0f), Vec::min(Vec::all(20.0f), x));
  return one - Vec::all(2.0f) / (exponential(limited + limited) + one);
}

// ---- Products with packed weights ----

// How a line of a panel (see kernels.h) is multiplied with the numbers of R rows. A tile of rows lies in memory as
// [number of K][row], so that what a line needs comes in one piece.
struct Float32Lines {
  using Act = float;
  static constexpr DType kType = kFloat32;
  static constexpr int kPerLine = 1;
  static constexpr int kMaxRows = Vec::kMaxRows;

  template <int R, int C>
  static LANGPORT_INLINE void add(Vec (&sums)[R][C], const char* line, int column, const float* act) {
    Vec weights[C];
    for (int c = 0; c < C; c++) weights[c] = Vec::load(reinterpret_cast<const float*>(line) + column + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = Vec::fma(Vec::all(act[r]), weights[c], sums[r][c]);
  }
};

struct BFloat16Lines {
  using Act = float;
  static constexpr DType kType = kBFloat16;
  static constexpr int kPerLine = 2;
  static constexpr int kMaxRows = Vec::kMaxPairRows;

  template <int R, int C>
  static LANGPORT_INLINE void add(Vec (&sums)[R][C], const char* line, int column, const float* act) {
    Vec first[C], second[C];
    for (int c = 0; c < C; c++) Vec::load_bf16_pairs(line + (column + c * kWidth) * 4, first[c], second[c]);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = Vec::fma(Vec::all(act[r]), first[c], sums[r][c]);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = Vec::fma(Vec::all(act[R + r]), second[c], sums[r][c]);
  }
};

struct Float16Lines {
  using Act = float;
  static constexpr DType kType = kFloat16;
  static constexpr int kPerLine = 2;
  static constexpr int kMaxRows = Vec::kMaxRows;

  template <int R, int C>
  static LANGPORT_INLINE void add(Vec (&sums)[R][C], const char* line, int column, const float* act) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      Vec weights[C];
      for (int c = 0; c < C; c++) weights[c] = Vec::load_f16(line + half * 64 + (column + c * kWidth) * 2);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r][c] = Vec::fma(Vec::all(act[half * R + r]), weights[c], sums[r][c]);
    }
  }
};

// `rows` rows of x as floats, [number of K][row], with zeros up to the end of the lines.
template <class Lines>
void pack_floats(const char* x, int64_t x_stride, int rows, int64_t k, int64_t lines, float* tile) {
  const size_t size = size_of(Lines::kType);
  for (int row = 0; row < rows; row++) {
    const char* source = x + static_cast<size_t>(row) * static_cast<size_t>(x_stride) * size;
    for (int64_t i = 0; i < k; i += kWidth) {
      const int n = smaller(kWidth, k - i);
      float numbers[kWidth];
      Number<Lines::kType>::load(source + static_cast<size_t>(i) * size, n).store(numbers);
      for (int j = 0; j < n; j++) tile[(i + j) * rows + row] = numbers[j];
    }
  }
  const int64_t end = lines * Lines::kPerLine;
  std::memset(tile + k * rows, 0, static_cast<size_t>((end - k) * rows) * sizeof(float));
}

template <class Lines, int C, int R>
LANGPORT_INLINE void write_sums(const PanelJob& job, int64_t column, Vec (&sums)[R][C]) {
  const size_t size = size_of(Lines::kType);
  for (int c = 0; c < C; c++) {
    const int64_t begin = column + c * kWidth;
    const int n = smaller(kWidth, job.weight->n - begin);
    if (n <= 0) return;
    const size_t offset = static_cast<size_t>(begin) * size;
    Vec bias = Vec::zero();
    if (job.bias) bias = Number<Lines::kType>::load(static_cast<const char*>(job.bias) + offset, n);
    for (int r = 0; r < R; r++) {
      char* out = static_cast<char*>(job.out) + static_cast<size_t>(r) * static_cast<size_t>(job.out_stride) * size;
      Number<Lines::kType>::store(out + offset, job.bias ? sums[r][c] + bias : sums[r][c], n);
    }
  }
}

template <class Lines, int R>
void multiply_rows(const PanelJob& job) {
  // With few rows there are registers for twice as many columns, which hides the latency of the additions.
  constexpr bool kWide = R * 2 <= Lines::kMaxRows && 2 * Vec::kColumnVecs * kWidth <= kPanelColumns;
  constexpr int C = kWide ? 2 * Vec::kColumnVecs : Vec::kColumnVecs;
  constexpr int kPasses = kPanelColumns / (C * kWidth);
  const int64_t lines = job.weight->lines;
  const char* panel = job.weight->data + static_cast<size_t>(job.panel) * job.weight->panel_bytes();
  for (int column = 0; column < kPanelColumns; column += C * kWidth) {
    Vec sums[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = Vec::zero();
    const char* line = panel;
    const auto* act = static_cast<const typename Lines::Act*>(job.tile);
    // Each pass asks memory for its share, or the first one for all where shares would be less than a line of a cache.
    const bool has_share = job.prefetch_lines >= kPasses;
    const int prefetch = has_share ? job.prefetch_lines / kPasses : column == 0 ? job.prefetch_lines : 0;
    const char* next = job.prefetch + (has_share ? column / (C * kWidth) * lines / 2 * prefetch * 64 : 0);
    for (int64_t i = 0; i < lines; i += 2) {
      Lines::add(sums, line, column, act);
      Lines::add(sums, line + kLineBytes, column, act + Lines::kPerLine * R);
      line += 2 * kLineBytes;
      act += 2 * Lines::kPerLine * R;
      if (prefetch) {
        LANGPORT_PREFETCH(next);
        if (prefetch > 1) LANGPORT_PREFETCH(next + 64);
        if (prefetch > 2) {
          LANGPORT_PREFETCH(next + 128);
          LANGPORT_PREFETCH(next + 192);
        }
        next += prefetch * 64;
      }
    }
    write_sums<Lines>(job, job.panel * kPanelColumns + column, sums);
  }
}

template <class Lines, int R = Lines::kMaxRows>
void multiply_by_rows(const PanelJob& job) {
  if (job.rows == R) {
    multiply_rows<Lines, R>(job);
  } else if constexpr (R > 1) {
    multiply_by_rows<Lines, R - 1>(job);
  }
}

// ---- Row by row ----

LANGPORT_INLINE Vec silu(Vec x) { return x / (Vec::all(1.0f) + exponential(Vec::zero() - x)); }

// What the function makes of gate, times up.
template <DType kType, Vec (*kFunction)(Vec)>
void gate_rows(const GatedJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(kType);
  for (int64_t row = first_row; row < first_row + rows; row++) {
    const char* gate = job.gate + static_cast<size_t>(row * job.stride) * size;
    const char* up = job.up + static_cast<size_t>(row * job.stride) * size;
    char* out = job.out + static_cast<size_t>(row * job.columns) * size;
    for (int64_t i = 0; i < job.columns; i += kWidth) {
      const int n = smaller(kWidth, job.columns - i);
      const size_t offset = static_cast<size_t>(i) * size;
      const Vec gated = kFunction(Number<kType>::load(gate + offset, n));
      Number<kType>::store(out + offset, gated * Number<kType>::load(up + offset, n), n);
    }
  }
}

template <Vec (*kFunction)(Vec)>
void gate_rows_by_type(const GatedJob& job, int64_t first_row, int64_t rows) {
  switch (job.dtype) {
    case kFloat32: return gate_rows<kFloat32, kFunction>(job, first_row, rows);
    case kBFloat16: return gate_rows<kBFloat16, kFunction>(job, first_row, rows);
    case kFloat16: return gate_rows<kFloat16, kFunction>(job, first_row, rows);
  }
}

void silu_mul(const GatedJob& job, int64_t first_row, int64_t rows) { gate_rows_by_type<silu>(job, first_row, rows); }

template <DType kType>
void rms_norm_row(const NormJob& job, const char* x, char* out) {
  const size_t size = size_of(kType);
  Vec squares = Vec::zero();
  for (int64_t i = 0; i < job.columns; i += kWidth) {
    const Vec numbers = Number<kType>::load(x + static_cast<size_t>(i) * size, smaller(kWidth, job.columns - i));
    squares = Vec::fma(numbers, numbers, squares);
  }
  const Vec factor = Vec::all(1.0f / std::sqrt(Vec::sum(squares) / static_cast<float>(job.columns) + job.epsilon));
  for (int64_t i = 0; i < job.columns; i += kWidth) {
    const int n = smaller(kWidth, job.columns - i);
    const size_t offset = static_cast<size_t>(i) * size;
    Vec weight = Number<kType>::load(job.weight + offset, n);
    if (job.offset != 0.0f) weight = weight + Vec::all(job.offset);
    Number<kType>::store(out + offset, Number<kType>::load(x + offset, n) * factor * weight, n);
  }
}

void rms_norm(const NormJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(job.dtype);
  for (int64_t row = first_row; row < first_row + rows; row++) {
    const int64_t at = row / job.heads * job.token_stride + row % job.heads * job.head_stride;
    const char* x = job.x + static_cast<size_t>(at) * size;
    char* out = job.out + static_cast<size_t>(row * job.columns) * size;
    switch (job.dtype) {
      case kFloat32: rms_norm_row<kFloat32>(job, x, out); break;
      case kBFloat16: rms_norm_row<kBFloat16>(job, x, out); break;
      case kFloat16: rms_norm_row<kFloat16>(job, x, out); break;
    }
  }
}

// ---- By type ----

int max_rows(DType dtype) { return dtype == kBFloat16 ? BFloat16Lines::kMaxRows : Vec::kMaxRows; }

size_t tile_bytes(DType dtype, int64_t lines, int rows) {
  return static_cast<size_t>(lines * (dtype == kFloat32 ? 1 : 2) * rows) * sizeof(float);
}

void pack_rows(DType dtype, const void* x, int64_t x_stride, int rows, int64_t k, int64_t lines, void* tile) {
  const char* source = static_cast<const char*>(x);
  float* target = static_cast<float*>(tile);
  switch (dtype) {
    case kFloat32: return pack_floats<Float32Lines>(source, x_stride, rows, k, lines, target);
    case kBFloat16: return pack_floats<BFloat16Lines>(source, x_stride, rows, k, lines, target);
    case kFloat16: return pack_floats<Float16Lines>(source, x_stride, rows, k, lines, target);
  }
}

void multiply_panel(const PanelJob& job) {
  switch (job.weight->dtype) {
    case kFloat32: return multiply_by_rows<Float32Lines>(job);
    case kBFloat16: return multiply_by_rows<BFloat16Lines>(job);
    case kFloat16: return multiply_by_rows<Float16Lines>(job);
  }
}

}  // namespace
