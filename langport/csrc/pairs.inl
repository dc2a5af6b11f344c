// Pairs of bfloat16 by vdpbf16ps, which multiplies them and adds them up in float32. Included after kernels.inl.
#pragma once

namespace {

LANGPORT_INLINE Vec dot_pairs(Vec sums, __m512i a, __m512i b) {
  return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
}

// Like BFloat16Cache, with queries kept as pairs.
struct PairCache : BFloat16Cache {
  struct Query {
    __m512i pairs;
  };

  static void read_query(const char* p, int n, float* q) {
    _mm512_storeu_si512(q, _mm512_maskz_loadu_epi32(Vec::mask(n / 2), p));
  }
  static Query query(const float* q) { return {_mm512_loadu_si512(q)}; }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, Vec sums) {
    return dot_pairs(sums, q.pairs, _mm512_loadu_si512(key));
  }
  static LANGPORT_INLINE Vec dot(const Query& q, const char* key, int n, Vec sums) {
    return dot_pairs(sums, q.pairs, _mm512_maskz_loadu_epi32(Vec::mask(n / 2), key));
  }
};

void attend_pairs(const AttentionJob& job, const QueryRun& run, int64_t kv_head, float* scratch) {
  if (job.dtype != kBFloat16) return attend(job, run, kv_head, scratch);
  attend_cache<PairCache>(job, run, kv_head, scratch);
}

}  // namespace
