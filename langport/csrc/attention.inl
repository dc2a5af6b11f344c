// Softmax attention over a paged cache, a tile of the context at a time. Included after kernels.inl.
//
// A row is one query of one head. Every row is added up in one order, whatever rows are computed beside it:
//   score     each lane of a vector adds up the products of its own numbers of the head, then the lanes are halved (Vec::sum)
//   weights   under the largest score so far; what was added under another is rescaled, tile by tile
//   result    each number adds up weight times value, one step of keys after the other
// Tiles are counted from the context's beginning, and keys that a row does not see are left out of its sums or have a
// weight of exactly zero, so a row is computed the same way however its prompt was cut.
//
// Few rows read keys and values where they lie. For many the tile is first rearranged: keys so that a vector holds one
// word of as many keys as it has lanes, and the lanes of a score are vectors of many scores; values as they are multiplied.
// Source: online softmax, Milakov and Gimelshein 2018; tiles, FlashAttention, Dao et al. 2022; docs/adr/0005.
#pragma once

namespace {

// From so many rows on, rearranging a tile costs less than it saves.
constexpr int64_t kRowsWorthPacking = 10;

// What is read in place of the values that nobody sees.
alignas(64) constexpr char kNothing[64] = {};

// ---- How the numbers of a cache are multiplied ----

// Numbers are read in chunks of kChunk, which become vectors of words: kKeyParts of them in keys and queries, kValueParts
// where values are read, kStep keys' values at a time. A word is a float here, and a pair of numbers in PairCache.
// Queries and results are of the type kNumber; a number of the cache takes kBytes.
template <DType kType>
struct PlainCache {
  static constexpr DType kNumber = kType;
  static constexpr size_t kBytes = size_of(kType);
  static constexpr bool kIsScaled = false;
  static constexpr int kChunk = kWidth;
  static constexpr int kKeyParts = 1, kValueParts = 1, kStep = 1;

  static void words(const char* p, Vec (&parts)[1]) {
    if constexpr (kType == kFloat32) {
      parts[0] = Vec::load(reinterpret_cast<const float*>(p));
    } else {
      parts[0] = Vec::load_f16(p);
    }
  }
  static void words(const char* p, int n, Vec (&parts)[1]) { parts[0] = Number<kType>::load(p, n); }
  static void query(const char* p, int n, Vec (&parts)[1]) { words(p, n, parts); }
  static void step(const char* const (&values)[1], Vec (&parts)[1]) { words(values[0], parts); }
  static void step(const char* const (&values)[1], int n, Vec (&parts)[1]) { words(values[0], n, parts); }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return Vec::fma(a, b, sums); }
  // Which number of a chunk a lane of a part of the result is.
  static int place(int lane, int) { return lane; }
};

struct BFloat16Cache {
  static constexpr DType kNumber = kBFloat16;
  static constexpr size_t kBytes = 2;
  static constexpr bool kIsScaled = false;
  static constexpr int kChunk = 2 * kWidth;
  static constexpr int kKeyParts = 2, kValueParts = 2, kStep = 1;

  static void words(const char* p, Vec (&parts)[2]) { Vec::load_bf16_pairs(p, parts[0], parts[1]); }
  static void words(const char* p, int n, Vec (&parts)[2]) { Vec::load_bf16_pairs(p, n / 2, parts[0], parts[1]); }
  static void query(const char* p, int n, Vec (&parts)[2]) { words(p, n, parts); }
  static void step(const char* const (&values)[1], Vec (&parts)[2]) { words(values[0], parts); }
  static void step(const char* const (&values)[1], int n, Vec (&parts)[2]) { words(values[0], n, parts); }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return Vec::fma(a, b, sums); }
  static int place(int lane, int part) { return 2 * lane + part; }
};

// Whole numbers of 8 bits. The scale of a key is multiplied with its score, that of a value with its weight.
template <DType kType>
struct Int8Cache {
  static constexpr DType kNumber = kType;
  static constexpr size_t kBytes = 1;
  static constexpr bool kIsScaled = true;
  static constexpr int kChunk = 2 * kWidth;
  static constexpr int kKeyParts = 2, kValueParts = 2, kStep = 1;

  static void words(const char* p, Vec (&parts)[2]) {
    parts[0] = Vec::load_int8(p);
    parts[1] = Vec::load_int8(p + kWidth);
  }
  static void words(const char* p, int n, Vec (&parts)[2]) {
    parts[0] = Vec::load_int8(p, n);
    parts[1] = n > kWidth ? Vec::load_int8(p + kWidth, n - kWidth) : Vec::zero();
  }
  static void query(const char* p, int n, Vec (&parts)[2]) {
    parts[0] = Number<kType>::load(p, n);
    parts[1] = n > kWidth ? Number<kType>::load(p + kWidth * size_of(kType), n - kWidth) : Vec::zero();
  }
  static void step(const char* const (&values)[1], Vec (&parts)[2]) { words(values[0], parts); }
  static void step(const char* const (&values)[1], int n, Vec (&parts)[2]) { words(values[0], n, parts); }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return Vec::fma(a, b, sums); }
  static int place(int lane, int part) { return part * kWidth + lane; }
};

// Turns scores into weights under the largest, and returns their sum by lanes.
template <class Cache>
LANGPORT_INLINE Vec weights_of_scores(float* scores, float largest) {
  Vec total = Vec::zero();
  for (int t = 0; t < kContextTile; t += kWidth) {
    const Vec weight = exponential(Vec::load(scores + t) - Vec::all(largest));
    weight.store(scores + t);
    total = total + weight;
  }
  return total;
}

template <class Cache>
int64_t chunks_of(int64_t head_dim) {
  return (head_dim + Cache::kChunk - 1) / Cache::kChunk;
}

// Vectors of words of a key or query, and of a step of values or a result.
template <class Cache>
int64_t key_vectors(int64_t head_dim) {
  return chunks_of<Cache>(head_dim) * Cache::kKeyParts;
}

template <class Cache>
int64_t value_vectors(int64_t head_dim) {
  return chunks_of<Cache>(head_dim) * Cache::kValueParts;
}

// Calls body(chunk, n) for each chunk of a head: n numbers of it, at most Cache::kChunk.
template <class Cache, class F>
LANGPORT_INLINE void for_chunks(int64_t head_dim, F&& body) {
  for (int64_t i = 0; i < head_dim; i += Cache::kChunk) body(i / Cache::kChunk, smaller(Cache::kChunk, head_dim - i));
}

// ---- Scores ----

// Adds the products of a chunk of a query and of a key of n numbers.
template <class Cache>
LANGPORT_INLINE Vec add_products(const Vec (&query)[Cache::kKeyParts], const char* key, int n, Vec sums) {
  Vec parts[Cache::kKeyParts];
  if (n == Cache::kChunk) {
    Cache::words(key, parts);
  } else {
    Cache::words(key, n, parts);
  }
#pragma GCC unroll 2
  for (int p = 0; p < Cache::kKeyParts; p++) sums = Cache::multiply_add(query[p], parts[p], sums);
  return sums;
}

template <class Cache>
LANGPORT_INLINE void load_query(const float* query, int64_t chunk, Vec (&parts)[Cache::kKeyParts]) {
#pragma GCC unroll 2
  for (int p = 0; p < Cache::kKeyParts; p++) parts[p] = Vec::load(query + (chunk * Cache::kKeyParts + p) * kWidth);
}

// Scores of one row for the keys [begin, end) of a tile, before scaling. In every `every`th group of kWidth keys, counted
// from group `turn`, the cache hears of the `next` ones that will be read, unless those are null.
template <class Cache>
void score_keys(
    const float* query, int64_t head_dim, const char* const* keys, int begin, int end, float* scores,
    const char* const* next, int64_t turn, int64_t every) {
  const int64_t whole = head_dim / Cache::kChunk;
  const int rest = static_cast<int>(head_dim % Cache::kChunk);
  const size_t chunk_bytes = Cache::kChunk * Cache::kBytes;
  int t = begin;
  for (; t + kWidth <= end; t += kWidth) {
    Vec sums[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) sums[i] = Vec::zero();
    const char* const* ahead = next != nullptr && t / kWidth % every == turn ? next + t : keys + t;
    for (int64_t chunk = 0; chunk < whole; chunk++) {
      Vec q[Cache::kKeyParts];
      load_query<Cache>(query, chunk, q);
      const size_t at = static_cast<size_t>(chunk) * chunk_bytes;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; i++) {
        LANGPORT_PREFETCH(ahead[i] + at);
        sums[i] = add_products<Cache>(q, keys[t + i] + at, Cache::kChunk, sums[i]);
      }
    }
    if (rest) {
      Vec q[Cache::kKeyParts];
      load_query<Cache>(query, whole, q);
      const size_t at = static_cast<size_t>(whole) * chunk_bytes;
      for (int i = 0; i < kWidth; i++) sums[i] = add_products<Cache>(q, keys[t + i] + at, rest, sums[i]);
    }
    Vec::sum_each(sums).store(scores + t);
  }
  for (; t < end; t++) {
    Vec sums = Vec::zero();
    for_chunks<Cache>(head_dim, [&](int64_t chunk, int n) {
      Vec q[Cache::kKeyParts];
      load_query<Cache>(query, chunk, q);
      sums = add_products<Cache>(q, keys[t] + static_cast<size_t>(chunk) * chunk_bytes, n, sums);
    });
    scores[t] = Vec::sum(sums);
  }
}

// The keys [begin, end) of a tile, rearranged as [group of kWidth keys][lane of words][vector of words][key]. In the place
// of the other keys of their groups, whose scores nobody needs, are copies.
template <class Cache>
void pack_keys(const char* const* keys, int begin, int end, int64_t head_dim, float* packed) {
  constexpr int P = Cache::kKeyParts;
  const int64_t vectors = key_vectors<Cache>(head_dim);
  const size_t chunk_bytes = Cache::kChunk * Cache::kBytes;
  for (int group = begin / kWidth; group * kWidth < end; group++) {
    float* target = packed + group * vectors * kWidth * kWidth;
    const char* from[kWidth];
    for (int i = 0; i < kWidth; i++) {
      const int t = group * kWidth + i;
      from[i] = keys[t < begin ? begin : t < end ? t : end - 1];
    }
    for_chunks<Cache>(head_dim, [&](int64_t chunk, int n) {
      Vec blocks[P][kWidth];
      for (int i = 0; i < kWidth; i++) {
        Vec parts[P];
        const char* key = from[i] + static_cast<size_t>(chunk) * chunk_bytes;
        if (n == Cache::kChunk) {
          Cache::words(key, parts);
        } else {
          Cache::words(key, n, parts);
        }
        for (int p = 0; p < P; p++) blocks[p][i] = parts[p];
      }
      for (int p = 0; p < P; p++) {
        Vec::transpose(blocks[p]);
        for (int lane = 0; lane < kWidth; lane++)
          blocks[p][lane].store(target + (lane * vectors + chunk * P + p) * kWidth);
      }
    });
  }
}

// The sums over the lanes kFirst, kFirst + kEvery, ... of R queries times G groups of keys: halves are added, as Vec::sum
// does with the lanes of one key. kVectors is the number of vectors if it is known.
template <class Cache, int R, int G, int kVectors, int kFirst, int kEvery>
LANGPORT_INLINE void sum_lanes(const float* queries, int64_t num_vectors, const float* groups, Vec (&sums)[R][G]) {
  const int64_t vectors = kVectors ? kVectors : num_vectors;
  if constexpr (kEvery == kWidth) {
    const float* key = groups + kFirst * vectors * kWidth;
    const float* query = queries + kFirst;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) sums[r][g] = Vec::zero();
#pragma GCC unroll 4
    for (int64_t i = 0; i < vectors; i++) {
      Vec keys[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) keys[g] = Vec::load(key + (g * vectors * kWidth + i) * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Vec word = Vec::all(query[(r * vectors + i) * kWidth]);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) sums[r][g] = Cache::multiply_add(word, keys[g], sums[r][g]);
      }
    }
  } else {
    Vec others[R][G];
    sum_lanes<Cache, R, G, kVectors, kFirst, 2 * kEvery>(queries, vectors, groups, sums);
    sum_lanes<Cache, R, G, kVectors, kFirst + kEvery, 2 * kEvery>(queries, vectors, groups, others);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) sums[r][g] = sums[r][g] + others[r][g];
  }
}

// Scores of many rows for G groups of keys.
template <class Cache, int G, int kVectors, int R = Vec::kScoreRows>
void score_groups(const float* queries, int64_t rows, int64_t vectors, const float* groups, float* scores) {
  for (; rows >= R; rows -= R) {
    Vec sums[R][G];
    sum_lanes<Cache, R, G, kVectors, 0, 1>(queries, vectors, groups, sums);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) sums[r][g].store(scores + r * kContextTile + g * kWidth);
    queries += R * vectors * kWidth;
    scores += R * kContextTile;
  }
  if constexpr (R > 1) {
    if (rows > 0) score_groups<Cache, G, kVectors, R / 2>(queries, rows, vectors, groups, scores);
  }
}

// The same, with loops made for the usual sizes of heads.
template <class Cache, int G>
void score_packed_keys(const float* queries, int64_t rows, int64_t vectors, const float* groups, float* scores) {
  switch (vectors) {
    case 2: return score_groups<Cache, G, 2>(queries, rows, vectors, groups, scores);
    case 4: return score_groups<Cache, G, 4>(queries, rows, vectors, groups, scores);
    default: return score_groups<Cache, G, 0>(queries, rows, vectors, groups, scores);
  }
}

// ---- Weights ----

struct Range {
  int begin, end;
};

inline void multiply_tile(float* numbers, const float* factors) {
  for (int t = 0; t < kContextTile; t += kWidth) (Vec::load(numbers + t) * Vec::load(factors + t)).store(numbers + t);
}

// Makes scores of the products of a query and a tile's keys; those that it does not see become minus infinity. `biases`
// are the tile's, or null. Returns the largest.
inline float finish_scores(const AttentionJob& job, Range range, const float* biases, float* scores) {
  float scale = job.scale;
  if (job.softcap != 0.0f) {
    for (int t = 0; t < kContextTile; t += kWidth) {
      const Vec part = Vec::load(scores + t) * Vec::all(scale) / Vec::all(job.softcap);
      (hyperbolic_tangent(part) * Vec::all(job.softcap)).store(scores + t);
    }
    scale = 1.0f;
  }
  for (int t = 0; t < range.begin; t++) scores[t] = -INFINITY;
  for (int t = range.end; t < kContextTile; t++) scores[t] = -INFINITY;
  Vec largest = Vec::all(-INFINITY);
  for (int t = 0; t < kContextTile; t += kWidth) {
    Vec score = Vec::load(scores + t) * Vec::all(scale);
    if (biases != nullptr) score = score + Vec::load(biases + t);
    score.store(scores + t);
    largest = Vec::max(largest, score);
  }
  return Vec::largest(largest);
}

// Brings what was added under a smaller largest score under the new one.
inline void rescale(float before, float now, float& sum, float* result, int64_t size) {
  float numbers[kWidth];
  exponential(Vec::all(before - now)).store(numbers);  // of minus infinity in the first tile
  const Vec factor = Vec::all(numbers[0]);
  sum *= numbers[0];
  for (int64_t i = 0; i < size; i += kWidth) (Vec::load(result + i) * factor).store(result + i);
}

// ---- Results ----

// The values of a tile where they lie.
template <class Cache>
struct ValuesInPlace {
  const char* const* values;
  int begin, end;  // seen keys; nothing else is read
  const char* const* next;  // values that will be read, of which the cache hears; may be the same

  void load(int step, int64_t chunk, int n, Vec (&parts)[Cache::kValueParts]) const {
    const size_t offset = static_cast<size_t>(chunk) * Cache::kChunk * Cache::kBytes;
    const char* where[Cache::kStep];
    for (int i = 0; i < Cache::kStep; i++) {
      const int t = step * Cache::kStep + i;
      where[i] = Cache::kStep == 1 || (t >= begin && t < end) ? values[t] + offset : kNothing;
      LANGPORT_PREFETCH(next[t] + offset);
    }
    if (n == Cache::kChunk) {
      Cache::step(where, parts);
    } else {
      Cache::step(where, n, parts);
    }
  }
};

// The same as words, [step][vector].
template <class Cache>
struct PackedValues {
  const float* words;
  int64_t vectors;

  void load(int step, int64_t chunk, int, Vec (&parts)[Cache::kValueParts]) const {
    const float* first = words + (step * vectors + chunk * Cache::kValueParts) * kWidth;
    for (int p = 0; p < Cache::kValueParts; p++) parts[p] = Vec::load(first + p * kWidth);
  }
};

template <class Cache>
void pack_values(const char* const* values, int begin, int end, int64_t head_dim, float* packed) {
  constexpr int P = Cache::kValueParts;
  const int64_t vectors = value_vectors<Cache>(head_dim);
  const ValuesInPlace<Cache> source{values, begin, end, values};
  for (int step = begin / Cache::kStep; step * Cache::kStep < end; step++) {
    for_chunks<Cache>(head_dim, [&](int64_t chunk, int n) {
      Vec parts[P];
      source.load(step, chunk, n, parts);
      for (int p = 0; p < P; p++) parts[p].store(packed + (step * vectors + chunk * P + p) * kWidth);
    });
  }
}

// Adds the weighted values of the steps [begin, end) to the results of R rows: G chunks from `chunk` on, of n numbers.
template <class Cache, int R, int G, class Values>
LANGPORT_INLINE void add_chunks(
    const float* weights, const Values& values, int begin, int end, int64_t chunk, int n, float* result, int64_t stride) {
  constexpr int P = Cache::kValueParts;
  Vec sums[R][G][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 2
      for (int p = 0; p < P; p++) sums[r][g][p] = Vec::load(result + r * stride + ((chunk + g) * P + p) * kWidth);
  for (int step = begin; step < end; step++) {
    Vec parts[G][P];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) values.load(step, chunk + g, n, parts[g]);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec weight = Vec::all(weights[r * kContextTile + step]);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) sums[r][g][p] = Cache::multiply_add(weight, parts[g][p], sums[r][g][p]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 2
      for (int p = 0; p < P; p++) sums[r][g][p].store(result + r * stride + ((chunk + g) * P + p) * kWidth);
}

template <class Cache, int R, class Values>
void add_values(
    const float* weights, const Values& values, Range keys, int64_t head_dim, float* result, int64_t stride) {
  if (keys.begin >= keys.end) return;
  constexpr int kGroup = 4 / Cache::kValueParts;
  const int begin = keys.begin / Cache::kStep, end = (keys.end + Cache::kStep - 1) / Cache::kStep;
  const int64_t whole = head_dim / Cache::kChunk;
  const int rest = static_cast<int>(head_dim % Cache::kChunk);
  int64_t chunk = 0;
  for (; chunk + kGroup <= whole; chunk += kGroup)
    add_chunks<Cache, R, kGroup>(weights, values, begin, end, chunk, Cache::kChunk, result, stride);
  for (; chunk < whole; chunk++)
    add_chunks<Cache, R, 1>(weights, values, begin, end, chunk, Cache::kChunk, result, stride);
  if (rest) add_chunks<Cache, R, 1>(weights, values, begin, end, chunk, rest, result, stride);
}

// What R rows see in common, to whole steps.
template <class Cache, int R>
Range common_range(const Range* ranges) {
  int begin = 0, end = kContextTile;
  for (int r = 0; r < R; r++) {
    begin = begin > ranges[r].begin ? begin : ranges[r].begin;
    end = end < ranges[r].end ? end : ranges[r].end;
  }
  return {(begin + Cache::kStep - 1) / Cache::kStep * Cache::kStep, end / Cache::kStep * Cache::kStep};
}

// Rows side by side read `shared` together where all of them see; what only some see, each reads alone, in place, before
// or after.
template <class Cache, int R, class Values>
void add_values_of_rows(
    const float* weights, const char* const* values, const Values& shared, const Range* ranges, int64_t rows,
    int64_t head_dim, float* result, int64_t stride) {
  for (; rows >= R; rows -= R) {
    Range common = common_range<Cache, R>(ranges);
    const bool is_shared = common.begin < common.end;
    const auto add_alone = [&](int r, int begin, int end) {
      const ValuesInPlace<Cache> own{values, begin, end, values};
      add_values<Cache, 1>(weights + r * kContextTile, own, Range{begin, end}, head_dim, result + r * stride, stride);
    };
    for (int r = 0; r < R; r++) add_alone(r, ranges[r].begin, is_shared ? common.begin : ranges[r].end);
    if (is_shared) {
      add_values<Cache, R>(weights, shared, common, head_dim, result, stride);
      for (int r = 0; r < R; r++) add_alone(r, common.end, ranges[r].end);
    }
    weights += R * kContextTile;
    ranges += R;
    result += R * stride;
  }
  if constexpr (R > 1) {
    if (rows > 0)
      add_values_of_rows<Cache, R / 2>(weights, values, shared, ranges, rows, head_dim, result, stride);
  }
}

template <class Cache>
void write_result(const float* result, float sum, int64_t head_dim, char* out) {
  constexpr int P = Cache::kValueParts;
  const Vec divisor = Vec::all(sum);
  for_chunks<Cache>(head_dim, [&](int64_t chunk, int n) {
    float numbers[Cache::kChunk];
    for (int p = 0; p < P; p++) {
      float part[kWidth];
      (Vec::load(result + (chunk * P + p) * kWidth) / divisor).store(part);
      for (int lane = 0; lane < kWidth; lane++) numbers[Cache::place(lane, p)] = part[lane];
    }
    char* target = out + static_cast<size_t>(chunk) * Cache::kChunk * size_of(Cache::kNumber);
    for (int i = 0; i < n; i += kWidth)
      Number<Cache::kNumber>::store(
          target + static_cast<size_t>(i) * size_of(Cache::kNumber), Vec::load(numbers + i), smaller(kWidth, n - i));
  });
}

// ---- A run of queries ----

// Where the keys and values of a tile lie. All are set, of a tile with fewer tokens to the first one's.
struct TilePointers {
  const char* keys[kContextTile];
  const char* values[kContextTile];
  int64_t rows[kContextTile];  // of a head in the cache; set of the tile's tokens
};

inline void find_tile(
    const AttentionJob& job, const QueryRun& run, int64_t kv_head, int64_t tile, int64_t last, TilePointers& pointers) {
  const int tokens = smaller(kContextTile, last - tile);
  const size_t bytes = job.head_bytes();
  int64_t block = tile / job.block_size, within = tile % job.block_size;
  for (int t = 0; t < tokens; t++) {
    const int64_t row = (run.table[block] * job.kv_heads + kv_head) * job.block_size + within;
    const size_t offset = static_cast<size_t>(row) * bytes;
    pointers.keys[t] = job.keys + offset;
    pointers.values[t] = job.values + offset;
    pointers.rows[t] = row;
    if (job.key_scales != nullptr && (t == 0 || within == 0)) {
      LANGPORT_PREFETCH(job.key_scales + row);
      LANGPORT_PREFETCH(job.value_scales + row);
    }
    if (++within == job.block_size) {
      within = 0;
      block++;
    }
  }
  for (int t = tokens; t < kContextTile; t++) {
    pointers.keys[t] = pointers.keys[0];
    pointers.values[t] = pointers.values[0];
  }
}

// Lets the cache know that what lies at the pointers from `begin` on is needed next.
inline void prefetch_heads(const AttentionJob& job, const char* const* pointers, int begin) {
  const size_t bytes = job.head_bytes();
  for (int t = begin; t < kContextTile; t++)
    for (size_t byte = 0; byte < bytes; byte += 64) LANGPORT_PREFETCH(pointers[t] + byte);
}

// The rows of a run with the heads that share one kv head, in the scratch that they are given.
template <class Cache>
class Rows {
 public:
  Rows(const AttentionJob& job, const QueryRun& run, int64_t kv_head, float* scratch)
      : job_(job), run_(run), fold_(job.heads / job.kv_heads), first_head_(kv_head * fold_), rows_(run.count * fold_) {
    const auto take = [&](int64_t floats) {
      float* taken = scratch;
      scratch += (floats + 15) / 16 * 16;
      return taken;
    };
    key_vectors_ = key_vectors<Cache>(job.head_dim);
    stride_ = value_vectors<Cache>(job.head_dim) * kWidth;
    packed_keys_ = take(kContextTile * key_vectors_ * kWidth);
    packed_values_ = take(kContextTile / Cache::kStep * stride_);
    key_scales_ = take(kContextTile);
    value_scales_ = take(kContextTile);
    queries_ = take(rows_ * key_vectors_ * kWidth);
    results_ = take(rows_ * stride_);
    scores_ = take(rows_ * kContextTile);
    largest_ = take(rows_);
    new_largest_ = take(rows_);
    sums_ = take(rows_);
    ranges_ = reinterpret_cast<Range*>(take(2 * rows_));
    std::memset(results_, 0, static_cast<size_t>(rows_ * stride_) * sizeof(float));
    for (int64_t row = 0; row < rows_; row++) {
      read_query(row);
      largest_[row] = job.sinks ? job.sinks[head(row)] : -INFINITY;
      sums_[row] = job.sinks ? 1.0f : 0.0f;
    }
  }

  bool are_worth_packing() const { return rows_ >= kRowsWorthPacking; }

  // Adds what the rows see of a tile of `tokens` keys. While few rows do so, the tile after it, unless that is null, comes
  // into the cache, a line for each that is read: asked for at once, it would let nobody work until it is there.
  void attend(const TilePointers& pointers, int64_t tile, int tokens, const TilePointers* next) {
    const Range seen = find_ranges(tile, tokens);
    if constexpr (Cache::kIsScaled) read_scales(pointers, tokens);
    if (are_worth_packing()) {
      if (next != nullptr) {
        prefetch_heads(job_, next->keys, 0);
        prefetch_heads(job_, next->values, 0);
      }
      score_packed(pointers, seen);
      weigh(tile);
      pack_values<Cache>(pointers.values, seen.begin, seen.end, job_.head_dim, packed_values_);
      const PackedValues<Cache> packed{packed_values_, stride_ / kWidth};
      add_values_of_rows<Cache, Vec::kPackedRows>(
          scores_, pointers.values, packed, ranges_, rows_, job_.head_dim, results_, stride_);
      return;
    }
    for (int64_t row = 0; row < rows_; row++)
      score_keys<Cache>(
          query(row), job_.head_dim, pointers.keys, ranges_[row].begin, ranges_[row].end, scores(row),
          next == nullptr ? nullptr : next->keys, row, rows_);
    if (next != nullptr) prefetch_heads(job_, next->keys, tokens / kWidth * kWidth);
    weigh(tile);
    const ValuesInPlace<Cache> in_place{pointers.values, 0, kContextTile, next == nullptr ? pointers.values : next->values};
    add_values_of_rows<Cache, Vec::kValueRows>(
        scores_, pointers.values, in_place, ranges_, rows_, job_.head_dim, results_, stride_);
    if (next != nullptr) prefetch_heads(job_, next->values, tokens / Cache::kStep * Cache::kStep);
  }

  void write() const {
    const size_t row_bytes = static_cast<size_t>(job_.head_dim) * size_of(Cache::kNumber);
    for (int64_t row = 0; row < rows_; row++) {
      char* out = job_.out + static_cast<size_t>((run_.row + row / fold_) * job_.heads + head(row)) * row_bytes;
      write_result<Cache>(results_ + row * stride_, sums_[row], job_.head_dim, out);
    }
  }

 private:
  bool sees_any(int64_t row) const { return ranges_[row].begin < ranges_[row].end; }
  int64_t head(int64_t row) const { return first_head_ + row % fold_; }
  int64_t position(int64_t row) const { return run_.position + row / fold_; }
  float* query(int64_t row) const { return queries_ + row * key_vectors_ * kWidth; }
  float* scores(int64_t row) const { return scores_ + row * kContextTile; }

  void read_query(int64_t row) {
    const size_t size = size_of(Cache::kNumber);
    const int64_t at = (run_.row + row / fold_) * job_.query_token_stride + head(row) * job_.query_head_stride;
    const char* source = job_.query + static_cast<size_t>(at) * size;
    for_chunks<Cache>(job_.head_dim, [&](int64_t chunk, int n) {
      Vec parts[Cache::kKeyParts];
      Cache::query(source + static_cast<size_t>(chunk) * Cache::kChunk * size, n, parts);
      for (int p = 0; p < Cache::kKeyParts; p++)
        parts[p].store(query(row) + (chunk * Cache::kKeyParts + p) * kWidth);
    });
  }

  // Which keys of the tile each row sees. Returns what any of them sees.
  Range find_ranges(int64_t tile, int tokens) {
    Range seen{kContextTile, 0};
    for (int64_t row = 0; row < rows_; row++) {
      const int64_t end = job_.is_causal ? position(row) + 1 : run_.position;
      const int64_t begin = job_.window && position(row) + 1 > job_.window ? position(row) + 1 - job_.window : 0;
      Range& range = ranges_[row];
      range.begin = begin > tile ? smaller(begin - tile, tokens) : 0;
      range.end = end > tile ? smaller(end - tile, tokens) : 0;
      if (range.begin >= range.end) {
        range.begin = range.end = 0;
        continue;
      }
      seen.begin = seen.begin < range.begin ? seen.begin : range.begin;
      seen.end = seen.end > range.end ? seen.end : range.end;
    }
    return seen;
  }

  void read_scales(const TilePointers& pointers, int tokens) {
    for (int t = 0; t < kContextTile; t++) {
      key_scales_[t] = t < tokens ? job_.key_scales[pointers.rows[t]] : 0.0f;
      value_scales_[t] = t < tokens ? job_.value_scales[pointers.rows[t]] : 0.0f;
    }
  }

  // Three loops, so that the processor has several rows to work on while one waits for its own results.
  void weigh(int64_t tile) {
    for (int64_t row = 0; row < rows_; row++) {
      if constexpr (Cache::kIsScaled) multiply_tile(scores(row), key_scales_);
      const float here =
          sees_any(row) ? finish_scores(job_, ranges_[row], biases(row, tile), scores(row)) : largest_[row];
      new_largest_[row] = largest_[row] > here ? largest_[row] : here;
    }
    for (int64_t row = 0; row < rows_; row++) {
      if (new_largest_[row] == largest_[row]) continue;
      rescale(largest_[row], new_largest_[row], sums_[row], results_ + row * stride_, stride_);
      largest_[row] = new_largest_[row];
    }
    for (int64_t row = 0; row < rows_; row++) {
      if (!sees_any(row)) continue;
      sums_[row] += Vec::sum(weights_of_scores<Cache>(scores(row), largest_[row]));
      if constexpr (Cache::kIsScaled) multiply_tile(scores(row), value_scales_);
    }
  }

  void score_packed(const TilePointers& pointers, Range seen) {
    pack_keys<Cache>(pointers.keys, seen.begin, seen.end, job_.head_dim, packed_keys_);
    constexpr int G = Vec::kScoreGroups;
    static_assert(G <= 2, "the rest of the groups is one");
    for (int group = seen.begin / kWidth; group * kWidth < seen.end; group += G) {
      // Rows before the first, and after the last, that sees these keys need no scores of them.
      int64_t first = 0, last = rows_;
      while (first < last && !sees(first, group, G)) first++;
      while (last > first && !sees(last - 1, group, G)) last--;
      const float* groups = packed_keys_ + group * key_vectors_ * kWidth * kWidth;
      float* target = scores(first) + group * kWidth;
      if ((group + G - 1) * kWidth < seen.end) {
        score_packed_keys<Cache, G>(query(first), last - first, key_vectors_, groups, target);
      } else {
        score_packed_keys<Cache, 1>(query(first), last - first, key_vectors_, groups, target);
      }
    }
  }

  bool sees(int64_t row, int group, int num_groups) const {
    return ranges_[row].begin < (group + num_groups) * kWidth && ranges_[row].end > group * kWidth;
  }

  const float* biases(int64_t row, int64_t tile) const {
    if (job_.biases == nullptr) return nullptr;
    const int64_t column = job_.own_column < 0 ? tile : tile + job_.own_column - position(row);
    return job_.biases + head(row) * job_.bias_stride + column;
  }

  const AttentionJob& job_;
  const QueryRun& run_;
  int64_t fold_, first_head_, rows_, key_vectors_, stride_;
  float *packed_keys_, *packed_values_, *key_scales_, *value_scales_, *queries_, *results_, *scores_, *largest_, *new_largest_, *sums_;
  Range* ranges_;
};

template <class Cache>
void attend_cache(const AttentionJob& job, const QueryRun& run, int64_t first_head, int64_t heads, float* scratch) {
  const int64_t last = run.position + (job.is_causal ? run.count : 0);
  const int64_t unseen = job.window && run.position + 1 > job.window ? run.position + 1 - job.window : 0;
  const int64_t first = unseen / kContextTile * kContextTile;
  TilePointers pointers[2];
  int turn = 0;
  if (first < last) {
    find_tile(job, run, first_head, first, last, pointers[turn]);
    prefetch_heads(job, pointers[turn].keys, 0);
    prefetch_heads(job, pointers[turn].values, 0);
  }
  for (int64_t head = first_head; head < first_head + heads; head++) {
    Rows<Cache> rows(job, run, head, scratch);
    for (int64_t tile = first; tile < last; tile += kContextTile) {
      const bool is_last = tile + kContextTile >= last, has_next = !is_last || head + 1 < first_head + heads;
      if (has_next)
        find_tile(job, run, is_last ? head + 1 : head, is_last ? first : tile + kContextTile, last, pointers[1 - turn]);
      rows.attend(pointers[turn], tile, smaller(kContextTile, last - tile), has_next ? &pointers[1 - turn] : nullptr);
      turn = 1 - turn;
    }
    rows.write();
  }
}

void attend_int8(const AttentionJob& job, const QueryRun& run, int64_t first_head, int64_t heads, float* scratch) {
  switch (job.dtype) {
    case kFloat32: return attend_cache<Int8Cache<kFloat32>>(job, run, first_head, heads, scratch);
    case kBFloat16: return attend_cache<Int8Cache<kBFloat16>>(job, run, first_head, heads, scratch);
    case kFloat16: return attend_cache<Int8Cache<kFloat16>>(job, run, first_head, heads, scratch);
  }
}

void attend(const AttentionJob& job, const QueryRun& run, int64_t first_head, int64_t heads, float* scratch) {
  if (job.key_scales != nullptr) return attend_int8(job, run, first_head, heads, scratch);
  switch (job.dtype) {
    case kFloat32: return attend_cache<PlainCache<kFloat32>>(job, run, first_head, heads, scratch);
    case kBFloat16: return attend_cache<BFloat16Cache>(job, run, first_head, heads, scratch);
    case kFloat16: return attend_cache<PlainCache<kFloat16>>(job, run, first_head, heads, scratch);
  }
}

}  // namespace
