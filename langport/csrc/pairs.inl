// Pairs of bfloat16 by vdpbf16ps, which multiplies them and adds them up in float32. Included after attention.inl and ceilings.inl.
#pragma once

namespace {

LANGPORT_INLINE Vec dot_pairs(Vec sums, __m512i a, __m512i b) {
  return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
}

LANGPORT_INLINE __m512i bits_of(Vec x) { return _mm512_castps_si512(x.v); }
LANGPORT_INLINE Vec vec_of(__m512i bits) { return {_mm512_castsi512_ps(bits)}; }

// A word is a pair of bfloat16: two numbers of a key or query, or the same number of two keys' values, which are
// multiplied with the keys' two weights. So weights are rounded to bfloat16, and their sum is that of the rounded ones.
struct PairCache {
  static constexpr DType kNumber = kBFloat16;
  static constexpr size_t kBytes = 2;
  static constexpr bool kIsScaled = false;
  static constexpr int kChunk = 2 * kWidth;
  static constexpr int kKeyParts = 1, kValueParts = 2, kStep = 2;

  static void words(const char* p, Vec (&parts)[1]) { parts[0] = vec_of(_mm512_loadu_si512(p)); }
  static void words(const char* p, int n, Vec (&parts)[1]) {
    parts[0] = vec_of(_mm512_maskz_loadu_epi32(Vec::mask(n / 2), p));
  }
  static void query(const char* p, int n, Vec (&parts)[1]) { words(p, n, parts); }
  static void step(const char* const (&values)[2], Vec (&parts)[2]) {
    interleave(_mm512_loadu_si512(values[0]), _mm512_loadu_si512(values[1]), parts);
  }
  static void step(const char* const (&values)[2], int n, Vec (&parts)[2]) {
    const __mmask16 mask = Vec::mask(n / 2);
    interleave(_mm512_maskz_loadu_epi32(mask, values[0]), _mm512_maskz_loadu_epi32(mask, values[1]), parts);
  }
  // Within each quarter of the vectors.
  static void interleave(__m512i first, __m512i second, Vec (&parts)[2]) {
    parts[0] = vec_of(_mm512_unpacklo_epi16(first, second));
    parts[1] = vec_of(_mm512_unpackhi_epi16(first, second));
  }
  static int place(int lane, int part) { return lane / 4 * 8 + part * 4 + lane % 4; }
  static LANGPORT_INLINE Vec multiply_add(Vec a, Vec b, Vec sums) { return dot_pairs(sums, bits_of(a), bits_of(b)); }
};

// e ** x for x up to zero, to about 4e-6, a thousandth of what rounding to bfloat16 changes.
LANGPORT_INLINE Vec rough_exponential(Vec x) {
  const Vec y = Vec::max(Vec::all(-200.0f), x * Vec::all(1.44269504f));
  const Vec n = Vec::round(y);
  const Vec r = y - n;
  // 2 ** r, by least squares of the relative error between -1/2 and 1/2
  Vec p = Vec::all(9.600402372e-03f);
  p = Vec::fma(p, r, Vec::all(5.591693568e-02f));
  p = Vec::fma(p, r, Vec::all(2.402371854e-01f));
  p = Vec::fma(p, r, Vec::all(6.931219898e-01f));
  p = Vec::fma(p, r, Vec::all(1.0f));
  return {_mm512_scalef_ps(p.v, n.v)};
}

// The pairs of weights lie in the first half of where the scores were.
template <>
LANGPORT_INLINE Vec weights_of_scores<PairCache>(float* scores, float largest) {
  Vec total = Vec::zero();
  for (int t = 0; t < kContextTile; t += 2 * kWidth) {
    const Vec first = rough_exponential(Vec::load(scores + t) - Vec::all(largest));
    const Vec second = rough_exponential(Vec::load(scores + t + kWidth) - Vec::all(largest));
    const auto pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));
    _mm512_storeu_si512(scores + t / 2, pairs);
    Vec evens, odds;
    Vec::split(pairs, evens, odds);
    total = total + evens + odds;
  }
  return total;
}

double multiply_pairs(DType dtype, int64_t rounds) {
  if (dtype != kBFloat16) return multiply_adds(dtype, rounds);
  return multiply_in_registers(rounds, 4, [](Vec a, Vec b, Vec sums) { return dot_pairs(sums, bits_of(a), bits_of(b)); });
}

void attend_pairs(const AttentionJob& job, const QueryRun& run, int64_t first_head, int64_t heads, float* scratch) {
  if (job.dtype != kBFloat16 || job.key_scales != nullptr) return attend(job, run, first_head, heads, scratch);
  attend_cache<PairCache>(job, run, first_head, heads, scratch);
}

}  // namespace
