// Products of many rows with packed weights. Included after kernels.inl.
//
// K is gone through in slices. The numbers of a slice that some columns need become floats once, in a piece of memory
// that stays in the nearest cache while all rows are multiplied with them; the rows' own numbers of the slice stay in
// the next one. Between two slices the sums lie in memory, as floats. So every element is added up in the same order as
// by multiply_panel. Source: Goto and van de Geijn 2008, section 4.
#pragma once

#include "bulk.h"

#if defined(__GNUC__)
#define LANGPORT_PREFETCH_NEAR(p) __builtin_prefetch((p), 0, 3)
#else
#define LANGPORT_PREFETCH_NEAR(p) ((void)(p))
#endif

namespace {

constexpr int kBulkVecs = Vec::kColumnVecs;
constexpr int kBulkColumns = kBulkVecs * kWidth;  // at once
static_assert(kPanelColumns % kBulkColumns == 0, "columns at once share a panel");

// Numbers of K in a slice, at most.
constexpr int64_t kSlice = kBulkWeights / kBulkColumns;

constexpr int kRowsAhead = 24;  // numbers of K for which rows are asked for before they are needed

// ---- Weights as floats ----

// The numbers of a panel's lines, from `column` on, as [number of K][column].
template <DType kType>
void widen_lines(const char* line, int64_t lines, int column, float* target) {
  for (int64_t i = 0; i < lines; i++, line += kLineBytes) {
    for (int c = 0; c < kBulkVecs; c++) {
      const int first = column + c * kWidth;
      if constexpr (kType == kFloat32) {
        Vec::load(reinterpret_cast<const float*>(line) + first).store(target + c * kWidth);
      } else if constexpr (kType == kBFloat16) {
        Vec even, odd;
        Vec::load_bf16_pairs(line + first * 4, even, odd);
        even.store(target + c * kWidth);
        odd.store(target + kBulkColumns + c * kWidth);
      } else {
        Vec::load_f16(line + first * 2).store(target + c * kWidth);
        Vec::load_f16(line + 64 + first * 2).store(target + kBulkColumns + c * kWidth);
      }
    }
    target += kBulkColumns * (kType == kFloat32 ? 1 : 2);
  }
}

// ---- Rows as floats ----

template <DType kType>
void pack_bulk_rows_of(const PackedWeight& weight, const char* x, int64_t x_stride, int rows, float* tile) {
  static_assert(Vec::kBulkRows <= kWidth, "a number of all rows fits into a vector");
  constexpr size_t kSize = kType == kFloat32 ? 4 : 2;
  const int64_t k = weight.k, numbers = bulk_numbers(weight), last = numbers * rows - kWidth;
  for (int64_t i = 0; i < k; i += kWidth) {
    const int n = smaller(kWidth, k - i);
    Vec block[kWidth];
    for (int row = 0; row < kWidth; row++) {
      block[row] = Vec::zero();
      if (row < rows)
        block[row] = Number<kType>::load(x + static_cast<size_t>(row * x_stride + i) * kSize, n);
    }
    Vec::transpose(block);
    // A vector reaches into the places of the next numbers, which are written after it.
    for (int j = 0; j < n; j++) {
      const int64_t place = (i + j) * rows;
      if (place <= last) {
        block[j].store(tile + place);
      } else {
        block[j].store(tile + place, rows);
      }
    }
  }
  std::memset(tile + k * rows, 0, static_cast<size_t>((numbers - k) * rows) * sizeof(float));
}

void pack_bulk_rows(const PackedWeight& weight, const char* x, int64_t x_stride, int rows, float* tile) {
  switch (weight.dtype) {
    case kFloat32: return pack_bulk_rows_of<kFloat32>(weight, x, x_stride, rows, tile);
    case kBFloat16: return pack_bulk_rows_of<kBFloat16>(weight, x, x_stride, rows, tile);
    case kFloat16: return pack_bulk_rows_of<kFloat16>(weight, x, x_stride, rows, tile);
  }
}

// ---- The product ----

// Sums (R rows, kBulkColumns) over some numbers of K, of rows as pack_rows lays them, go on where they were.
template <int R>
void multiply_slice(const float* rows, const float* weights, int64_t count, bool is_first, float* sums, int64_t stride) {
  Vec here[R][kBulkVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < kBulkVecs; c++) here[r][c] = is_first ? Vec::zero() : Vec::load(sums + r * stride + c * kWidth);
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; i++, rows += R, weights += kBulkColumns) {
    LANGPORT_PREFETCH_NEAR(rows + kRowsAhead * R);
    Vec weight[kBulkVecs];
#pragma GCC unroll 4
    for (int c = 0; c < kBulkVecs; c++) weight[c] = Vec::load(weights + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Vec row = Vec::all(rows[r]);
#pragma GCC unroll 4
      for (int c = 0; c < kBulkVecs; c++) here[r][c] = Vec::fma(row, weight[c], here[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < kBulkVecs; c++) here[r][c].store(sums + r * stride + c * kWidth);
}

template <int R = Vec::kBulkRows>
void multiply_slice_by_rows(
    int num_rows, const float* rows, const float* weights, int64_t count, bool is_first, float* sums, int64_t stride) {
  if (num_rows == R) {
    multiply_slice<R>(rows, weights, count, is_first, sums, stride);
  } else if constexpr (R > 1) {
    multiply_slice_by_rows<R - 1>(num_rows, rows, weights, count, is_first, sums, stride);
  }
}

// What a row's sums become: with bias, in the weight's type.
template <DType kType>
void write_bulk_row(const BulkJob& job, const float* sums, char* out) {
  constexpr size_t kSize = kType == kFloat32 ? 4 : 2;
  const int64_t first = job.first_panel * kPanelColumns;
  for (int64_t i = 0; i < job.columns(); i += kWidth) {
    const int n = smaller(kWidth, job.columns() - i);
    const auto offset = static_cast<size_t>(first + i) * kSize;
    Vec sum = Vec::load(sums + i);
    if (job.bias != nullptr) sum = sum + Number<kType>::load(static_cast<const char*>(job.bias) + offset, n);
    Number<kType>::store(out + offset, sum, n);
  }
}

template <DType kType>
void multiply_bulk_of(const BulkJob& job) {
  constexpr int64_t kPerLine = kType == kFloat32 ? 1 : 2;
  const PackedWeight& weight = *job.weight;
  const int64_t numbers = bulk_numbers(weight);
  const int64_t slices = (numbers + kSlice - 1) / kSlice;
  float* weights = job.scratch;
  float* sums = weights + kBulkWeights;
  const int64_t stride = job.panels * kPanelColumns;
  for (int64_t slice = 0; slice < slices; slice++) {
    const int64_t begin = weight.lines * slice / slices, end = weight.lines * (slice + 1) / slices;
    for (int64_t column = 0; column < job.columns(); column += kBulkColumns) {
      const char* panel =
          weight.data + static_cast<size_t>(job.first_panel + column / kPanelColumns) * weight.panel_bytes();
      widen_lines<kType>(panel + begin * kLineBytes, end - begin, column % kPanelColumns, weights);
      for (int64_t tile = 0; tile < job.split.count; tile++) {
        const int64_t row = job.split.begin(tile);
        const int num_rows = job.split.size(tile);
        multiply_slice_by_rows(
            num_rows, job.tiles + row * numbers + begin * kPerLine * num_rows, weights, (end - begin) * kPerLine,
            slice == 0, sums + row * stride + column, stride);
      }
    }
  }
  for (int64_t row = 0; row < job.split.rows; row++)
    write_bulk_row<kType>(job, sums + row * stride, job.out + static_cast<size_t>(row * job.out_stride) * size_of(kType));
}

void multiply_bulk(const BulkJob& job) {
  switch (job.weight->dtype) {
    case kFloat32: return multiply_bulk_of<kFloat32>(job);
    case kBFloat16: return multiply_bulk_of<kBFloat16>(job);
    case kFloat16: return multiply_bulk_of<kFloat16>(job);
  }
}

constexpr BulkKernels bulk_kernels = {Vec::kBulkRows, pack_bulk_rows, multiply_bulk};

}  // namespace
