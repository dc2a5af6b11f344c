// Attention of encoders in pairs of bfloat16. Included after pairs.inl and encoder.inl.
#pragma once

namespace {

// A word is a pair: two numbers of a head, or one number of two keys' values, multiplied with the keys' two weights.
// Weights are rounded to bfloat16, and their sum is that of the rounded ones.
struct SpanPairs {
  static constexpr DType kNumber = kBFloat16;
  static constexpr int kPerWord = 2;

  static int64_t words_of(int64_t numbers) { return (numbers + 1) / 2; }
  static Vec words(const char* p, int64_t n) {
    if (n >= 2 * kWidth) return vec_of(_mm512_loadu_si512(p));
    return vec_of(_mm512_maskz_loadu_epi16((uint32_t{1} << n) - 1, p));
  }
  static Vec values(const char* first, const char* second, int n) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(Vec::mask(n), first));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(Vec::mask(n), second));
    return vec_of(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static LANGPORT_INLINE Vec weigh(const float* scores, float largest, float* weights) {
    static_assert(kSpanKeys == 2 * kWidth, "two vectors of scores are one of pairs");
    const Vec first = rough_exponential(Vec::load(scores) - Vec::all(largest));
    const Vec second = rough_exponential(Vec::load(scores + kWidth) - Vec::all(largest));
    const auto pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));
    _mm512_storeu_si512(weights, pairs);
    Vec evens, odds;
    Vec::split(pairs, evens, odds);
    return evens + odds;
  }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return dot_pairs(sums, bits_of(a), bits_of(b)); }
};

void attend_span_pairs(const SpanAttentionJob& job, const Span& span, int64_t head, float* scratch) {
  if (job.dtype != kBFloat16) return attend_span(job, span, head, scratch);
  attend_words<SpanPairs>(job, span, head, scratch);
}

constexpr EncoderKernels encoder_pair_kernels = {attend_span_pairs, activate, layer_norm};

}  // namespace
