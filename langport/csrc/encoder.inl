// The kernels of encoder.h. Included after kernels.inl, and after pairs.inl where there is that.
//
// Attention is two products of small matrices per head, keys and values packed once for all of a sequence's queries.
// Every element is added up in one order, over the numbers of a head or over the keys, in one chain; a row's scores all
// lie in scratch, so its largest one is known before the first weight is made.
#pragma once

#include "encoder.h"

namespace {

// ---- How numbers are multiplied ----

// A word is what one multiplication takes of each side: a number, as a float.
template <DType kType>
struct SpanNumbers {
  static constexpr DType kNumber = kType;
  static constexpr int kPerWord = 1;

  static int64_t words_of(int64_t numbers) { return numbers; }
  // The words of n numbers, at most a vector of words.
  static Vec words(const char* p, int64_t n) { return Number<kType>::load(p, smaller(kWidth, n)); }
  // n numbers of a word's values: those of key `first`, and of the one after it where a word takes two.
  static Vec values(const char* first, const char*, int n) { return Number<kType>::load(first, n); }
  // Turns kSpanKeys scores into weights under the largest, as words, and returns their sum by lanes.
  static LANGPORT_INLINE Vec weigh(const float* scores, float largest, float* weights) {
    Vec total = Vec::zero();
    for (int t = 0; t < kSpanKeys; t += kWidth) {
      const Vec weight = exponential(Vec::load(scores + t) - Vec::all(largest));
      weight.store(weights + t);
      total = total + weight;
    }
    return total;
  }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return Vec::fma(a, b, sums); }
};

// out (R rows, G vectors) = a (R rows of words) times b, packed as [vector][word][lane].
template <class Words, int R, int G>
LANGPORT_INLINE void multiply_words(
    const float* a, int64_t a_stride, const float* b, int64_t words, float* out, int64_t out_stride) {
  Vec sums[R][G];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) sums[r][g] = Vec::zero();
  for (int64_t i = 0; i < words; i++) {
    Vec b_words[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) b_words[g] = Vec::load(b + (g * words + i) * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Vec word = Vec::all(a[r * a_stride + i]);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) sums[r][g] = Words::multiply_add(word, b_words[g], sums[r][g]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) sums[r][g].store(out + r * out_stride + g * kWidth);
}

// The same for any number of rows and vectors.
template <class Words, int R = Vec::kMaxRows>
void multiply_all(
    const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t vectors, int64_t words, float* out,
    int64_t out_stride) {
  constexpr int G = Vec::kColumnVecs;
  for (; rows >= R; rows -= R) {
    int64_t g = 0;
    for (; g + G <= vectors; g += G)
      multiply_words<Words, R, G>(a, a_stride, b + g * words * kWidth, words, out + g * kWidth, out_stride);
    for (; g < vectors; g++)
      multiply_words<Words, R, 1>(a, a_stride, b + g * words * kWidth, words, out + g * kWidth, out_stride);
    a += R * a_stride;
    out += R * out_stride;
  }
  if constexpr (R > 1) {
    if (rows > 0) multiply_all<Words, R / 2>(a, a_stride, rows, b, vectors, words, out, out_stride);
  }
}

// ---- Attention ----

template <class Words>
class SpanRows {
 public:
  SpanRows(const SpanAttentionJob& job, const Span& span, int64_t head, float* scratch)
      : job_(job), span_(span), head_(head) {
    const auto take = [&](int64_t floats) {
      float* taken = scratch;
      scratch += (floats + 15) / 16 * 16;
      return taken;
    };
    keys_padded_ = (span.length + kSpanKeys - 1) / kSpanKeys * kSpanKeys;
    key_vectors_ = (span.length + kWidth - 1) / kWidth;
    head_words_ = Words::words_of(job.head_dim);
    value_words_ = Words::words_of(span.length);
    value_vectors_ = (job.head_dim + kWidth - 1) / kWidth;
    keys_ = take(key_vectors_ * kWidth * padded_head());
    values_ = take(value_words_ * value_vectors_ * kWidth);
    queries_ = take(Vec::kMaxRows * padded_head());
    scores_ = take(Vec::kMaxRows * keys_padded_);
    pack_keys();
    pack_values();
  }

  void attend() {
    for (int64_t done = 0; done < span_.count; done += Vec::kMaxRows) {
      const int rows = smaller(Vec::kMaxRows, span_.count - done);
      const int64_t first = span_.first + done;
      for (int row = 0; row < rows; row++) read_words(job_.query, first + row, queries_ + row * padded_head());
      multiply_all<Words>(queries_, padded_head(), rows, keys_, key_vectors_, head_words_, scores_, keys_padded_);
      float largest[Vec::kMaxRows], sums[Vec::kMaxRows];
      for (int row = 0; row < rows; row++) largest[row] = finish_scores(first + row, scores_ + row * keys_padded_);
      for (int row = 0; row < rows; row++) sums[row] = weigh(scores_ + row * keys_padded_, largest[row]);
      // The queries are not needed any more: results take their place.
      multiply_all<Words>(
          scores_, keys_padded_, rows, values_, value_vectors_, value_words_, queries_, padded_head());
      for (int row = 0; row < rows; row++) write(first + row, queries_ + row * padded_head(), sums[row]);
    }
  }

 private:
  static constexpr size_t kSize = Words::kNumber == kFloat32 ? 4 : 2;

  // Numbers of a head, and room for as many words.
  int64_t padded_head() const { return (job_.head_dim + kWidth - 1) / kWidth * kWidth; }

  const char* at(const char* numbers, int64_t position) const {
    return numbers + static_cast<size_t>((span_.begin + position) * job_.stride + head_ * job_.head_dim) * kSize;
  }

  void read_words(const char* numbers, int64_t position, float* target) const {
    const char* source = at(numbers, position);
    for (int64_t i = 0; i < head_words_; i += kWidth) {
      const int64_t number = i * Words::kPerWord;
      Words::words(source + static_cast<size_t>(number) * kSize, job_.head_dim - number).store(target + i);
    }
  }

  // As [vector of keys][word][key].
  void pack_keys() {
    for (int64_t vector = 0; vector < key_vectors_; vector++) {
      float* target = keys_ + vector * head_words_ * kWidth;
      for (int64_t i = 0; i < head_words_; i += kWidth) {
        const int64_t number = i * Words::kPerWord;
        Vec block[kWidth];
        for (int key = 0; key < kWidth; key++) {
          const int64_t position = vector * kWidth + key;
          block[key] = Vec::zero();
          if (position < span_.length)
            block[key] = Words::words(
                at(job_.key, position) + static_cast<size_t>(number) * kSize, job_.head_dim - number);
        }
        Vec::transpose(block);
        const int here = smaller(kWidth, head_words_ - i);
        for (int word = 0; word < here; word++) block[word].store(target + (i + word) * kWidth);
      }
    }
  }

  // As [vector of numbers][word of keys][number].
  void pack_values() {
    static constexpr char nothing[kWidth * sizeof(float)] = {};
    for (int64_t word = 0; word < value_words_; word++) {
      const int64_t position = word * Words::kPerWord;
      const bool has_second = Words::kPerWord > 1 && position + 1 < span_.length;
      const char* first = at(job_.value, position);
      const char* second = has_second ? at(job_.value, position + 1) : nothing;
      for (int64_t vector = 0; vector < value_vectors_; vector++) {
        const auto offset = static_cast<size_t>(vector * kWidth) * kSize;
        const int n = smaller(kWidth, job_.head_dim - vector * kWidth);
        Words::values(first + offset, has_second ? second + offset : second, n)
            .store(values_ + (vector * value_words_ + word) * kWidth);
      }
    }
  }

  // Makes scores of the products of a query; those of keys that there are not become minus infinity. Returns the largest.
  float finish_scores(int64_t position, float* scores) const {
    const float* biases = job_.biases;
    if (biases != nullptr) biases += head_ * job_.bias_stride + job_.own_column - position;
    const Vec scale = Vec::all(job_.scale);
    Vec largest = Vec::all(-INFINITY);
    const int64_t whole = span_.length / kWidth * kWidth;
    const auto finish = [&](int64_t t) {
      const Vec score = Vec::load(scores + t) * scale;
      return biases == nullptr ? score : score + Vec::load(biases + t);
    };
    for (int64_t t = 0; t < whole; t += kWidth) {
      const Vec score = finish(t);
      score.store(scores + t);
      largest = Vec::max(largest, score);
    }
    if (whole < span_.length) {
      finish(whole).store(scores + whole);
      for (int64_t t = span_.length; t < whole + kWidth; t++) scores[t] = -INFINITY;
      largest = Vec::max(largest, Vec::load(scores + whole));
    }
    for (int64_t t = key_vectors_ * kWidth; t < keys_padded_; t++) scores[t] = -INFINITY;
    return Vec::largest(largest);
  }

  // Weights take the place of scores.
  float weigh(float* scores, float largest) const {
    Vec total = Vec::zero();
    for (int64_t t = 0; t < keys_padded_; t += kSpanKeys)
      total = total + Words::weigh(scores + t, largest, scores + t / Words::kPerWord);
    return Vec::sum(total);
  }

  void write(int64_t position, const float* result, float sum) const {
    const Vec factor = Vec::all(1.0f / sum);
    char* out = job_.out +
                static_cast<size_t>(((span_.begin + position) * job_.heads + head_) * job_.head_dim) * kSize;
    for (int64_t i = 0; i < job_.head_dim; i += kWidth)
      Number<Words::kNumber>::store(
          out + static_cast<size_t>(i) * kSize, Vec::load(result + i) * factor, smaller(kWidth, job_.head_dim - i));
  }

  const SpanAttentionJob& job_;
  const Span& span_;
  int64_t head_, keys_padded_, key_vectors_, head_words_, value_words_, value_vectors_;
  float *keys_, *values_, *queries_, *scores_;
};

template <class Words>
void attend_words(const SpanAttentionJob& job, const Span& span, int64_t head, float* scratch) {
  SpanRows<Words>(job, span, head, scratch).attend();
}

void attend_span(const SpanAttentionJob& job, const Span& span, int64_t head, float* scratch) {
  switch (job.dtype) {
    case kFloat32: return attend_words<SpanNumbers<kFloat32>>(job, span, head, scratch);
    case kBFloat16: return attend_words<SpanNumbers<kBFloat16>>(job, span, head, scratch);
    case kFloat16: return attend_words<SpanNumbers<kFloat16>>(job, span, head, scratch);
  }
}

// ---- Activations ----

// The error function to 3e-7: x times a quotient of polynomials of x * x, fitted to it on (0, 4).
LANGPORT_INLINE Vec error_function(Vec x) {
  const Vec limited = Vec::max(Vec::all(-4.0f), Vec::min(Vec::all(4.0f), x));
  const Vec t = limited * limited;
  Vec p = Vec::all(1.974829729e-06f);
  p = Vec::fma(p, t, Vec::all(2.880423854e-04f));
  p = Vec::fma(p, t, Vec::all(4.003672861e-03f));
  p = Vec::fma(p, t, Vec::all(5.346755683e-02f));
  p = Vec::fma(p, t, Vec::all(1.962495595e-01f));
  p = Vec::fma(p, t, Vec::all(1.128378987e+00f));
  Vec q = Vec::all(3.748090967e-05f);
  q = Vec::fma(q, t, Vec::all(1.216367236e-03f));
  q = Vec::fma(q, t, Vec::all(1.544447336e-02f));
  q = Vec::fma(q, t, Vec::all(1.164766699e-01f));
  q = Vec::fma(q, t, Vec::all(5.072528124e-01f));
  q = Vec::fma(q, t, Vec::all(1.0f));
  return limited * p / q;
}

template <Activation>
struct Function;

template <>
struct Function<Activation::kGelu> {
  static LANGPORT_INLINE Vec of(Vec x) {
    const Vec half = x * Vec::all(0.5f);
    return Vec::fma(half, error_function(x * Vec::all(0.707106781f)), half);
  }
};

template <>
struct Function<Activation::kTanhGelu> {
  static LANGPORT_INLINE Vec of(Vec x) {
    const Vec inner = x * Vec::fma(x * x, Vec::all(0.0356774081f), Vec::all(0.797884561f));
    const Vec half = x * Vec::all(0.5f);
    return Vec::fma(half, hyperbolic_tangent(inner), half);
  }
};

template <>
struct Function<Activation::kRelu> {
  static LANGPORT_INLINE Vec of(Vec x) { return Vec::max(Vec::zero(), x); }
};

template <>
struct Function<Activation::kSilu> {
  static LANGPORT_INLINE Vec of(Vec x) { return x / (Vec::all(1.0f) + exponential(Vec::zero() - x)); }
};

template <>
struct Function<Activation::kQuickGelu> {
  static LANGPORT_INLINE Vec of(Vec x) { return x / (Vec::all(1.0f) + exponential(x * Vec::all(-1.702f))); }
};

template <DType kType, Activation kFunction>
void activate_rows(const ActivationJob& job, int64_t first_row, int64_t rows) {
  const size_t size = size_of(kType);
  for (int64_t row = first_row; row < first_row + rows; row++) {
    char* x = job.x + static_cast<size_t>(row * job.stride) * size;
    for (int64_t i = 0; i < job.columns; i += kWidth) {
      const int n = smaller(kWidth, job.columns - i);
      char* here = x + static_cast<size_t>(i) * size;
      Number<kType>::store(here, Function<kFunction>::of(Number<kType>::load(here, n)), n);
    }
  }
}

template <DType kType>
void activate_type(const ActivationJob& job, int64_t first_row, int64_t rows) {
  switch (job.function) {
    case Activation::kNone: return;
    case Activation::kGelu: return activate_rows<kType, Activation::kGelu>(job, first_row, rows);
    case Activation::kTanhGelu: return activate_rows<kType, Activation::kTanhGelu>(job, first_row, rows);
    case Activation::kRelu: return activate_rows<kType, Activation::kRelu>(job, first_row, rows);
    case Activation::kSilu: return activate_rows<kType, Activation::kSilu>(job, first_row, rows);
    case Activation::kQuickGelu: return activate_rows<kType, Activation::kQuickGelu>(job, first_row, rows);
  }
}

void activate(const ActivationJob& job, int64_t first_row, int64_t rows) {
  switch (job.dtype) {
    case kFloat32: return activate_type<kFloat32>(job, first_row, rows);
    case kBFloat16: return activate_type<kBFloat16>(job, first_row, rows);
    case kFloat16: return activate_type<kFloat16>(job, first_row, rows);
  }
}

// ---- Layer norms ----

// The lanes that a row of so many numbers leaves empty in its last vector count for nothing.
template <DType kType>
void layer_norm_row(const LayerNormJob& job, int64_t row) {
  const size_t size = size_of(kType);
  const auto begin = static_cast<size_t>(row * job.columns) * size;
  const char* x = job.x + begin;
  const char* residual = job.residual == nullptr ? nullptr : job.residual + begin;
  const auto load = [&](int64_t i, int n) {
    const size_t offset = static_cast<size_t>(i) * size;
    const Vec numbers = Number<kType>::load(x + offset, n);
    return residual == nullptr ? numbers : numbers + Number<kType>::load(residual + offset, n);
  };
  const auto columns = static_cast<float>(job.columns);
  Vec sums = Vec::zero();
  for (int64_t i = 0; i < job.columns; i += kWidth) sums = sums + load(i, smaller(kWidth, job.columns - i));
  const Vec mean = Vec::all(Vec::sum(sums) / columns);
  Vec squares = Vec::zero();
  for (int64_t i = 0; i < job.columns; i += kWidth) {
    const int n = smaller(kWidth, job.columns - i);
    Vec centered = load(i, n) - mean;
    if (n < kWidth) {
      float numbers[kWidth];
      centered.store(numbers);
      centered = Vec::load(numbers, n);
    }
    squares = Vec::fma(centered, centered, squares);
  }
  const Vec factor = Vec::all(1.0f / std::sqrt(Vec::sum(squares) / columns + job.epsilon));
  for (int64_t i = 0; i < job.columns; i += kWidth) {
    const int n = smaller(kWidth, job.columns - i);
    const size_t offset = static_cast<size_t>(i) * size;
    const Vec weight = Number<kType>::load(job.weight + offset, n);
    const Vec bias = job.bias == nullptr ? Vec::zero() : Number<kType>::load(job.bias + offset, n);
    Number<kType>::store(job.out + begin + offset, Vec::fma((load(i, n) - mean) * factor, weight, bias), n);
  }
}

void layer_norm(const LayerNormJob& job, int64_t first_row, int64_t rows) {
  for (int64_t row = first_row; row < first_row + rows; row++) {
    switch (job.dtype) {
      case kFloat32: layer_norm_row<kFloat32>(job, row); break;
      case kBFloat16: layer_norm_row<kBFloat16>(job, row); break;
      case kFloat16: layer_norm_row<kFloat16>(job, row); break;
    }
  }
}

constexpr EncoderKernels encoder_kernels = {attend_span, activate, layer_norm};

}  // namespace
