// The C interface that Python calls through ctypes: choosing a level, packing weights, sharing out the work.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "api.h"
#include "bulk.h"
#include "encoder.h"
#include "ints.h"
#include "kernels.h"
#include "pool.h"
#include "sample.h"
#include "scratch.h"
#include "step.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(LANGPORT_X86)
#include <cpuid.h>
#endif
#if defined(LANGPORT_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace langport {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Rows of x are packed for this many bytes at a time, so that they stay in a core's cache beside a panel.
constexpr size_t kTileBytes = size_t{3} << 19;

// From so many rows on, weights are widened once for all of them.
constexpr int64_t kFewestBulkRows = 64;
constexpr int64_t kBulkNumbers = int64_t{1} << 20;  // of rows that are packed at a time
constexpr int64_t kBulkPieceRows = 168;
constexpr int64_t kBulkPanels = 4;  // that a piece has at most
constexpr int64_t kBulkItemsPerThread = 4;

// Zeroed memory, in huge pages where there are some: reading weights through small pages costs a quarter of the bandwidth.
char* map_memory(size_t bytes) {
#if defined(__linux__)
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
  return static_cast<char*>(p);
#else
  void* p = nullptr;
  if (posix_memalign(&p, 4096, bytes) != 0) return nullptr;
  std::memset(p, 0, bytes);
  return static_cast<char*>(p);
#endif
}

void unmap_memory(char* p, size_t bytes) {
#if defined(__linux__)
  munmap(p, bytes);
#else
  (void)bytes;
  free(p);
#endif
}

// Memory for all panels of a weight whose shape is set. Where there is none, the weight is gone, too.
template <class Weight>
bool give_memory(Weight* weight) {
  weight->mapped_bytes = static_cast<size_t>(weight->panels) * weight->panel_bytes();
  weight->data = map_memory(weight->mapped_bytes);
  const bool is_there = weight->data != nullptr;
  if (!is_there) delete weight;
  return is_there;
}

template <class Weight>
void take_back(Weight* weight) {
  unmap_memory(weight->data, weight->mapped_bytes);
  delete weight;
}

constexpr int kMaxThreads = 256;

struct Scratches {
  Scratch shared;
  Scratch own[kMaxThreads];
};

// Of the calling thread: several may call at once.
Scratches& scratches() {
  static thread_local Scratches* of_thread = new Scratches;
  return *of_thread;
}

#if defined(LANGPORT_X86)
bool has(unsigned leaf, unsigned subleaf, int reg, int bit) {
  unsigned r[4];
  if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
  return r[reg] >> bit & 1;
}

// Whether the system saves the registers named by `mask` when it switches threads.
bool saves(unsigned mask) {
  if (!has(1, 0, 2, 27)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & mask) == mask;
}

constexpr int kEax = 0, kEbx = 1, kEcx = 2, kEdx = 3;

bool has_avx2() { return saves(0x06) && has(7, 0, kEbx, 5) && has(1, 0, kEcx, 12) && has(1, 0, kEcx, 29); }
bool has_avx512() {
  return has_avx2() && saves(0xe6) && has(7, 0, kEbx, 16) && has(7, 0, kEbx, 17) && has(7, 0, kEbx, 30) && has(7, 0, kEbx, 31);
}
bool has_avx512_vnni() { return has_avx512() && has(7, 0, kEcx, 11); }
bool has_avx512_bf16() { return has_avx512_vnni() && has(7, 1, kEax, 5); }

// Linux wants to be asked before a process uses tile registers.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  return has_avx512_bf16() && saves(0x600e6) && has(7, 0, kEdx, 22) && has(7, 0, kEdx, 24) && may_use_tiles();
}
#endif

#if defined(LANGPORT_ARM)
bool has_neon_dot() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#else
  return false;
#endif
}
#endif

struct Choice {
  const Level* level;
  const SampleKernels* samples;
};

const Level* g_level = nullptr;
const SampleKernels* g_samples = nullptr;

Choice find_level(const char* name) {
  Choice best = {portable_level(), portable_samples()};
  if (name && std::strcmp(name, best.level->name) == 0) return best;
#if defined(LANGPORT_X86) || defined(LANGPORT_ARM)
  const struct {
    Choice choice;
    bool is_here;
  } levels[] = {
#if defined(LANGPORT_X86)
      {{avx2_level(), avx2_samples()}, has_avx2()},
      {{avx512_level(), avx512_samples()}, has_avx512()},
      {{avx512_vnni_level(), avx512_samples()}, has_avx512_vnni()},
      {{avx512_bf16_level(), avx512_samples()}, has_avx512_bf16()},
      {{amx_level(), avx512_samples()}, has_amx()},
#else
      {{neon_level(), neon_samples()}, true},
      {{neon_dot_level(), neon_samples()}, has_neon_dot()},
#endif
  };
  for (const auto& entry : levels) {
    if (!entry.is_here) continue;
    if (name && std::strcmp(name, entry.choice.level->name) == 0) return entry.choice;
    best = entry.choice;
  }
#endif
  return name ? Choice{} : best;
}

constexpr int64_t kPackStep = 16;  // lines: a cache line of each row at a time

// Four bytes of a row, two numbers or one, where they belong in their line.
void pack_pair(DType dtype, char* line, int64_t column, const char* pair) {
  if (dtype == kFloat16) {
    std::memcpy(line + column * 2, pair, 2);
    std::memcpy(line + 64 + column * 2, pair + 2, 2);
  } else {
    std::memcpy(line + column * 4, pair, 4);
  }
}

void pack_panel(const PackedWeight& weight, int64_t panel, const char* source, int64_t stride) {
  const size_t size = size_of(weight.dtype);
  const int per_line = weight.dtype == kFloat32 ? 1 : 2;
  char* lines = weight.data + static_cast<size_t>(panel) * weight.panel_bytes();
  const int64_t first = panel * kPanelColumns;
  const int64_t columns = weight.n - first < kPanelColumns ? weight.n - first : kPanelColumns;
  for (int64_t begin = 0; begin < weight.lines; begin += kPackStep) {
    const bool is_full = (begin + kPackStep) * per_line <= weight.k;
    char* target = lines + begin * kLineBytes;
    for (int64_t column = 0; column < columns; column++) {
      const char* row = source + static_cast<size_t>((first + column) * stride + begin * per_line) * size;
      if (is_full) {
        for (int64_t i = 0; i < kPackStep; i++) pack_pair(weight.dtype, target + i * kLineBytes, column, row + i * 4);
        continue;
      }
      for (int64_t i = 0; i < kPackStep; i++) {
        const int64_t left = weight.k - (begin + i) * per_line;
        if (left <= 0) break;
        char pair[4] = {};
        std::memcpy(pair, row + i * 4, left < per_line ? size : 4);
        pack_pair(weight.dtype, target + i * kLineBytes, column, pair);
      }
    }
  }
}

// The numbers of one row that share a line, as its column's four bytes; `count` of them are there, the rest are empty.
void pack_numbers(int bits, char* target, const int8_t* numbers, int64_t count) {
  uint8_t bytes[4] = {};
  for (int64_t i = 0; i < count; i++)
    bytes[i % 4] |= static_cast<uint8_t>(bits == 8 ? numbers[i] + 128 : (numbers[i] + 8) << (i < 4 ? 0 : 4));
  std::memcpy(target, bytes, 4);
}

void pack_int_panel(const PackedInts& weight, int64_t panel, const int8_t* values, const char* scales) {
  const size_t size = size_of(weight.dtype);
  const int64_t first = panel * kPanelColumns, per_line = weight.per_line();
  const int64_t columns = weight.n - first < kPanelColumns ? weight.n - first : kPanelColumns;
  char* start = weight.data + static_cast<size_t>(panel) * weight.panel_bytes();
  for (int64_t index = 0; index < weight.blocks; index++) {
    char* lines = start + static_cast<size_t>(index) * weight.block_bytes();
    const int64_t num_lines = weight.lines_of(index);
    const int64_t left = weight.k - index * weight.block, numbers = left < weight.block ? left : weight.block;
    const bool has_scales = weight.is_grouped || index + 1 == weight.blocks;
    for (int64_t column = 0; column < columns; column++) {
      const int8_t* row = values + (first + column) * weight.k + index * weight.block;
      char* target = lines + column * 4;
      int64_t i = 0;
      for (; i + per_line <= numbers; i += per_line, target += kLineBytes)
        if (per_line == 4)
          pack_numbers(8, target, row + i, 4);
        else
          pack_numbers(4, target, row + i, 8);
      if (i < numbers) pack_numbers(weight.bits, target, row + i, numbers - i);
      if (has_scales) {
        const int64_t scale = weight.is_grouped ? (first + column) * weight.blocks + index : first + column;
        std::memcpy(
            lines + num_lines * kLineBytes + static_cast<size_t>(column) * size,
            scales + static_cast<size_t>(scale) * size, size);
      }
    }
  }
}

// Where item i of `items` begins among `panels`: a large piece for every thread first, then small ones, so that a
// thread that was held up leaves little to wait for.
struct PanelSplit {
  int64_t panels, large, num_large, small, items;

  PanelSplit(int64_t count, int num_threads) : panels(count) {
    num_large = num_threads > 1 && count >= 4 * num_threads ? num_threads : 0;
    large = num_large ? count * 3 / (4 * num_threads) : 0;
    const int64_t left = count - large * num_large;
    small = num_threads == 1 ? count : left / (4 * num_threads);
    if (small < 1) small = 1;
    items = num_large + (left + small - 1) / small;
  }
  int64_t begin(int64_t item) const {
    const int64_t at = item <= num_large ? item * large : num_large * large + (item - num_large) * small;
    return at < panels ? at : panels;
  }
};

// Multiplies every panel with every tile, the panels shared among the threads. pack(tile, target) packs a tile's rows, at
// `row_bytes` a row; multiply(panel, tile, packed, has_next) multiplies them;
// `has_next` says that the same thread will read the panel after it, and this is one of the first two tiles.
template <class Pack, class Multiply>
void multiply(int64_t panels, const Tiles& tiles, size_t row_bytes, Pack&& pack, Multiply&& multiply_one) {
  Scratches& scratch = scratches();
  // One tile is packed by every thread for itself, which is quicker than to fetch it from another core.
  const bool is_private = tiles.count == 1;
  char* packed = nullptr;
  bool is_packed[kMaxThreads] = {};
  if (is_private) {
    for (int i = 0; i < threads(); i++) scratch.own[i].at_least(static_cast<size_t>(tiles.rows) * row_bytes);
  } else {
    packed = scratch.shared.at_least(static_cast<size_t>(tiles.rows) * row_bytes);
    share(tiles.count, [&](int64_t tile, int) {
      pack(tile, packed + static_cast<size_t>(tiles.begin(tile)) * row_bytes);
    });
  }
  const PanelSplit split(panels, threads());
  share(split.items, [&](int64_t item, int thread) {
    char* rows = is_private ? scratch.own[thread].at_least(0) : packed;
    if (is_private && !is_packed[thread]) {
      pack(0, rows);
      is_packed[thread] = true;
    }
    const int64_t end = split.begin(item + 1);
    for (int64_t panel = split.begin(item); panel < end; panel++) {
      for (int64_t tile = 0; tile < tiles.count; tile++) {
        const bool has_next = panel + 1 < end && tile < 2;
        multiply_one(panel, tile, rows + static_cast<size_t>(tiles.begin(tile)) * row_bytes, has_next);
      }
    }
  });
}

// Tiles of at most `max_rows` rows, as many of them in one pass as stay in a core's cache beside a panel.
template <class Pass>
void in_passes(int64_t rows, int max_rows, size_t row_bytes, Pass&& pass_over) {
  int64_t tiles_per_pass = static_cast<int64_t>(kTileBytes / (row_bytes * static_cast<size_t>(max_rows)));
  if (tiles_per_pass < 2) tiles_per_pass = 2;
  const int64_t all_tiles = (rows + max_rows - 1) / max_rows;
  const int64_t passes = (all_tiles + tiles_per_pass - 1) / tiles_per_pass;
  for (int64_t pass = 0; pass < passes; pass++) {
    const int64_t begin = rows * pass / passes, end = rows * (pass + 1) / passes;
    pass_over(begin, Tiles{end - begin, (end - begin + max_rows - 1) / max_rows});
  }
}

// What a level has for many rows; null: it multiplies them as it does few.
const BulkKernels* bulk_of(const Level* level) {
#if defined(LANGPORT_X86)
  if (level == avx2_level()) return avx2_bulk_kernels();
#endif
  (void)level;
  return nullptr;
}

// Many rows: the rows are packed, then pieces of the result, some rows times a few panels, are shared among the threads.
// `after` is called with the first row, the number of rows, the first column and the number of columns of every piece,
// whose numbers are then in the core's cache.
template <class After>
void multiply_bulk(
    const BulkKernels& kernels, const PackedWeight& weight, int64_t rows, const char* x, int64_t x_stride,
    const void* bias, char* out, int64_t out_stride, After&& after) {
  const size_t size = size_of(weight.dtype);
  const int64_t numbers = bulk_numbers(weight);
  const auto tiles_of = [&](int64_t count) { return (count + kernels.tile_rows - 1) / kernels.tile_rows; };
  const int64_t passes = (rows * numbers + kBulkNumbers - 1) / kBulkNumbers;
  Scratches& scratch = scratches();
  for (int64_t pass = 0; pass < passes; pass++) {
    const int64_t first = rows * pass / passes;
    const int64_t here = rows * (pass + 1) / passes - first;
    const Tiles pieces{here, (here + kBulkPieceRows - 1) / kBulkPieceRows};
    const int64_t items = pieces.count * weight.panels / (kBulkItemsPerThread * threads());
    const int64_t panels = items < 1 ? 1 : items < kBulkPanels ? items : kBulkPanels;
    const int64_t groups = (weight.panels + panels - 1) / panels;
    auto* packed = reinterpret_cast<float*>(scratch.shared.at_least(static_cast<size_t>(here * numbers) * sizeof(float)));
    share(pieces.count, [&](int64_t piece, int) {
      const Tiles split{pieces.size(piece), tiles_of(pieces.size(piece))};
      for (int64_t tile = 0; tile < split.count; tile++) {
        const int64_t row = pieces.begin(piece) + split.begin(tile);
        kernels.pack_rows(
            weight, x + static_cast<size_t>((first + row) * x_stride) * size, x_stride, split.size(tile),
            packed + row * numbers);
      }
    });
    const size_t floats = bulk_scratch(kBulkPieceRows, panels);
    for (int i = 0; i < threads(); i++) scratch.own[i].at_least(floats * sizeof(float));
    // The threads are at the same panels most of the time, which come from memory once.
    share(groups * pieces.count, [&](int64_t item, int thread) {
      const int64_t piece = item % pieces.count, row = pieces.begin(piece);
      BulkJob job{};
      job.weight = &weight;
      job.first_panel = item / pieces.count * panels;
      job.panels = weight.panels - job.first_panel < panels ? weight.panels - job.first_panel : panels;
      job.tiles = packed + row * numbers;
      job.split = {pieces.size(piece), tiles_of(pieces.size(piece))};
      job.bias = bias;
      job.out = out + static_cast<size_t>((first + row) * out_stride) * size;
      job.out_stride = out_stride;
      job.scratch = reinterpret_cast<float*>(scratch.own[thread].at_least(0));
      kernels.multiply(job);
      after(first + row, job.split.rows, job.first_panel * kPanelColumns, job.columns());
    });
  }
}

// How many queries of a sequence run through its context together: many, as long as every thread has a few runs to do.
int64_t queries_per_run(const AttentionJob& job, int64_t num_tokens) {
  constexpr int64_t kRunsPerThread = 4;
  const int64_t fold = job.heads / job.kv_heads;
  int64_t rows = num_tokens * job.heads / (kRunsPerThread * threads());
  if (threads() == 1 || rows > kQueryRows) rows = kQueryRows;
  if (rows < kFewQueryRows) rows = kFewQueryRows;
  return rows > fold ? rows / fold : 1;
}

// Of eight calls on every thread.
template <class F>
double sum_of_operations(F&& operations) {
  double done[kMaxThreads] = {};
  share(8 * threads(), [&](int64_t, int thread) { done[thread] += operations(); });
  double sum = 0;
  for (const double part : done) sum += part;
  return sum;
}

// Heads that a thread goes through one after the other, where a run has few queries: while it reads the last tile of one,
// the first of the next comes into its cache. Every thread has a few items.
int64_t heads_per_item(int64_t num_runs, int64_t kv_heads) {
  constexpr int64_t kItemsPerThread = 4;
  const int64_t heads = threads() == 1 ? kv_heads : num_runs * kv_heads / (kItemsPerThread * threads());
  return heads < 1 ? 1 : heads < kv_heads ? heads : kv_heads;
}

// One row of langport_hide.
void hide(const uint32_t* bits, int64_t columns, float* logits) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (int64_t begin = 0; begin < columns; begin += 32) {
    const uint32_t allowed = bits[begin / 32];
    const int count = static_cast<int>(columns - begin < 32 ? columns - begin : 32);
    if (allowed == 0xffffffffu) continue;
    for (int place = 0; place < count; ++place) {
      if ((allowed >> place & 1) == 0) logits[begin + place] = kNever;
    }
  }
}

}  // namespace

const Level& level() { return *g_level; }
const SampleKernels& samples() { return *g_samples; }

}  // namespace langport

using namespace langport;

// Changes whenever a function or struct below does.
LANGPORT_API int32_t langport_interface() { return 13; }

// Picks the level of this name, or the best with null. Returns the level's name, or null when this machine lacks it.
LANGPORT_API const char* langport_choose_level(const char* name) {
  const Choice choice = find_level(name);
  if (choice.level == nullptr) return nullptr;
  g_level = choice.level;
  g_samples = choice.samples;
  return g_level->name;
}

LANGPORT_API void langport_set_threads(int32_t count) { set_threads(count < kMaxThreads ? count : kMaxThreads); }

// A copy of W (n, k), rows `stride` numbers apart, for langport_linear. Null when there is no memory.
LANGPORT_API PackedWeight* langport_pack(int32_t dtype, int64_t n, int64_t k, const void* source, int64_t stride) {
  auto* weight = new (std::nothrow) PackedWeight{};
  if (weight == nullptr) return nullptr;
  weight->dtype = static_cast<DType>(dtype);
  weight->n = n;
  weight->k = k;
  const int64_t per_line = dtype == kFloat32 ? 1 : 2;
  weight->lines = ((k + per_line - 1) / per_line + kLinesPerUnit - 1) / kLinesPerUnit * kLinesPerUnit;
  weight->panels = (n + kPanelColumns - 1) / kPanelColumns;
  if (!give_memory(weight)) return nullptr;
  share(weight->panels, [&](int64_t panel, int) {
    pack_panel(*weight, panel, static_cast<const char*>(source), stride);
  });
  return weight;
}

LANGPORT_API void langport_free(PackedWeight* weight) {
  take_back(weight);
}

// out (rows, n) = x (rows, k) times the transposed weight, plus bias (n,) unless it is null; all of the weight's type.
// What is rounded to that type goes through the activation function while it is in a core's cache.
LANGPORT_API void langport_activated_linear(
    const PackedWeight* weight, int64_t rows, const void* x, int64_t x_stride, const void* bias, int32_t activation,
    void* out, int64_t out_stride) {
  const size_t size = size_of(weight->dtype);
  const auto activate = [&](int64_t row, int64_t num_rows, int64_t column, int64_t columns) {
    char* const first = static_cast<char*>(out) + static_cast<size_t>(row * out_stride + column) * size;
    const ActivationJob job{weight->dtype, static_cast<Activation>(activation), columns, first, out_stride};
    g_level->encoder->activate(job, 0, num_rows);
  };
  const BulkKernels* bulk = rows < kFewestBulkRows ? nullptr : bulk_of(g_level);
  if (bulk != nullptr)
    return multiply_bulk(
        *bulk, *weight, rows, static_cast<const char*>(x), x_stride, bias, static_cast<char*>(out), out_stride, activate);
  const int max_rows = g_level->max_rows(weight->dtype);
  const size_t row_bytes = g_level->tile_bytes(weight->dtype, weight->lines, 1);
  in_passes(rows, max_rows, row_bytes, [&](int64_t first, const Tiles& tiles) {
    const auto pack = [&](int64_t tile, char* target) {
      const int64_t row = first + tiles.begin(tile);
      g_level->pack_rows(
          weight->dtype, static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * size, x_stride,
          tiles.size(tile), weight->k, weight->lines, target);
    };
    multiply(weight->panels, tiles, row_bytes, pack, [&](int64_t panel, int64_t tile, const char* packed, bool has_next) {
      const int64_t row = first + tiles.begin(tile);
      PanelJob job{};
      job.weight = weight;
      job.panel = panel;
      job.tile = packed;
      job.rows = tiles.size(tile);
      job.bias = bias;
      job.out = static_cast<char*>(out) + static_cast<size_t>(row * out_stride) * size;
      job.out_stride = out_stride;
      // The next panel comes from memory while this one is multiplied: all of it beside one tile, half beside each
      // of the first two.
      job.prefetch_lines = !has_next ? 0 : tiles.count == 1 ? 4 : 2;
      job.prefetch = weight->data + static_cast<size_t>(panel + 1) * weight->panel_bytes() +
                     (tile == 1 ? weight->panel_bytes() / 2 : 0);
      g_level->multiply_panel(job);
      const int64_t column = panel * kPanelColumns, left = weight->n - column;
      activate(row, job.rows, column, left < kPanelColumns ? left : kPanelColumns);
    });
  });
}

LANGPORT_API void langport_linear(
    const PackedWeight* weight, int64_t rows, const void* x, int64_t x_stride, const void* bias, void* out,
    int64_t out_stride) {
  langport_activated_linear(weight, rows, x, x_stride, bias, static_cast<int32_t>(Activation::kNone), out, out_stride);
}

// Whole numbers W (n, k), of so many bits, and scales (n, groups of `group` numbers of K) that a float weight (n, k) comes
// nearest to; `group` divides k.
LANGPORT_API void langport_quantize(
    int32_t dtype, int32_t scale_dtype, int32_t bits, int64_t n, int64_t k, int64_t group, const void* weight,
    int8_t* values, void* scales) {
  const QuantizeJob job{
      static_cast<DType>(dtype), static_cast<DType>(scale_dtype), bits, k, group, static_cast<const char*>(weight), values,
      static_cast<char*>(scales)};
  share_rows(n, k, [&](int64_t first, int64_t rows) { g_level->ints->quantize_rows(job, first, rows); });
}

// A copy of whole numbers W (n, k) and their scales (n, groups of `group` numbers of K, or one), for langport_int_linear.
// Null when there is no memory.
LANGPORT_API PackedInts* langport_pack_ints(
    int32_t dtype, int32_t bits, int64_t n, int64_t k, int64_t group, const int8_t* values, const void* scales) {
  auto* weight = new (std::nothrow) PackedInts{};
  if (weight == nullptr) return nullptr;
  weight->dtype = static_cast<DType>(dtype);
  weight->bits = bits;
  weight->n = n;
  weight->k = k;
  weight->is_grouped = group < k;
  weight->block = weight->is_grouped ? group : kIntBlock;
  weight->blocks = (k + weight->block - 1) / weight->block;
  weight->panels = (n + kPanelColumns - 1) / kPanelColumns;
  if (!give_memory(weight)) return nullptr;
  share(weight->panels, [&](int64_t panel, int) {
    pack_int_panel(*weight, panel, values, static_cast<const char*>(scales));
  });
  return weight;
}

LANGPORT_API void langport_free_ints(PackedInts* weight) {
  take_back(weight);
}

// As langport_linear.
LANGPORT_API void langport_int_linear(
    const PackedInts* weight, int64_t rows, const void* x, int64_t x_stride, const void* bias, void* out,
    int64_t out_stride) {
  const size_t size = size_of(weight->dtype);
  const size_t panel_bytes = weight->panel_bytes();
  const IntKernels& kernels = *g_level->ints;
  const size_t row_bytes = kernels.row_bytes(*weight);
  in_passes(rows, kernels.max_rows, row_bytes, [&](int64_t first, const Tiles& tiles) {
    const auto pack = [&](int64_t tile, char* target) {
      const int64_t row = first + tiles.begin(tile);
      kernels.pack_rows(
          *weight, static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * size, x_stride, tiles.size(tile),
          target);
    };
    multiply(
        weight->panels, tiles, row_bytes, pack,
        [&](int64_t panel, int64_t tile, const char* packed, bool has_next) {
          const int64_t row = first + tiles.begin(tile);
          IntPanelJob job{};
          job.weight = weight;
          job.panel = panel;
          job.tile = packed;
          job.rows = tiles.size(tile);
          job.bias = bias;
          job.out = static_cast<char*>(out) + static_cast<size_t>(row * out_stride) * size;
          job.out_stride = out_stride;
          job.prefetch_bytes = !has_next ? 0 : tiles.count == 1 ? 128 : 64;
          job.prefetch = weight->data + static_cast<size_t>(panel + 1) * panel_bytes + (tile == 1 ? panel_bytes / 2 : 0);
          kernels.multiply_panel(job);
        });
  });
}

LANGPORT_API void langport_attend(const AttentionJob* job, const SequenceList* list) {
  const int64_t fold = job->heads / job->kv_heads;
  int64_t num_tokens = 0;
  for (int64_t i = 0; i < list->num_seqs; i++) num_tokens += list->counts[i];
  const int64_t per_run = queries_per_run(*job, num_tokens);
  int64_t num_runs = 0;
  for (int64_t i = 0; i < list->num_seqs; i++) num_runs += (list->counts[i] + per_run - 1) / per_run;
  Scratches& scratch = scratches();
  const size_t run_bytes = static_cast<size_t>(num_runs) * sizeof(QueryRun);
  char* shared = scratch.shared.at_least(run_bytes + static_cast<size_t>(num_runs * job->kv_heads) * sizeof(AttentionItem));
  auto* runs = reinterpret_cast<QueryRun*>(shared);
  auto* items = reinterpret_cast<AttentionItem*>(shared + run_bytes);
  const int64_t heads_of_few = heads_per_item(num_runs, job->kv_heads);
  int64_t next = 0, num_items = 0;
  for (int64_t i = 0; i < list->num_seqs; i++) {
    for (int64_t done = 0; done < list->counts[i]; done += per_run) {
      const int64_t left = list->counts[i] - done, count = left < per_run ? left : per_run;
      const int64_t heads = count * fold < kFewQueryRows ? heads_of_few : 1;
      for (int64_t head = 0; head < job->kv_heads; head += heads) {
        const int64_t heads_left = job->kv_heads - head;
        items[num_items++] = {next, head, heads_left < heads ? heads_left : heads};
      }
      runs[next++] = {
          list->rows[i] + done, list->positions[i] + (job->is_causal ? done : 0), count,
          list->tables + i * list->table_stride};
    }
  }
  const size_t floats = attention_scratch(per_run * fold, job->head_dim);
  for (int i = 0; i < threads(); i++) scratch.own[i].at_least(floats * sizeof(float));
  share(num_items, [&](int64_t index, int thread) {
    auto* own = reinterpret_cast<float*>(scratch.own[thread].at_least(0));
    const AttentionItem& item = items[index];
    g_level->attend(*job, runs[item.run], item.first_head, item.heads, own);
  });
}

// out (rows, columns) = silu(gate) * up, whose rows are `stride` numbers apart.
LANGPORT_API void langport_silu_mul(
    int32_t dtype, int64_t rows, int64_t columns, const void* gate, const void* up, int64_t stride, void* out) {
  const GatedJob job{static_cast<DType>(dtype), columns, static_cast<const char*>(gate), static_cast<const char*>(up),
                     stride, static_cast<char*>(out)};
  share_rows(rows, columns, [&](int64_t first, int64_t count) { g_level->silu_mul(job, first, count); });
}

// The same with the tanh form of GELU for silu.
LANGPORT_API void langport_gelu_mul(
    int32_t dtype, int64_t rows, int64_t columns, const void* gate, const void* up, int64_t stride, void* out) {
  const GatedJob job{static_cast<DType>(dtype), columns, static_cast<const char*>(gate), static_cast<const char*>(up),
                     stride, static_cast<char*>(out)};
  share_rows(rows, columns, [&](int64_t first, int64_t count) { g_level->step->gelu_mul(job, first, count); });
}

// out (num_tokens, heads, columns) = x over its root mean square, times weight (columns,) plus `offset`.
LANGPORT_API void langport_rms_norm(
    int32_t dtype, int64_t num_tokens, int64_t heads, int64_t columns, const void* x, int64_t token_stride,
    int64_t head_stride, const void* weight, float offset, float epsilon, void* out) {
  const NormJob job{static_cast<DType>(dtype), heads, columns, static_cast<const char*>(x), token_stride, head_stride,
                    static_cast<const char*>(weight), offset, epsilon, static_cast<char*>(out)};
  share_rows(num_tokens * heads, columns, [&](int64_t first, int64_t count) { g_level->rms_norm(job, first, count); });
}

// Logits become minus infinity where a grammar forbids the token. `bits` (num_rows, words) has a bit per column, that of
// column 0 lowest, set where it is allowed; row i of them is about row rows[i] of `logits`, rows `stride` numbers apart.
LANGPORT_API void langport_hide(
    int64_t num_rows, const int64_t* rows, const uint32_t* bits, int64_t words, int64_t columns, int64_t stride,
    float* logits) {
  share_rows(num_rows, columns, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) hide(bits + i * words, columns, logits + rows[i] * stride);
  });
}

// Every row of x (rows, columns), rows `stride` numbers apart, becomes what the activation function makes of it.
LANGPORT_API void langport_activate(
    int32_t dtype, int32_t activation, int64_t rows, int64_t columns, void* x, int64_t stride) {
  const ActivationJob job{static_cast<DType>(dtype), static_cast<Activation>(activation), columns, static_cast<char*>(x),
                          stride};
  share_rows(rows, columns, [&](int64_t first, int64_t count) { g_level->encoder->activate(job, first, count); });
}

// out (rows, columns) = the layer norm of x plus residual, which may be null, as may the bias; all contiguous.
LANGPORT_API void langport_layer_norm(
    int32_t dtype, int64_t rows, int64_t columns, const void* x, const void* residual, const void* weight,
    const void* bias, float epsilon, void* out) {
  const LayerNormJob job{static_cast<DType>(dtype), columns, static_cast<const char*>(x),
                         static_cast<const char*>(residual), static_cast<const char*>(weight),
                         static_cast<const char*>(bias), epsilon, static_cast<char*>(out)};
  share_rows(rows, columns, [&](int64_t first, int64_t count) { g_level->encoder->layer_norm(job, first, count); });
}

// Every sequence attends to itself: sequence i has the rows from offsets[i] to offsets[i + 1].
LANGPORT_API void langport_attend_spans(const SpanAttentionJob* job, int64_t num_seqs, const int64_t* offsets) {
  // Packing a sequence's keys and values is done once per piece of its queries, so pieces are no smaller than needed.
  constexpr int64_t kItemsPerThread = 4, kFewestQueries = 64;
  const int64_t queries = (offsets[num_seqs] - offsets[0]) * job->heads;
  int64_t per_span = threads() == 1 ? queries : queries / (kItemsPerThread * threads());
  if (per_span < kFewestQueries) per_span = kFewestQueries;
  int64_t num_spans = 0, longest = 0;
  for (int64_t i = 0; i < num_seqs; i++) {
    const int64_t length = offsets[i + 1] - offsets[i];
    num_spans += (length + per_span - 1) / per_span;
    longest = length > longest ? length : longest;
  }
  Scratches& scratch = scratches();
  auto* spans = reinterpret_cast<Span*>(scratch.shared.at_least(static_cast<size_t>(num_spans) * sizeof(Span)));
  int64_t next = 0;
  for (int64_t i = 0; i < num_seqs; i++) {
    const int64_t length = offsets[i + 1] - offsets[i];
    for (int64_t first = 0; first < length; first += per_span)
      spans[next++] = {offsets[i], length, first, length - first < per_span ? length - first : per_span};
  }
  const size_t floats = span_scratch(longest, job->head_dim);
  for (int i = 0; i < threads(); i++) scratch.own[i].at_least(floats * sizeof(float));
  share(num_spans * job->heads, [&](int64_t item, int thread) {
    auto* own = reinterpret_cast<float*>(scratch.own[thread].at_least(0));
    g_level->encoder->attend(*job, spans[item / job->heads], item % job->heads, own);
  });
}

// The ceilings by which benchmarks/kernels.py measures the others; on all threads. Returns the number of operations.
LANGPORT_API double langport_multiply_adds(int32_t dtype, int64_t rounds) {
  return sum_of_operations([&] { return g_level->multiply_adds(static_cast<DType>(dtype), rounds / 8); });
}

LANGPORT_API double langport_int_multiply_adds(int64_t rounds) {
  return sum_of_operations([&] { return g_level->ints->multiply_adds(rounds / 8); });
}

LANGPORT_API void langport_read_memory(const void* data, int64_t bytes) {
  constexpr int64_t kPiece = 1 << 20;
  share((bytes + kPiece - 1) / kPiece, [&](int64_t item, int) {
    const int64_t begin = item * kPiece, left = bytes - begin;
    g_level->read_memory(static_cast<const char*>(data) + begin, static_cast<size_t>(left < kPiece ? left : kPiece));
  });
}
