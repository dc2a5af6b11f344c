// Compares levels of the kernels with the portable one, on random numbers, where there is no Python to do it: under an
// emulator of another processor. Arguments: the levels. Prints what differs; ends with 1 if anything does.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "api.h"
#include "sample.h"

using namespace langport;

LANGPORT_API const char* langport_choose_level(const char* name);
LANGPORT_API void langport_set_threads(int32_t count);
LANGPORT_API PackedWeight* langport_pack(int32_t dtype, int64_t n, int64_t k, const void* source, int64_t stride);
LANGPORT_API PackedInts* langport_pack_ints(
    int32_t dtype, int32_t bits, int64_t n, int64_t k, int64_t group, const int8_t* values, const void* scales);
LANGPORT_API void langport_rms_norm(
    int32_t dtype, int64_t num_tokens, int64_t heads, int64_t columns, const void* x, int64_t token_stride,
    int64_t head_stride, const void* weight, float offset, float epsilon, void* out);
LANGPORT_API void langport_sample(const SampleJob* job);

namespace {

using Bytes = std::vector<char>;
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

std::mt19937 random_numbers(1);

float read(DType dtype, const char* p) {
  if (dtype == kFloat32) {
    float x;
    std::memcpy(&x, p, 4);
    return x;
  }
  if (dtype == kFloat16) {
    Half x;
    std::memcpy(&x, p, 2);
    return static_cast<float>(x);
  }
  const uint32_t bits = static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(p)) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void write(DType dtype, char* p, float x) {
  if (dtype == kFloat32) {
    std::memcpy(p, &x, 4);
  } else if (dtype == kFloat16) {
    const auto half = static_cast<Half>(x);
    std::memcpy(p, &half, 2);
  } else {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const auto high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(p, &high, 2);
  }
}

Bytes numbers(DType dtype, int64_t count, float spread = 1.0f) {
  std::normal_distribution<float> normal(0.0f, spread);
  Bytes bytes(static_cast<size_t>(count) * size_of(dtype));
  for (int64_t i = 0; i < count; i++) write(dtype, bytes.data() + static_cast<size_t>(i) * size_of(dtype), normal(random_numbers));
  return bytes;
}

struct Result {
  std::string what;
  DType dtype;
  bool is_exact;  // the same bits at every level
  Bytes bytes;
};

class Run {
 public:
  explicit Run(const char* level) : level_(level) {
    if (!langport_choose_level(level)) {
      std::printf("%s: not here\n", level);
      failed = true;
    }
    random_numbers.seed(1);
    for (const DType dtype : {kFloat32, kBFloat16, kFloat16}) {
      linears(dtype);
      integers(dtype, 8, 0);
      integers(dtype, 8, 128);
      integers(dtype, 4, 32);
      for (const bool in_int8 : {false, true}) {
        attention(dtype, 64, 0, in_int8);
        attention(dtype, 40, 5, in_int8);
      }
      rows(dtype);
      samples(dtype);
    }
  }

  std::vector<Result> results;
  bool failed = false;

 private:
  // A row alone must have the bits that it has among others.
  template <class F>
  void keep_rows(const std::string& what, DType dtype, bool is_exact, int64_t rows, int64_t columns, F multiply) {
    const size_t row_bytes = static_cast<size_t>(columns) * size_of(dtype);
    Bytes whole(static_cast<size_t>(rows) * row_bytes), alone(row_bytes);
    multiply(0, rows, whole.data());
    for (int64_t row = 0; row < rows; row++) {
      multiply(row, 1, alone.data());
      if (std::memcmp(alone.data(), whole.data() + static_cast<size_t>(row) * row_bytes, row_bytes)) {
        std::printf("%s: %s: row %d has other bits alone\n", level_, what.c_str(), static_cast<int>(row));
        failed = true;
      }
    }
    results.push_back({what, dtype, is_exact, whole});
  }

  void linears(DType dtype) {
    for (const int64_t k : {1, 63, 130, 300}) {
      constexpr int64_t kRows = 13, kColumns = 70;
      const Bytes weight = numbers(dtype, kColumns * k, 1.0f / std::sqrt(static_cast<float>(k)));
      const Bytes x = numbers(dtype, kRows * k), bias = numbers(dtype, kColumns);
      const PackedWeight* packed = langport_pack(dtype, kColumns, k, weight.data(), k);
      keep_rows("linear of " + std::to_string(k), dtype, false, kRows, kColumns, [&](int64_t row, int64_t count, char* out) {
        const char* first = x.data() + static_cast<size_t>(row * k) * size_of(dtype);
        langport_linear(packed, count, first, k, bias.data(), out, kColumns);
      });
    }
  }

  void integers(DType dtype, int bits, int64_t group) {
    constexpr int64_t kRows = 13, kColumns = 70, kDepth = 512;
    std::uniform_int_distribution<int> whole(bits == 8 ? -128 : -8, bits == 8 ? 127 : 7);
    std::vector<int8_t> values(static_cast<size_t>(kColumns * kDepth));
    for (auto& value : values) value = static_cast<int8_t>(whole(random_numbers));
    const int64_t per_scale = group ? group : kDepth;
    const Bytes scales = numbers(dtype, kColumns * kDepth / per_scale, 0.01f);
    const Bytes x = numbers(dtype, kRows * kDepth), bias = numbers(dtype, kColumns);
    const PackedInts* packed = langport_pack_ints(dtype, bits, kColumns, kDepth, per_scale, values.data(), scales.data());
    const std::string what = "int" + std::to_string(bits) + " in groups of " + std::to_string(per_scale);
    keep_rows(what, dtype, true, kRows, kColumns, [&](int64_t row, int64_t count, char* out) {
      const char* first = x.data() + static_cast<size_t>(row * kDepth) * size_of(dtype);
      langport_int_linear(packed, count, first, kDepth, bias.data(), out, kColumns);
    });
  }

  void attention(DType dtype, int64_t head_dim, int64_t window, bool in_int8) {
    constexpr int64_t kHeads = 4, kKvHeads = 2, kBlock = 16, kBlocks = 12;
    const int64_t counts[] = {37, 1, 5}, positions[] = {0, 90, 20}, first_rows[] = {0, 37, 38};
    const int64_t tables[] = {1, 2, 3, 0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11, 0, 0, 0, 0};
    const int64_t num_tokens = 43;
    const Bytes query = numbers(dtype, num_tokens * kHeads * head_dim);
    const int64_t heads = kBlocks * kBlock * kKvHeads;
    // Any byte is a whole number of 8 bits.
    Bytes keys = numbers(dtype, heads * head_dim), values = numbers(dtype, heads * head_dim);
    std::vector<float> scales(static_cast<size_t>(heads));
    for (auto& scale : scales) scale = std::uniform_real_distribution<float>(0.005f, 0.02f)(random_numbers);
    Bytes out(query.size());
    AttentionJob job = {};
    job.dtype = dtype;
    job.heads = kHeads;
    job.kv_heads = kKvHeads;
    job.head_dim = head_dim;
    job.block_size = kBlock;
    job.query = query.data();
    job.query_token_stride = kHeads * head_dim;
    job.query_head_stride = head_dim;
    job.keys = keys.data();
    job.values = values.data();
    if (in_int8) job.key_scales = job.value_scales = scales.data();
    job.out = out.data();
    job.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    job.softcap = window ? 30.0f : 0.0f;
    job.window = window;
    job.is_causal = true;
    job.own_column = -1;
    const SequenceList list = {3, first_rows, positions, counts, tables, 6};
    langport_attend(&job, &list);
    results.push_back({(in_int8 ? "int8 attention with heads of " : "attention with heads of ") + std::to_string(head_dim), dtype, false, out});
  }

  void rows(DType dtype) {
    constexpr int64_t kRows = 3, kColumns = 101;
    const Bytes x = numbers(dtype, kRows * kColumns), other = numbers(dtype, kRows * kColumns);
    Bytes out(x.size());
    langport_rms_norm(dtype, kRows, 1, kColumns, x.data(), kColumns, kColumns, other.data(), 1.0f, 1e-6f, out.data());
    results.push_back({"norm", dtype, false, out});
    langport_silu_mul(dtype, kRows, kColumns, x.data(), other.data(), kColumns, out.data());
    results.push_back({"silu", dtype, false, out});
    langport_gelu_mul(dtype, kRows, kColumns, x.data(), other.data(), kColumns, out.data());
    results.push_back({"gelu", dtype, false, out});
  }

  // Log-probabilities of tokens: of the likeliest, and of drawn ones, which are the same at every level for these numbers.
  void samples(DType dtype) {
    constexpr int64_t kRows = 5, kColumns = 1003, kLikeliest = 3;
    const Bytes logits = numbers(dtype, kRows * kColumns, 3.0f);
    const SampleRow asked[kRows] = {
        {0.5, 1.0, 0.0, 0, 0, 0, -1, 0.0f, 0},  {0.5, 1.0, 0.0, 0, 0, 0, -1, 0.7f, 3}, {0.25, 0.9, 0.0, 0, 0, 0, -1, 1.3f, 3},
        {0.75, 1.0, 0.0, 20, 0, 0, -1, 1.0f, 1}, {0.5, 1.0, 0.05, 0, 0, 0, -1, 1.0f, 3}};
    int64_t tokens[kRows], likeliest[kRows * kLikeliest];
    Bytes logprobs(kRows * 4), likeliest_logprobs(kRows * kLikeliest * 4);
    SampleJob job = {};
    job.dtype = dtype;
    job.rows = kRows;
    job.columns = job.stride = kColumns;
    job.logits = logits.data();
    job.asked = asked;
    job.most_likeliest = kLikeliest;
    job.tokens = tokens;
    job.logprobs = reinterpret_cast<float*>(logprobs.data());
    job.likeliest = likeliest;
    job.likeliest_logprobs = reinterpret_cast<float*>(likeliest_logprobs.data());
    langport_sample(&job);
    results.push_back({"log-probabilities of draws", kFloat32, false, logprobs});
    results.push_back({"log-probabilities of the likeliest", kFloat32, false, likeliest_logprobs});
  }

  const char* level_;
};

// Two roundings of the type.
float tolerance(DType dtype) { return dtype == kFloat32 ? 2e-5f : dtype == kBFloat16 ? 0.016f : 0.002f; }

bool differ(const char* level, const Result& found, const Result& expected) {
  if (found.is_exact && found.bytes == expected.bytes) return false;
  float largest = 0;
  const size_t size = size_of(found.dtype);
  for (size_t at = 0; at < found.bytes.size(); at += size) {
    const float a = read(found.dtype, found.bytes.data() + at), b = read(found.dtype, expected.bytes.data() + at);
    const float error = std::fabs(a - b) / (1.0f + std::fabs(b));
    if (!(error <= largest)) largest = error;  // also where one is no number
  }
  const bool is_wrong = found.is_exact || !(largest <= tolerance(found.dtype));
  if (is_wrong) std::printf("%s: %s, type %d: off by %g\n", level, found.what.c_str(), found.dtype, static_cast<double>(largest));
  return is_wrong;
}

}  // namespace

int main(int argc, char** argv) {
  langport_set_threads(2);
  const Run expected("portable");
  bool has_failed = expected.failed;
  for (int i = 1; i < argc; i++) {
    const Run found(argv[i]);
    has_failed |= found.failed;
    for (size_t j = 0; j < found.results.size(); j++) has_failed |= differ(argv[i], found.results[j], expected.results[j]);
    std::printf("%s: %d results compared\n", argv[i], static_cast<int>(found.results.size()));
  }
  return has_failed;
}
