// Draws tokens: each row of a step's logits on its own, from the raw numbers to the token and its log-probability. What
// has to look at every number of a row is a kernel of the level; the rest is here.
//
// The order is that of engine/sampler.py: log-probabilities, edits, the grammar's mask, temperature, top-k, top-p of what
// is left, min-p. Nothing is sorted whole: what may be drawn is, most often, among few likeliest tokens, and where it is
// not, places in the sorted order are found by counting (`Range`).
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "api.h"
#include "pool.h"

namespace langport {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// A token whose logit is further below the largest has no chance: there the kernel of e ** x is zero, or nearly.
constexpr float kLeast = -87.0f;
// How many likeliest tokens are sorted before all are looked at: few, then some.
constexpr int64_t kHeads[] = {64, 1024};
constexpr int kRanges = 2048;
constexpr size_t kFew = 512;  // are sorted

struct Token {
  float number;
  int32_t id;
};

// Likelier tokens first; equally likely ones in the order of their ids.
bool is_before(const Token& a, const Token& b) { return a.number != b.number ? a.number > b.number : a.id < b.id; }

// How far one has come in the order: that many tokens lie before, of that weight together.
struct Place {
  int64_t count = 0;
  double weight = 0.0;
};

// What ends a walk through the order. The token at which it ends is not passed.
struct Stop {
  int64_t count = std::numeric_limits<int64_t>::max();         // so many tokens were passed
  double weight = std::numeric_limits<double>::infinity();     // these weigh as much, and there is one
  double through = std::numeric_limits<double>::infinity();    // with this token they weigh more
  double least = 0.0;                                          // it weighs less than that, and is not the first

  bool is_at(const Place& place, double token) const {
    if (place.count >= count || place.weight + token > through) return true;
    return place.count > 0 && (place.weight >= weight || token < least);
  }
  // Whether it may be reached among the next tokens, which weigh that much together; `have_less`: than `least`.
  bool may_be_in(const Place& place, int64_t tokens, double together, bool have_less) const {
    const double end = place.weight + together;
    return place.count + tokens > count || end >= weight || end > through || (have_less && least > 0.0);
  }
};

// Some tokens in the order of their ids, and their weights.
struct Tokens {
  std::vector<Token> tokens;
  std::vector<float> weights;
};

// The tokens of a list by the range of numbers that they lie in: each range comes before the next one.
struct Ranges {
  float largest = 0.0f, scale = 0.0f;
  std::vector<uint16_t> ranges;  // of each token
  std::vector<int64_t> counts;
  std::vector<double> weights;
  int first_less = kRanges;  // the first that holds a token below the least weight

  // False where all numbers are equal, or nearly.
  bool fit(const Tokens& list) {
    float least = largest = list.tokens[0].number;
    for (const Token& token : list.tokens) {
      largest = std::max(largest, token.number);
      least = std::min(least, token.number);
    }
    scale = kRanges / (largest - least);
    return scale < 1e30f;
  }
  void count(const Tokens& list, double least) {
    ranges.resize(list.tokens.size());
    counts.assign(kRanges, 0);
    weights.assign(kRanges, 0.0);
    first_less = kRanges;
    // Pointers of their own: the compiler need not look whether a store has moved a vector.
    uint16_t* const of = ranges.data();
    int64_t* const sums = counts.data();
    double* const weighed = weights.data();
    const float *const own = list.weights.data(), top = largest, factor = scale;
    const Token* const tokens = list.tokens.data();
    for (size_t i = 0; i < list.tokens.size(); i++) {
      const int range = static_cast<int>((top - tokens[i].number) * factor);
      of[i] = static_cast<uint16_t>(range < kRanges ? range : kRanges - 1);
    }
    for (size_t i = 0; i < list.tokens.size(); i++) {
      sums[of[i]]++;
      weighed[of[i]] += own[i];
    }
    if (least > 0.0)
      for (size_t i = 0; i < list.tokens.size(); i++)
        if (own[i] < least && of[i] < first_less) first_less = of[i];
  }
  void take(const Tokens& list, int range, Tokens& taken) const {
    taken.tokens.reserve(static_cast<size_t>(counts[range]));
    taken.weights.reserve(static_cast<size_t>(counts[range]));
    for (size_t i = 0; i < ranges.size(); i++) {
      if (ranges[i] != range) continue;
      taken.tokens.push_back(list.tokens[i]);
      taken.weights.push_back(list.weights[i]);
    }
  }
};

// Goes on through sorted tokens until the stop. Returns the token there, or the last that has a chance.
int64_t walk_sorted(const Tokens& list, const Stop& stop, Place& place) {
  int64_t last = -1;
  for (size_t i = 0; i < list.tokens.size(); i++) {
    if (stop.is_at(place, list.weights[i])) return list.tokens[i].id;
    if (list.weights[i] > 0.0f || last < 0) last = list.tokens[i].id;
    place.count++;
    place.weight += list.weights[i];
  }
  return last;
}

// Sorts tokens; their weights go with them.
void sort(Tokens& list) {
  std::vector<std::pair<Token, float>> both(list.tokens.size());
  for (size_t i = 0; i < both.size(); i++) both[i] = {list.tokens[i], list.weights[i]};
  std::sort(both.begin(), both.end(), [](const auto& a, const auto& b) { return is_before(a.first, b.first); });
  for (size_t i = 0; i < both.size(); i++) {
    list.tokens[i] = both[i].first;
    list.weights[i] = both[i].second;
  }
}

// Goes on through tokens in their order, of which only those near the stop are sorted. -1 where it is not among them.
int64_t walk(Tokens& list, const Stop& stop, Place& place);

int64_t walk_ranges(const Tokens& list, const Ranges& ranges, const Stop& stop, Place& place) {
  for (int range = 0; range < kRanges; range++) {
    const int64_t count = ranges.counts[range];
    if (count == 0) continue;
    if (stop.may_be_in(place, count, ranges.weights[range], range >= ranges.first_less)) {
      Tokens taken;
      ranges.take(list, range, taken);
      return walk(taken, stop, place);
    }
    place.count += count;
    place.weight += ranges.weights[range];
  }
  return -1;
}

int64_t walk(Tokens& list, const Stop& stop, Place& place) {
  Ranges ranges;
  if (list.tokens.size() <= kFew || !ranges.fit(list)) {
    sort(list);
    return walk_sorted(list, stop, place);
  }
  ranges.count(list, stop.least);
  return walk_ranges(list, ranges, stop, place);
}

// Memory that a thread keeps from row to row.
struct Memory {
  std::vector<float> numbers, largest, sums, some;
  Tokens list;
  Ranges ranges;
};

Memory& memory_of_thread() {
  static thread_local Memory* memory = new Memory;
  return *memory;
}

class Row {
 public:
  Row(const SampleJob& job, int64_t row)
      : job_(job),
        asked_(job.asked[row]),
        row_(row),
        kernels_(samples()),
        dtype_(static_cast<DType>(job.dtype)),
        source_(job.logits + static_cast<size_t>(row * job.stride) * size_of(dtype_)),
        mask_(asked_.mask < 0 ? nullptr : job.masks + asked_.mask * job.mask_words),
        memory_(memory_of_thread()) {
    blocks_ = (job.columns + kSampleBlock - 1) / kSampleBlock;
    memory_.numbers.resize(static_cast<size_t>(job.columns));
    memory_.largest.resize(static_cast<size_t>(blocks_));
    memory_.sums.resize(static_cast<size_t>(blocks_));
  }

  void draw() {
    const bool is_scored = asked_.num_likeliest >= 0, scores_raw = is_scored && !job_.scores_processed;
    const bool is_edited = asked_.num_edits > 0 || mask_ != nullptr;
    is_read_ = is_scored || is_edited || asked_.temperature > 0.0f;
    // Below float's reach a tiny temperature would divide to infinity; the limit is the same.
    const float divisor = asked_.temperature > 0.0f ? std::max(asked_.temperature, 1e-5f) : 1.0f;
    double log_sum = 0.0;
    if (is_edited || scores_raw) {
      read(dtype_, source_, 1.0f);
      if (scores_raw) log_sum = score();
      if (is_edited) edit();
      if (is_edited || divisor != 1.0f) read_again(divisor);
      if (largest_ == kNever && asked_.num_edits > 0 && mask_ != nullptr) {
        // Bans and the grammar together leave no token: only the grammar counts.
        read(dtype_, source_, 1.0f);
        mask();
        read_again(divisor);
      }
    } else {
      read(dtype_, source_, divisor);
    }
    if (is_scored && job_.scores_processed) log_sum = score();
    const int64_t token = asked_.temperature > 0.0f ? (is_filtered() ? draw_filtered() : draw_plain()) : first_largest();
    job_.tokens[row_] = token;
    if (!is_scored) return;
    const double number = scores_raw ? raw(token) : memory_.numbers[token];
    job_.logprobs[row_] = static_cast<float>(number - log_sum);
  }

 private:
  bool is_filtered() const { return asked_.top_p < 1.0 || asked_.top_k > 0 || asked_.min_p > 0.0; }

  void read(DType dtype, const char* source, float divisor) {
    float* x = is_read_ ? memory_.numbers.data() : nullptr;
    kernels_.read(dtype, source, job_.columns, divisor, x, memory_.largest.data());
    largest_ = *std::max_element(memory_.largest.begin(), memory_.largest.end());
    is_weighed_ = false;
  }
  void read_again(float divisor) {
    read(kFloat32, reinterpret_cast<const char*>(memory_.numbers.data()), divisor);
  }

  float raw(int64_t token) const {
    float number, largest;
    kernels_.read(dtype_, source_ + static_cast<size_t>(token) * size_of(dtype_), 1, 1.0f, &number, &largest);
    return number;
  }

  int64_t size_of_block(int64_t block) const { return std::min(kSampleBlock, job_.columns - block * kSampleBlock); }

  // ---- Edits ----

  void edit() {
    for (int64_t i = 0; i < asked_.num_edits; i++) make(job_.edits[asked_.first_edit + i]);
    if (mask_ != nullptr) mask();
  }

  void make(const SampleEdit& edit) {
    float* x = memory_.numbers.data();
    const int32_t* columns = job_.edit_columns + edit.first;
    const float* values = job_.edit_values + edit.first;
    // A token that the logits do not know is left out.
    const auto each = [&](auto&& change) {
      for (int64_t i = 0; i < edit.count; i++)
        if (columns[i] >= 0 && columns[i] < job_.columns) change(x[columns[i]], i);
    };
    switch (edit.kind) {
      case kPenalize:
        return each([&](float& number, int64_t) { number = number > 0 ? number / edit.penalty : number * edit.penalty; });
      case kKeepOnly: {
        memory_.some.assign(static_cast<size_t>(edit.count), kNever);
        each([&](float& number, int64_t i) { memory_.some[i] = number; });
        std::fill_n(x, job_.columns, kNever);
        return each([&](float& number, int64_t i) { number = memory_.some[i]; });
      }
      case kAdd: return each([&](float& number, int64_t i) { number += values[i]; });
      case kBan: return each([&](float& number, int64_t) { number = kNever; });
      case kForce:
        std::fill_n(x, job_.columns, kNever);
        return each([&](float& number, int64_t) { number = 0.0f; });
    }
  }

  void mask() {
    float* x = memory_.numbers.data();
    const int64_t words = std::min(job_.mask_words, (job_.columns + 31) / 32);
    for (int64_t word = 0; word < words; word++) {
      const uint32_t bits = mask_[word];
      if (bits == 0xffffffffu) continue;
      const int64_t first = word * 32, count = std::min<int64_t>(32, job_.columns - first);
      for (int64_t i = 0; i < count; i++) x[first + i] = bits >> i & 1 ? x[first + i] : kNever;
    }
  }

  // ---- Log-probabilities ----

  // What a number exceeds its log-probability by; and the likeliest tokens are found.
  double score() {
    weigh();
    const double log_sum = largest_ + std::log(total_);
    const int64_t wanted = std::min({static_cast<int64_t>(asked_.num_likeliest), job_.most_likeliest, job_.columns});
    if (wanted > 0) find_likeliest(wanted, log_sum);
    return log_sum;
  }

  void find_likeliest(int64_t wanted, double log_sum) {
    std::vector<Token>& found = memory_.list.tokens;
    gather(wanted <= blocks_ ? largest_of_blocks(wanted) : kNever);
    const auto count = std::min(static_cast<size_t>(wanted), found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end(), is_before);
    for (int64_t i = 0; i < wanted; i++) {
      // Fewer are there only where logits are no numbers.
      const Token token = static_cast<size_t>(i) < count ? found[i] : Token{std::nanf(""), 0};
      job_.likeliest[row_ * job_.most_likeliest + i] = token.id;
      job_.likeliest_logprobs[row_ * job_.most_likeliest + i] = static_cast<float>(token.number - log_sum);
    }
  }

  // ---- Draws ----

  // The weight of every block, and of all.
  void weigh() {
    if (is_weighed_) return;
    total_ = 0.0;
    for (int64_t block = 0; block < blocks_; block++) {
      const float* x = memory_.numbers.data() + block * kSampleBlock;
      memory_.sums[block] = kernels_.exponentials(x, size_of_block(block), largest_, nullptr);
      total_ += memory_.sums[block];
    }
    is_weighed_ = true;
  }

  // The first of the largest numbers. Of a row that is not read only one block is looked at.
  int64_t first_largest() const {
    const auto& largest = memory_.largest;
    const int64_t block = std::max_element(largest.begin(), largest.end()) - largest.begin();
    const int64_t first = block * kSampleBlock, size = size_of_block(block);
    const float* x = memory_.numbers.data() + first;
    float raw[kSampleBlock], ignored;
    if (!is_read_) {
      kernels_.read(dtype_, source_ + static_cast<size_t>(first) * size_of(dtype_), size, 1.0f, raw, &ignored);
      x = raw;
    }
    const int64_t place = std::find(x, x + size, largest_) - x;
    return place < size ? first + place : 0;
  }

  // The first token at which the weights, added up by blocks and then within one, pass the row's number.
  int64_t draw_plain() {
    weigh();
    const double target = asked_.number * total_;
    double before = 0.0;
    int64_t block = 0, last = -1;
    for (; block < blocks_; block++) {
      if (memory_.sums[block] > 0.0f) last = block;
      if (before + memory_.sums[block] > target) break;
      before += memory_.sums[block];
    }
    if (last < 0) return first_largest();
    if (block == blocks_) {
      block = last;
      before -= memory_.sums[last];
    }
    float weights[kSampleBlock];
    const int64_t size = size_of_block(block);
    kernels_.exponentials(memory_.numbers.data() + block * kSampleBlock, size, largest_, weights);
    int64_t place = -1;  // the block's sum may be larger by its last bits than its numbers one by one
    for (int64_t i = 0; i < size; i++) {
      if (weights[i] > 0.0f) place = i;
      before += weights[i];
      if (before > target && weights[i] > 0.0f) break;
    }
    return place < 0 ? first_largest() : block * kSampleBlock + place;
  }

  // The `count`-th largest of the largest numbers of the blocks: at least so many tokens are that likely.
  float largest_of_blocks(int64_t count) {
    memory_.some = memory_.largest;
    const auto place = memory_.some.begin() + (count - 1);
    std::nth_element(memory_.some.begin(), place, memory_.some.end(), [](float a, float b) { return a > b; });
    return *place;
  }

  // All tokens from `least` on, in the order of their ids.
  void gather(float least) {
    std::vector<Token>& found = memory_.list.tokens;
    size_t count = 0;
    const float* const x = memory_.numbers.data();
    for (int64_t block = 0; block < blocks_; block++) {
      if (!(memory_.largest[block] >= least)) continue;
      const int64_t begin = block * kSampleBlock, end = begin + size_of_block(block);
      if (found.size() < count + kSampleBlock) found.resize(2 * count + kSampleBlock);
      Token* const to = found.data();
      for (int64_t i = begin; i < end; i++) {
        to[count] = {x[i], static_cast<int32_t>(i)};
        count += x[i] >= least;  // without a branch, which is guessed wrong where few are taken
      }
    }
    found.resize(count);
  }

  void weigh_gathered() {
    const auto& found = memory_.list.tokens;
    memory_.some.resize(found.size());
    memory_.list.weights.resize(found.size());
    for (size_t i = 0; i < found.size(); i++) memory_.some[i] = found[i].number;
    kernels_.exponentials(memory_.some.data(), static_cast<int64_t>(found.size()), largest_, memory_.list.weights.data());
  }

  int64_t draw_filtered() {
    if (asked_.top_k == 0 && asked_.top_p < 1.0) weigh();
    const float least = largest_ + kLeast;
    if (!(least > kNever)) return first_largest();
    for (const int64_t size : kHeads) {
      // Of 3/4 of the blocks the largest: then some 1.4 tokens a block are likelier.
      const int64_t wanted = std::min(size, blocks_ * 3 / 4);
      const bool is_whole = job_.columns <= size;
      if (!is_whole && (wanted == 0 || asked_.top_k > wanted)) continue;
      const float head = is_whole ? least : largest_of_blocks(wanted);
      gather(std::max(head, least));
      std::sort(memory_.list.tokens.begin(), memory_.list.tokens.end(), is_before);
      weigh_gathered();
      const int64_t token = draw_from(head <= least, [&](const Stop& stop, Place& place) {
        return walk_sorted(memory_.list, stop, place);
      });
      if (token >= 0) return token;
    }
    gather(least);
    weigh_gathered();
    Ranges& ranges = memory_.ranges;
    const bool is_ranged = memory_.list.tokens.size() > kFew && ranges.fit(memory_.list);
    if (is_ranged) {
      ranges.count(memory_.list, asked_.min_p);
    } else {
      sort(memory_.list);
    }
    return draw_from(true, [&](const Stop& stop, Place& place) {
      return is_ranged ? walk_ranges(memory_.list, ranges, stop, place) : walk_sorted(memory_.list, stop, place);
    });
  }

  // Draws from the first tokens of the order that top-k, top-p and min-p leave; `go` walks through it. Without
  // `has_all`, -1 where these may be more than the gathered ones.
  template <class Walk>
  int64_t draw_from(bool has_all, Walk&& go) {
    const auto gathered = static_cast<int64_t>(memory_.list.tokens.size());
    Stop end;
    if (asked_.top_k > 0) end.count = asked_.top_k;
    if (asked_.top_p < 1.0) {
      double of = total_;
      if (asked_.top_k > 0) {
        Place top;
        go(end, top);
        of = top.weight;
      }
      end.weight = asked_.top_p * of;
    }
    end.least = asked_.min_p;
    Place kept;
    go(end, kept);
    if (!has_all && kept.count == gathered && kept.count < end.count) return -1;
    Stop drawn;
    drawn.count = kept.count - 1;
    drawn.through = asked_.number * kept.weight;
    Place place;
    return go(drawn, place);
  }

  const SampleJob& job_;
  const SampleRow& asked_;
  int64_t row_;
  const SampleKernels& kernels_;
  DType dtype_;
  const char* source_;
  const uint32_t* mask_;
  Memory& memory_;
  int64_t blocks_;
  float largest_ = kNever;
  double total_ = 0.0;
  bool is_read_ = true;  // the numbers are in memory as floats
  bool is_weighed_ = false;
};

}  // namespace
}  // namespace langport

using namespace langport;

LANGPORT_API void langport_sample(const SampleJob* job) {
  share_rows(job->rows, job->columns, [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; row++) Row(*job, row).draw();
  });
}
