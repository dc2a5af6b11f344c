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
  static constexpr int kMaxRows = Vec::kMaxRows;

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
    const char* next = job.prefetch;
    const int prefetch = column == 0 ? job.prefetch_lines : 0;
    for (int64_t i = 0; i < lines; i += 2) {
      Lines::add(sums, line, column, act);
      Lines::add(sums, line + kLineBytes, column, act + Lines::kPerLine * R);
      line += 2 * kLineBytes;
      act += 2 * Lines::kPerLine * R;
      if (prefetch) {
        LANGPORT_PREFETCH(next);
        LANGPORT_PREFETCH(next + 64);
        if (prefetch == 4) {
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

// ---- Attention ----

// How keys and values of each type are read: in chunks of kChunk numbers that become kParts vectors. Queries and results
// are kept as floats in that same order. dot() adds the products of one chunk to 16, 8 or 4 partial sums.
template <DType kType>
struct PlainCache {
  static constexpr int kParts = 1;
  static constexpr int kChunk = kWidth;
  static constexpr DType kNumber = kType;
  struct Query {
    Vec only;
  };

  static void values(const char* p, int n, Vec (&parts)[1]) { parts[0] = Number<kType>::load(p, n); }
  static void values(const char* p, Vec (&parts)[1]) {
    if constexpr (kType == kFloat32) {
      parts[0] = Vec::load(reinterpret_cast<const float*>(p));
    } else {
      parts[0] = Vec::load_f16(p);
    }
  }
  static void read_query(const char* p, int n, float* q) { Number<kType>::load(p, n).store(q); }
  static Query query(const float* q) { return {Vec::load(q)}; }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, Vec sums) {
    Vec parts[1];
    values(key, parts);
    return Vec::fma(q.only, parts[0], sums);
  }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, int n, Vec sums) {
    Vec parts[1];
    values(key, n, parts);
    return Vec::fma(q.only, parts[0], sums);
  }
};

struct BFloat16Cache {
  static constexpr int kParts = 2;
  static constexpr int kChunk = 2 * kWidth;
  static constexpr DType kNumber = kBFloat16;
  struct Query {
    Vec first, second;
  };

  static void values(const char* p, int n, Vec (&parts)[2]) { Vec::load_bf16_pairs(p, n / 2, parts[0], parts[1]); }
  static void values(const char* p, Vec (&parts)[2]) { Vec::load_bf16_pairs(p, parts[0], parts[1]); }
  static void read_query(const char* p, int n, float* q) {
    Vec parts[2];
    values(p, n, parts);
    parts[0].store(q);
    parts[1].store(q + kWidth);
  }
  static Query query(const float* q) { return {Vec::load(q), Vec::load(q + kWidth)}; }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, Vec sums) {
    Vec parts[2];
    values(key, parts);
    return Vec::fma(q.second, parts[1], Vec::fma(q.first, parts[0], sums));
  }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, int n, Vec sums) {
    Vec parts[2];
    values(key, n, parts);
    return Vec::fma(q.second, parts[1], Vec::fma(q.first, parts[0], sums));
  }
};

// Scores of the keys [begin, end) of a tile, before scaling.
template <class Cache>
void score_keys(const float* query, int64_t head_dim, const char* const* keys, int begin, int end, float* scores) {
  const int64_t whole = head_dim / Cache::kChunk;
  const int rest = static_cast<int>(head_dim % Cache::kChunk);
  const size_t chunk_bytes = Cache::kChunk * size_of(Cache::kNumber);
  const size_t rest_at = static_cast<size_t>(whole) * chunk_bytes;
  int t = begin;
  for (; t + kWidth <= end; t += kWidth) {
    Vec sums[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) sums[i] = Vec::zero();
    for (int64_t chunk = 0; chunk < whole; chunk++) {
      const auto q = Cache::query(query + chunk * Cache::kChunk);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; i++)
        sums[i] = Cache::dot(q, keys[t + i] + static_cast<size_t>(chunk) * chunk_bytes, sums[i]);
    }
    if (rest) {
      const auto q = Cache::query(query + whole * Cache::kChunk);
      for (int i = 0; i < kWidth; i++) sums[i] = Cache::dot(q, keys[t + i] + rest_at, rest, sums[i]);
    }
    Vec::sum_each(sums).store(scores + t);
  }
  for (; t < end; t++) {
    Vec sums = Vec::zero();
    for (int64_t chunk = 0; chunk < whole; chunk++)
      sums = Cache::dot(Cache::query(query + chunk * Cache::kChunk), keys[t] + static_cast<size_t>(chunk) * chunk_bytes, sums);
    if (rest) sums = Cache::dot(Cache::query(query + whole * Cache::kChunk), keys[t] + rest_at, rest, sums);
    scores[t] = Vec::sum(sums);
  }
}

// Adds the values [begin, end) of a tile, weighted, to the results of R rows: G chunks from `chunk` on.
template <class Cache, int R, int G>
LANGPORT_INLINE void add_chunks(
    const float* weights, const char* const* values, int begin, int end, int64_t chunk, int rest, float* result,
    int64_t result_stride) {
  constexpr int P = Cache::kParts;
  const size_t offset = static_cast<size_t>(chunk) * Cache::kChunk * size_of(Cache::kNumber);
  Vec sums[R][G][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 2
      for (int p = 0; p < P; p++)
        sums[r][g][p] = Vec::load(result + r * result_stride + (chunk + g) * Cache::kChunk + p * kWidth);
  for (int t = begin; t < end; t++) {
    Vec parts[G][P];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      const char* value = values[t] + offset + static_cast<size_t>(g) * Cache::kChunk * size_of(Cache::kNumber);
      if (G == 1 && rest) {
        Cache::values(value, rest, parts[g]);
      } else {
        Cache::values(value, parts[g]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Vec weight = Vec::all(weights[r * kContextTile + t]);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) sums[r][g][p] = Vec::fma(weight, parts[g][p], sums[r][g][p]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 2
      for (int p = 0; p < P; p++)
        sums[r][g][p].store(result + r * result_stride + (chunk + g) * Cache::kChunk + p * kWidth);
}

template <class Cache, int R>
void add_values(
    const float* weights, const char* const* values, int begin, int end, int64_t head_dim, float* result,
    int64_t result_stride) {
  if (begin >= end) return;
  constexpr int kGroup = 4 / Cache::kParts;
  const int64_t whole = head_dim / Cache::kChunk;
  const int rest = static_cast<int>(head_dim % Cache::kChunk);
  int64_t chunk = 0;
  for (; chunk + kGroup <= whole; chunk += kGroup)
    add_chunks<Cache, R, kGroup>(weights, values, begin, end, chunk, 0, result, result_stride);
  for (; chunk < whole; chunk++)
    add_chunks<Cache, R, 1>(weights, values, begin, end, chunk, 0, result, result_stride);
  if (rest) add_chunks<Cache, R, 1>(weights, values, begin, end, chunk, rest, result, result_stride);
}

struct Range {
  int begin, end;
};

// Rows side by side read their common values together; what only some of them see, each reads alone, before or after.
template <class Cache>
void add_values_of_rows(
    const float* weights, const char* const* values, const Range* ranges, int64_t rows, int64_t head_dim,
    float* result, int64_t stride) {
  constexpr int R = Vec::kValueRows;
  for (int64_t row = 0; row < rows; row += R) {
    const int together = smaller(R, rows - row);
    const float* w = weights + row * kContextTile;
    float* o = result + row * stride;
    Range common = ranges[row];
    for (int r = 1; r < together; r++) {
      const Range& other = ranges[row + r];
      common.begin = common.begin > other.begin ? common.begin : other.begin;
      common.end = common.end < other.end ? common.end : other.end;
    }
    const bool is_shared = together == R && common.begin < common.end;
    for (int r = 0; r < together; r++) {
      const Range& range = ranges[row + r];
      const int end = is_shared ? common.begin : range.end;
      add_values<Cache, 1>(w + r * kContextTile, values, range.begin, end, head_dim, o + r * stride, stride);
    }
    if (!is_shared) continue;
    add_values<Cache, R>(w, values, common.begin, common.end, head_dim, o, stride);
    for (int r = 0; r < R; r++)
      add_values<Cache, 1>(
          w + r * kContextTile, values, common.end, ranges[row + r].end, head_dim, o + r * stride, stride);
  }
}

// Turns a tile's scores into weights under the largest score so far, and rescales what was added under another.
// `biases` are the tile's, or null.
void weigh(
    const AttentionJob& job, Range range, const float* biases, float* scores, float* result, int64_t size, float& largest,
    float& sum) {
  const float lowest = -INFINITY;
  for (int t = 0; t < range.begin; t++) scores[t] = lowest;
  for (int t = range.end; t < kContextTile; t++) scores[t] = lowest;
  Vec most = Vec::all(lowest);
  for (int t = 0; t < kContextTile; t += kWidth) {
    Vec s = Vec::load(scores + t) * Vec::all(job.scale);
    if (job.softcap != 0.0f) {
      s = hyperbolic_tangent(s / Vec::all(job.softcap)) * Vec::all(job.softcap);
      s.store(scores + t);
      for (int i = t; i < t + kWidth; i++)
        if (i < range.begin || i >= range.end) scores[i] = lowest;
      s = Vec::load(scores + t);
    }
    if (biases != nullptr) s = s + Vec::load(biases + t);
    s.store(scores + t);
    most = Vec::max(most, s);
  }
  const float here = Vec::largest(most);
  const float now = largest > here ? largest : here;
  float before[kWidth];
  Vec::all(largest - now).store(before);  // minus infinity in the first tile
  exponential(Vec::load(before)).store(before);
  Vec total = Vec::zero();
  for (int t = 0; t < kContextTile; t += kWidth) {
    const Vec weight = exponential(Vec::load(scores + t) - Vec::all(now));
    weight.store(scores + t);
    total = total + weight;
  }
  sum = sum * before[0] + Vec::sum(total);
  if (now != largest)
    for (int64_t i = 0; i < size; i += kWidth) (Vec::load(result + i) * Vec::all(before[0])).store(result + i);
  largest = now;
}

template <class Cache>
void write_result(const float* result, float sum, int64_t head_dim, char* out) {
  const Vec divisor = Vec::all(sum);
  for (int64_t i = 0; i < head_dim; i += Cache::kChunk) {
    float numbers[Cache::kChunk];
    for (int p = 0; p < Cache::kParts; p++) {
      float part[kWidth];
      (Vec::load(result + i + p * kWidth) / divisor).store(part);
      for (int j = 0; j < kWidth; j++) numbers[j * Cache::kParts + p] = part[j];
    }
    for (int64_t j = i; j < i + Cache::kChunk && j < head_dim; j += kWidth)
      Number<Cache::kNumber>::store(
          out + static_cast<size_t>(j) * size_of(Cache::kNumber), Vec::load(numbers + (j - i)),
          smaller(kWidth, head_dim - j));
  }
}

struct TilePointers {
  const char* keys[kContextTile];
  const char* values[kContextTile];
};

// Where the keys and values of a tile lie, and a word to the cache that they are needed next.
inline void find_tile(
    const AttentionJob& job, const QueryRun& run, int64_t kv_head, int64_t tile, int64_t last, size_t size,
    TilePointers& pointers) {
  const size_t bytes = static_cast<size_t>(job.head_dim) * size;
  for (int t = 0; t < kContextTile && tile + t < last; t++) {
    const int64_t slot = run.table[(tile + t) / job.block_size] * job.block_size + (tile + t) % job.block_size;
    const size_t offset = static_cast<size_t>(slot * job.kv_heads + kv_head) * bytes;
    pointers.keys[t] = job.keys + offset;
    pointers.values[t] = job.values + offset;
    for (size_t byte = 0; byte < bytes; byte += 64) {
      LANGPORT_PREFETCH(pointers.keys[t] + byte);
      LANGPORT_PREFETCH(pointers.values[t] + byte);
    }
  }
}

// Softmax attention of a run of queries with the heads that share one kv head, over tiles of the context in order. Tiles
// are counted from the context's beginning, so a query is computed the same way however its prompt was cut.
// Source: online softmax, Milakov and Gimelshein 2018.
template <class Cache>
void attend_cache(const AttentionJob& job, const QueryRun& run, int64_t kv_head, float* scratch) {
  const int64_t fold = job.heads / job.kv_heads, rows = run.count * fold;
  const int64_t stride = (job.head_dim + Cache::kChunk - 1) / Cache::kChunk * Cache::kChunk;
  const size_t size = size_of(Cache::kNumber);
  float* queries = scratch;
  float* results = queries + rows * stride;
  float* scores = results + rows * stride;
  float* largest = scores + rows * kContextTile;
  float* sums = largest + rows;
  auto* ranges = reinterpret_cast<Range*>(sums + rows);
  std::memset(results, 0, static_cast<size_t>(rows * stride) * sizeof(float));
  for (int64_t row = 0; row < rows; row++) {
    const int64_t head = kv_head * fold + row % fold;
    const char* source =
        job.query + static_cast<size_t>((run.row + row / fold) * job.query_token_stride + head * job.query_head_stride) * size;
    for (int64_t i = 0; i < job.head_dim; i += Cache::kChunk)
      Cache::read_query(source + static_cast<size_t>(i) * size, smaller(Cache::kChunk, job.head_dim - i), queries + row * stride + i);
    largest[row] = job.sinks ? job.sinks[head] : -INFINITY;
    sums[row] = job.sinks ? 1.0f : 0.0f;
  }
  const int64_t last = run.position + (job.is_causal ? run.count : 0);
  const int64_t first = job.window && run.position + 1 > job.window ? run.position + 1 - job.window : 0;
  TilePointers pointers[2];
  int64_t tile = first / kContextTile * kContextTile;
  find_tile(job, run, kv_head, tile, last, size, pointers[0]);
  for (int turn = 0; tile < last; tile += kContextTile, turn = 1 - turn) {
    const int tokens = smaller(kContextTile, last - tile);
    const char* const* keys = pointers[turn].keys;
    const char* const* values = pointers[turn].values;
    find_tile(job, run, kv_head, tile + kContextTile, last, size, pointers[1 - turn]);
    for (int64_t row = 0; row < rows; row++) {
      const int64_t position = run.position + row / fold;
      const int64_t end = job.is_causal ? position + 1 : run.position;
      const int64_t begin = job.window && position + 1 > job.window ? position + 1 - job.window : 0;
      Range& range = ranges[row];
      range.begin = begin > tile ? smaller(begin - tile, tokens) : 0;
      range.end = end > tile ? smaller(end - tile, tokens) : 0;
      if (range.begin >= range.end) {
        range.begin = range.end = 0;
        continue;
      }
      float* row_scores = scores + row * kContextTile;
      score_keys<Cache>(queries + row * stride, job.head_dim, keys, range.begin, range.end, row_scores);
      const float* biases = nullptr;
      if (job.biases != nullptr) {
        const int64_t column = job.own_column < 0 ? tile : tile + job.own_column - position;
        biases = job.biases + (kv_head * fold + row % fold) * job.bias_stride + column;
      }
      weigh(job, range, biases, row_scores, results + row * stride, stride, largest[row], sums[row]);
    }
    add_values_of_rows<Cache>(scores, values, ranges, rows, job.head_dim, results, stride);
  }
  for (int64_t row = 0; row < rows; row++) {
    const int64_t head = kv_head * fold + row % fold;
    char* out = job.out + static_cast<size_t>(((run.row + row / fold) * job.heads + head) * job.head_dim) * size;
    write_result<Cache>(results + row * stride, sums[row], job.head_dim, out);
  }
}

// ---- Row by row ----

template <DType kType>
void silu_mul_rows(const GatedJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(kType);
  for (int64_t row = first_row; row < first_row + rows; row++) {
    const char* gate = job.gate + static_cast<size_t>(row * job.stride) * size;
    const char* up = job.up + static_cast<size_t>(row * job.stride) * size;
    char* out = job.out + static_cast<size_t>(row * job.columns) * size;
    for (int64_t i = 0; i < job.columns; i += kWidth) {
      const int n = smaller(kWidth, job.columns - i);
      const size_t offset = static_cast<size_t>(i) * size;
      const Vec x = Number<kType>::load(gate + offset, n);
      const Vec silu = x / (Vec::all(1.0f) + exponential(Vec::zero() - x));
      Number<kType>::store(out + offset, silu * Number<kType>::load(up + offset, n), n);
    }
  }
}

void silu_mul(const GatedJob& job, int64_t first_row, int64_t rows) {
  switch (job.dtype) {
    case kFloat32: return silu_mul_rows<kFloat32>(job, first_row, rows);
    case kBFloat16: return silu_mul_rows<kBFloat16>(job, first_row, rows);
    case kFloat16: return silu_mul_rows<kFloat16>(job, first_row, rows);
  }
}

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
    const Vec weight = Number<kType>::load(job.weight + offset, n);
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

int max_rows(DType) { return Vec::kMaxRows; }

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

void attend(const AttentionJob& job, const QueryRun& run, int64_t kv_head, float* scratch) {
  switch (job.dtype) {
    case kFloat32: return attend_cache<PlainCache<kFloat32>>(job, run, kv_head, scratch);
    case kBFloat16: return attend_cache<BFloat16Cache>(job, run, kv_head, scratch);
    case kFloat16: return attend_cache<PlainCache<kFloat16>>(job, run, kv_head, scratch);
  }
}

}  // namespace
