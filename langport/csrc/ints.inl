// The kernels of ints.h, written once over Vec and IntVec; included after kernels.inl,
// ceilings.inl and the level's own int_*.h.
#pragma once

#include "ints.h"

// Tells the compiler that the variable is read and written here, so that it does not keep it in registers.
#if defined(__GNUC__)
#define LANGPORT_IN_MEMORY(x) asm volatile("" : "+m"(x))
#else
#define LANGPORT_IN_MEMORY(x) ((void)(x))
#endif

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

// The block's numbers as 8-bit ones, `out` having room for whole vectors of them. Returns their scale; the sum of the
// 8-bit numbers goes to `sum`. A row with infinities or what is no number gets a scale that is no number.
template <DType kType>
float quantize_block(const char* x, int64_t numbers, int8_t* out, int32_t& sum) {
  constexpr float kSmallest = 1e-30f;
  const size_t size = size_of(kType);
  Vec largest = Vec::zero(), broken = Vec::zero();
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const Vec v = Number<kType>::load(x + static_cast<size_t>(i) * size, smaller(kWidth, numbers - i));
    largest = Vec::max(largest, Vec::max(v, Vec::zero() - v));
    broken = broken + v * Vec::zero();
  }
  const float top = Vec::largest(largest), flag = Vec::sum(broken);
  if (!(top > kSmallest) || flag != 0) {
    std::memset(out, 0, static_cast<size_t>(numbers));
    sum = 0;
    return flag;
  }
  const Vec inverse = Vec::all(127.0f / top);
  IntVec sums = IntVec::all(0);
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const Vec v = Number<kType>::load(x + static_cast<size_t>(i) * size, smaller(kWidth, numbers - i));
    const IntVec nearest = IntVec::nearest(v * inverse);
    nearest.store_bytes(out + i);
    sums = sums + nearest;
  }
  sum = sums.total();
  return top / 127.0f;
}

// A group of a weight's numbers, as layers/linear.py's `_rounded` has them, and its scale.
template <DType kType>
void quantize_group(const QuantizeJob& job, const char* x, int64_t numbers, int8_t* out, char* scale) {
  const size_t size = size_of(kType);
  const auto load = [&](int64_t i) {
    return Number<kType>::load(x + static_cast<size_t>(i) * size, smaller(kWidth, numbers - i));
  };
  Vec top = Vec::zero(), bottom = Vec::zero(), broken = Vec::zero();
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const Vec v = load(i);
    top = Vec::max(top, v);
    bottom = Vec::min(bottom, v);
    broken = broken + v * Vec::zero();
  }
  const float highest = Vec::largest(top), lowest = -Vec::largest(Vec::zero() - bottom), flag = Vec::sum(broken);
  const float largest = highest > -lowest ? highest : lowest;
  const float exact = flag != 0 ? flag : job.bits == 8 ? std::fabs(largest) / 127.0f : largest / -8.0f;
  store_number(job.scale_dtype, scale, Vec::all(exact), 1);
  if (flag != 0) {
    std::memset(out, 0, static_cast<size_t>(numbers));
    return;
  }
  const float rounded = Vec::sum(load_number(job.scale_dtype, scale, 1));
  const Vec divisor = Vec::all(rounded == 0 ? 1.0f : rounded);
  const float limit = job.bits == 8 ? 128.0f : 8.0f;
  for (int64_t i = 0; i < numbers; i += kWidth) {
    const Vec inside = Vec::max(Vec::all(-limit), Vec::min(Vec::all(limit - 1), load(i) / divisor));
    const IntVec nearest = IntVec::nearest(inside);
    if (numbers - i >= kWidth) {
      nearest.store_bytes(out + i);
    } else {
      int8_t last[kWidth];
      nearest.store_bytes(last);
      std::memcpy(out + i, last, static_cast<size_t>(numbers - i));
    }
  }
}

void quantize_rows(const QuantizeJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(job.dtype), scale_size = size_of(job.scale_dtype);
  const int64_t groups = job.k / job.group;
  for (int64_t i = first_row * groups; i < (first_row + rows) * groups; i++) {
    const char* x = job.weight + static_cast<size_t>(i * job.group) * size;
    int8_t* out = job.values + i * job.group;
    char* scale = job.scales + static_cast<size_t>(i) * scale_size;
    switch (job.dtype) {
      case kFloat32: quantize_group<kFloat32>(job, x, job.group, out, scale); break;
      case kBFloat16: quantize_group<kBFloat16>(job, x, job.group, out, scale); break;
      case kFloat16: quantize_group<kFloat16>(job, x, job.group, out, scale); break;
    }
  }
}

// Whether rows have 16 bits for a number, so that it need not be widened for every panel: levels that have no products
// of bytes say so, for weights of 8 bits. A word of four numbers is then two: the first and third, the second and fourth.
constexpr bool is_wide(int bits) { return IntVec::kHasWideRows && bits == 8; }

int64_t tile_words(const PackedInts& weight) { return weight.words() * (is_wide(weight.bits) ? 2 : 1); }

size_t int_row_bytes(const PackedInts& weight) { return static_cast<size_t>(tile_words(weight) + 2 * weight.blocks) * 4; }

// A tile is [word of K][row], then [block][row] scales, then [block][row] starts: what the products begin at, so that
// the offset of the stored weights adds nothing.
template <DType kType>
void pack_int_rows_of(const PackedInts& weight, const void* x, int64_t x_stride, int rows, void* tile) {
  auto* words = static_cast<int32_t*>(tile);
  const int64_t num_words = tile_words(weight);
  auto* scales = reinterpret_cast<float*>(words + num_words * rows);
  auto* starts = words + (num_words + weight.blocks) * rows;
  const bool has_wide_rows = is_wide(weight.bits);
  const int32_t offset = weight.bits == 8 ? 128 : 8;
  const size_t size = size_of(kType);
  alignas(64) int8_t numbers[kIntLargestBlock + kWidth];
  for (int row = 0; row < rows; row++) {
    const char* source = static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * size;
    int32_t* target = words + row * (has_wide_rows ? 2 : 1);
    for (int64_t index = 0; index < weight.blocks; index++) {
      const int64_t first = index * weight.block, left = weight.k - first;
      const int64_t count = left < weight.block ? left : weight.block;
      const int64_t block_words = weight.lines_of(index) * weight.per_line() / 4;
      int32_t sum;
      scales[index * rows + row] = quantize_block<kType>(source + static_cast<size_t>(first) * size, count, numbers, sum);
      starts[index * rows + row] = -offset * sum;
      std::memset(numbers + count, 0, static_cast<size_t>(block_words * 4 - count));
      if (has_wide_rows) {
        for (int64_t i = 0; i < block_words; i++, target += 2 * rows) {
          const int8_t* four = numbers + i * 4;
          const int16_t wide[4] = {four[0], four[2], four[1], four[3]};
          std::memcpy(target, wide, sizeof(wide));
        }
      } else {
        for (int64_t i = 0; i < block_words; i++, target += rows) std::memcpy(target, numbers + i * 4, 4);
      }
    }
  }
}

void pack_int_rows(const PackedInts& weight, const void* x, int64_t x_stride, int rows, void* tile) {
  switch (weight.dtype) {
    case kFloat32: return pack_int_rows_of<kFloat32>(weight, x, x_stride, rows, tile);
    case kBFloat16: return pack_int_rows_of<kBFloat16>(weight, x, x_stride, rows, tile);
    case kFloat16: return pack_int_rows_of<kFloat16>(weight, x, x_stride, rows, tile);
  }
}

// R rows times C vectors of columns.
template <class V, int R, int C>
LANGPORT_INLINE void add_products(V (&sums)[R][C], const V (&weights)[C], const int32_t* words) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    const typename V::Numbers numbers(words[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sums[r][c] = V::dot(sums[r][c], weights[c], numbers);
  }
}

template <int R, int C>
LANGPORT_INLINE void set_zero(IntVec (&sums)[R][C]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sums[r][c] = IntVec::all(0);
}

// What is read next; `bytes` of it for every line.
struct Prefetch {
  const char* next;
  int bytes;
  LANGPORT_INLINE void line() {
    if (!bytes) return;
    LANGPORT_PREFETCH(next);
    if (bytes > 64) LANGPORT_PREFETCH(next + 64);
    next += bytes;
  }
};

// The sums of a block's products, from its lines.
template <int kBits, class V, int R, int C>
LANGPORT_INLINE void add_lines(V (&sums)[R][C], const char* line, int64_t lines, const int32_t* words, Prefetch prefetch) {
  // With few rows a second set of sums halves the chain of additions that a line has to wait for.
  constexpr bool kTwoSets = kBits == 4 && R <= 4 && R * C * 2 <= V::kMaxRows * C;
  V others[R][C];
  if constexpr (kTwoSets) set_zero(others);
  for (int64_t i = 0; i < lines; i++) {
    V weights[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      weights[c] = V::load(line + c * kWidth * 4);
      if constexpr (kBits == 4) weights[c] = weights[c].low_halves();
    }
    add_products(sums, weights, words);
    words += R;
    if constexpr (kBits == 4) {
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) weights[c] = V::load(line + c * kWidth * 4).high_halves();
      add_products(kTwoSets ? others : sums, weights, words);
      words += R;
    }
    line += kLineBytes;
    prefetch.line();
  }
  if constexpr (kTwoSets)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = sums[r][c] + others[r][c];
}

// R rows, one of a word's two halves, times C vectors of 16-bit weights.
template <class V, int R, int C>
LANGPORT_INLINE void add_wide_products(V (&sums)[R][C], const V (&weights)[C], const int32_t* words) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    const V numbers = V::all(words[2 * r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sums[r][c] = V::dot_wide(sums[r][c], weights[c], numbers);
  }
}

// The same as add_lines<8> with wide rows. Half of a line's bytes at a time: registers hold no more beside the sums.
template <class V, int R, int C>
LANGPORT_INLINE void add_wide_lines(
    V (&sums)[R][C], const char* line, int64_t lines, const int32_t* words, Prefetch prefetch) {
  for (int64_t i = 0; i < lines; i++) {
    V weights[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) weights[c] = V::load(line + c * kWidth * 4).even_bytes();
    add_wide_products(sums, weights, words);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) weights[c] = V::load(line + c * kWidth * 4).odd_bytes();
    add_wide_products(sums, weights, words + 1);
    words += 2 * R;
    line += kLineBytes;
    prefetch.line();
  }
}

// R rows times the halves of C vectors, in sums of 16 bits, at levels that have them.
template <class V, int R, int C>
LANGPORT_INLINE void add_short_products(V (&shorts)[R][C], const V (&weights)[C], const int32_t* words) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    const V numbers = V::all(words[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) shorts[r][c] = V::dot_short(shorts[r][c], weights[c], numbers);
  }
}

// The same as add_lines<4>, at levels that add up products of few lines in 16 bits, which is as exact.
template <class V, int R, int C>
LANGPORT_INLINE void add_short_lines(
    V (&sums)[R][C], const char* line, int64_t lines, const int32_t* words, Prefetch prefetch) {
  for (int64_t first = 0; first < lines; first += V::kShortLines) {
    const int64_t end = first + V::kShortLines < lines ? first + V::kShortLines : lines;
    V shorts[R][C];
    set_zero(shorts);
    for (int64_t i = first; i < end; i++) {
      V weights[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) weights[c] = V::load(line + c * kWidth * 4).low_halves();
      add_short_products(shorts, weights, words);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) weights[c] = V::load(line + c * kWidth * 4).high_halves();
      add_short_products(shorts, weights, words + R);
      words += 2 * R;
      line += kLineBytes;
      prefetch.line();
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = sums[r][c] + shorts[r][c].pair_sums();
  }
}

template <int kBits, bool kGrouped, int R>
void multiply_int_rows(const IntPanelJob& job) {
  // With few rows there are registers for twice as many columns.
  constexpr bool kWide = R * 2 <= IntVec::kMaxRows && 2 * IntVec::kColumnVecs * kWidth <= kPanelColumns;
  constexpr int C = kWide ? 2 * IntVec::kColumnVecs : IntVec::kColumnVecs;
  constexpr int kPasses = kPanelColumns / (C * kWidth);
  const PackedInts& weight = *job.weight;
  const char* panel = weight.data + static_cast<size_t>(job.panel) * weight.panel_bytes();
  const int64_t num_words = tile_words(weight);
  const auto* all_words = static_cast<const int32_t*>(job.tile);
  const auto* scales = reinterpret_cast<const float*>(all_words + num_words * R);
  const auto* starts = all_words + (num_words + weight.blocks) * R;
  const size_t size = size_of(weight.dtype);
  for (int column = 0; column < kPanelColumns; column += C * kWidth) {
    // Floats are kept in memory between blocks: registers hold the block's sums.
    alignas(64) float totals[R][C][kWidth] = {};
    const char* line = panel;
    const int32_t* words = all_words;
    // Each pass asks memory for its share, or the first one for all where shares would be less than a line of a cache.
    const bool has_share = job.prefetch_bytes >= 64 * kPasses;
    const int prefetch = has_share ? job.prefetch_bytes / kPasses : column == 0 ? job.prefetch_bytes : 0;
    const char* next = job.prefetch + (has_share ? column / (C * kWidth) * (weight.panel_bytes() / kPasses) : 0);
    Vec row_scales[C];  // of the weights, for the block or for all of K
    for (int64_t index = 0; index < weight.blocks; index++) {
      const int64_t lines = weight.lines_of(index);
      IntVec sums[R][C];
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sums[r][c] = IntVec::all(starts[index * R + r]);
      const Prefetch ahead{next, prefetch};
      if constexpr (kBits == 4 && IntVec::kShortLines > 0) {
        add_short_lines(sums, line + column * 4, lines, words, ahead);
      } else if constexpr (is_wide(kBits)) {
        add_wide_lines(sums, line + column * 4, lines, words, ahead);
      } else {
        add_lines<kBits>(sums, line + column * 4, lines, words, ahead);
      }
      line += lines * kLineBytes;
      words += lines * R * (kBits == 4 || is_wide(kBits) ? 2 : 1);
      next += lines * prefetch;
      if (kGrouped || index + 1 == weight.blocks) {
        for (int c = 0; c < C; c++)
          row_scales[c] = load_number(weight.dtype, line + static_cast<size_t>(column + c * kWidth) * size, kWidth);
        line += weight.scale_bytes();
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const Vec scale = Vec::all(scales[index * R + r]);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
          const Vec factor = kGrouped ? scale * row_scales[c] : scale;
          (Vec::load(totals[r][c]) + sums[r][c].floats() * factor).store(totals[r][c]);
        }
      }
      LANGPORT_IN_MEMORY(totals);
    }
    for (int c = 0; c < C; c++) {
      const int64_t begin = job.panel * kPanelColumns + column + c * kWidth;
      const int n = smaller(kWidth, weight.n - begin);
      if (n <= 0) break;
      Vec bias = Vec::zero();
      if (job.bias) bias = load_number(weight.dtype, static_cast<const char*>(job.bias) + static_cast<size_t>(begin) * size, n);
      for (int r = 0; r < R; r++) {
        Vec sum = Vec::load(totals[r][c]);
        if (!kGrouped) sum = sum * row_scales[c];
        if (job.bias) sum = sum + bias;
        char* out = static_cast<char*>(job.out) + static_cast<size_t>(r * job.out_stride + begin) * size;
        store_number(weight.dtype, out, sum, n);
      }
    }
  }
}

template <int kBits, bool kGrouped, int R = IntVec::kMaxRows>
void multiply_ints_by_rows(const IntPanelJob& job) {
  if (job.rows == R) {
    multiply_int_rows<kBits, kGrouped, R>(job);
  } else if constexpr (R > 1) {
    multiply_ints_by_rows<kBits, kGrouped, R - 1>(job);
  }
}

void multiply_int_panel(const IntPanelJob& job) {
  const PackedInts& weight = *job.weight;
  if (weight.bits == 8) {
    weight.is_grouped ? multiply_ints_by_rows<8, true>(job) : multiply_ints_by_rows<8, false>(job);
  } else {
    weight.is_grouped ? multiply_ints_by_rows<4, true>(job) : multiply_ints_by_rows<4, false>(job);
  }
}

// With weights of 4 bits where those are faster.
template <class V>
double multiply_int_adds(int64_t rounds) {
  constexpr int R = V::kMaxRows, C = V::kColumnVecs;
  constexpr int kOperations = 2 * 4;  // of a lane: multiplications and additions
  V sums[R][C], weights[C];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sums[r][c] = V::all(r);
  alignas(64) char bytes[C * kWidth * 4] = {};
  LANGPORT_IN_MEMORY(bytes);
  for (int c = 0; c < C; c++) weights[c] = V::load(bytes + c * kWidth * 4);
  int32_t words[R] = {};
  for (int64_t round = 0; round < rounds; round++) {
    if constexpr (V::kShortLines > 0) {
      add_short_products(sums, weights, words);
    } else {
      add_products(sums, weights, words);
    }
    LANGPORT_IN_MEMORY(words);
  }
  int32_t total = 0;
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) total += sums[r][c].total();
  ceilings_sink = static_cast<float>(total);
  return static_cast<double>(rounds) * R * C * kWidth * kOperations;
}

constexpr IntKernels int_kernels = {
    IntVec::kMaxRows, int_row_bytes, pack_int_rows, multiply_int_panel, quantize_rows,
    multiply_int_adds<IntVec>};

}  // namespace
