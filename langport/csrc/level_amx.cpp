// Products of bfloat16 in tile registers (AMX); the rest as in AVX-512.
#include "vec_avx512.h"
#include "kernels.inl"
#include "attention.inl"
#include "ceilings.inl"
#include "step.inl"
#include "pairs.inl"
#include "encoder.inl"
#include "encoder_pairs.inl"
#include "int_avx512.h"
#include "ints.inl"

namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kAmxRows = 2 * kTileRows;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  // Registers 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights.
  explicit TileConfig(int num_rows) {
    const int upper = num_rows < kTileRows ? num_rows : kTileRows, lower = num_rows - upper;
    const int heights[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
    for (int i = 0; i < 8; i++) {
      rows[i] = static_cast<uint8_t>(heights[i] ? heights[i] : 1);
      bytes[i] = kTileBytes;
    }
  }
};

size_t row_bytes(int64_t lines) { return static_cast<size_t>(lines) * 4; }

// One panel times up to 16 rows, or 17 to 32 when kTwo. Sixteen lines of the panel are one step.
template <bool kTwo>
void multiply_tiles(const PanelJob& job, float* sums) {
  const int64_t lines = job.weight->lines;
  const char* line = job.weight->data + static_cast<size_t>(job.panel) * job.weight->panel_bytes();
  const char* upper = static_cast<const char*>(job.tile);
  const char* lower = upper + kTileRows * row_bytes(lines);
  const auto stride = static_cast<int64_t>(row_bytes(lines));
  const char* next = job.prefetch;
  const int prefetch = 8 * job.prefetch_lines;
  _tile_zero(0);
  _tile_zero(1);
  if (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < lines; i += kTileRows) {
    _tile_loadd(6, line, kLineBytes);
    _tile_loadd(4, upper, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, line + kTileBytes, kLineBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, lower, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    for (int p = 0; p < prefetch; p++) LANGPORT_PREFETCH(next + p * 64);
    next += prefetch * 64;
    line += kTileRows * kLineBytes;
    upper += kTileBytes;
    lower += kTileBytes;
  }
  constexpr int64_t kSumStride = kPanelColumns * sizeof(float);
  _tile_stored(0, sums, kSumStride);
  _tile_stored(1, sums + kWidth, kSumStride);
  if (kTwo) {
    _tile_stored(2, sums + kTileRows * kPanelColumns, kSumStride);
    _tile_stored(3, sums + kTileRows * kPanelColumns + kWidth, kSumStride);
  }
}

int max_rows_here(DType dtype) { return dtype == kBFloat16 ? kAmxRows : max_rows(dtype); }

size_t tile_bytes_here(DType dtype, int64_t lines, int rows) {
  return dtype == kBFloat16 ? row_bytes(lines) * static_cast<size_t>(rows) : tile_bytes(dtype, lines, rows);
}

// Rows one after the other, with zeros up to the end of the lines.
void pack_rows_here(DType dtype, const void* x, int64_t x_stride, int rows, int64_t k, int64_t lines, void* tile) {
  if (dtype != kBFloat16) return pack_rows(dtype, x, x_stride, rows, k, lines, tile);
  const size_t used = static_cast<size_t>(k) * 2;
  for (int row = 0; row < rows; row++) {
    char* target = static_cast<char*>(tile) + static_cast<size_t>(row) * row_bytes(lines);
    std::memcpy(target, static_cast<const char*>(x) + static_cast<size_t>(row * x_stride) * 2, used);
    std::memset(target + used, 0, row_bytes(lines) - used);
  }
}

void multiply_panel_here(const PanelJob& job) {
  if (job.weight->dtype != kBFloat16) return multiply_panel(job);
  alignas(64) float sums[kAmxRows * kPanelColumns];
  const TileConfig config(job.rows);
  _tile_loadconfig(&config);
  if (job.rows <= kTileRows) {
    multiply_tiles<false>(job, sums);
  } else {
    multiply_tiles<true>(job, sums);
  }
  _tile_release();  // or every switch of threads would save the tiles
  for (int row = 0; row < job.rows; row++) {
    PanelJob one = job;
    one.out = static_cast<char*>(job.out) + static_cast<size_t>(row * job.out_stride) * 2;
    Vec line[1][2] = {{Vec::load(sums + row * kPanelColumns), Vec::load(sums + row * kPanelColumns + kWidth)}};
    write_sums<BFloat16Lines>(one, job.panel * kPanelColumns, line);
  }
}

double multiply_adds_here(DType dtype, int64_t rounds) {
  if (dtype != kBFloat16) return multiply_adds(dtype, rounds);
  const TileConfig config(kAmxRows);
  _tile_loadconfig(&config);
  for (int64_t round = 0; round < rounds; round++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  constexpr int kPerTile = kTileRows * kTileRows * 2 * 2 * (kTileBytes / 4);  // a multiplication and an addition per pair
  return static_cast<double>(rounds) * 4 * kPerTile;
}

}  // namespace

namespace langport {

const Level* amx_level() {
  static const Level level = {
      "amx",        max_rows_here, tile_bytes_here, pack_rows_here,     multiply_panel_here,
      attend_pairs, silu_mul,      rms_norm,        multiply_adds_here, read_memory,
      &int_kernels, &step_kernels, &encoder_pair_kernels};
  return &level;
}

}  // namespace langport
