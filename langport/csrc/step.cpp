// One step of a decoder of Llama's form, all layers in one call: docs/adr/0006.
//
// It is made of the calls by which Python computes the same op by op, with numbers rounded at the same places. So both
// give the same bits, and a sequence may change from one to the other between two steps.
#include "step.h"

#include "pool.h"
#include "scratch.h"

namespace langport {
namespace {

// What lies between the stages of a layer: rows of numbers of the model's type.
struct Buffers {
  Scratch input;     // of attention or MLP: (num_tokens, hidden)
  Scratch qkv;       // (num_tokens, heads + 2 * kv_heads, head_dim)
  Scratch attended;  // (num_tokens, heads, head_dim)
  Scratch gates;     // (num_tokens, 2 * inner)
  Scratch gated;     // (num_tokens, inner)
  Scratch found;     // by attention or MLP: (num_tokens, hidden)
};

Buffers& buffers() {
  static thread_local Buffers* of_thread = new Buffers;
  return *of_thread;
}

class Step {
 public:
  Step(const StepModel& model, const StepInput& input)
      : model_(model), input_(input), dtype_(static_cast<DType>(model.dtype)), rows_(input.num_tokens) {
    Buffers& all = buffers();
    const auto take = [&](Scratch& scratch, int64_t columns) {
      return scratch.at_least(static_cast<size_t>(rows_ * columns) * size_of(dtype_));
    };
    normed_ = take(all.input, model.hidden);
    qkv_ = take(all.qkv, (model.heads + 2 * model.kv_heads) * model.head_dim);
    attended_ = take(all.attended, model.heads * model.head_dim);
    gates_ = take(all.gates, 2 * model.inner);
    gated_ = take(all.gated, model.inner);
    found_ = take(all.found, model.hidden);
  }

  void run() {
    const StepLayer* layers = model_.layers;
    share_rows(rows_, model_.hidden, [&](int64_t first, int64_t count) {
      normalize(layers[0].before_attention, input_.x, normed_, first, count);
    });
    for (int64_t i = 0; i < model_.num_layers; i++) {
      const StepLayer& layer = layers[i];
      multiply(layer.qkv, source(layer.before_attention), qkv_);
      attend(layer);
      multiply(layer.out, attended_, found_);
      add_found(layer.after_attention, layer.before_mlp, normed_);
      multiply(layer.gate_up, source(layer.before_mlp), gates_);
      gate();
      multiply(layer.down, gated_, found_);
      const bool is_last = i + 1 == model_.num_layers;
      add_found(
          layer.after_mlp, is_last ? model_.last_norm : layers[i + 1].before_attention, is_last ? input_.out : normed_);
    }
  }

 private:
  // What a part of a layer reads: x behind a norm, or x itself.
  const char* source(const StepNorm& norm) const { return norm.weight == nullptr ? input_.x : normed_; }

  void multiply(const StepLinear& linear, const char* x, char* out) const {
    if (linear.is_ints) {
      const auto* weight = static_cast<const PackedInts*>(linear.weight);
      langport_int_linear(weight, rows_, x, weight->k, linear.bias, out, weight->n);
    } else {
      const auto* weight = static_cast<const PackedWeight*>(linear.weight);
      langport_linear(weight, rows_, x, weight->k, linear.bias, out, weight->n);
    }
  }

  void normalize(const StepNorm& norm, const char* x, char* out, int64_t first, int64_t count) const {
    if (norm.weight == nullptr) return;
    const NormJob job{dtype_, 1, model_.hidden, x, model_.hidden, 0, norm.weight, norm.offset, norm.epsilon, out};
    level().rms_norm(job, first, count);
  }

  void attend(const StepLayer& layer) const {
    const int64_t columns = (model_.heads + 2 * model_.kv_heads) * model_.head_dim;
    const HeadsJob heads{dtype_, model_.heads, model_.kv_heads, model_.head_dim, model_.block_size, qkv_,
                         layer.query_norm, layer.key_norm,
                         layer.norms_heads != 0, layer.rotary < 0 ? nullptr : &model_.rotaries[layer.rotary],
                         input_.positions, input_.lengths, input_.slots, layer.keys, layer.values,
                         layer.key_scales, layer.value_scales};
    share_rows(rows_, columns, [&](int64_t first, int64_t count) { level().step->turn_heads(heads, first, count); });
    AttentionJob job{};
    job.dtype = dtype_;
    job.heads = model_.heads;
    job.kv_heads = model_.kv_heads;
    job.head_dim = model_.head_dim;
    job.block_size = model_.block_size;
    job.query = qkv_;
    job.query_token_stride = columns;
    job.query_head_stride = model_.head_dim;
    job.keys = layer.keys;
    job.values = layer.values;
    job.key_scales = layer.key_scales;
    job.value_scales = layer.value_scales;
    job.out = attended_;
    job.scale = layer.scale;
    job.softcap = layer.softcap;
    job.window = layer.window;
    job.is_causal = true;
    job.own_column = -1;
    langport_attend(&job, input_.sequences);
  }

  void gate() const {
    const char* up = gates_ + static_cast<size_t>(model_.inner) * size_of(dtype_);
    const auto function = model_.gate == kSilu ? langport_silu_mul : langport_gelu_mul;
    function(dtype_, rows_, model_.inner, gates_, up, 2 * model_.inner, gated_);
  }

  // Adds what attention or MLP found, behind its norm, to x, and normalizes that for what comes next.
  void add_found(const StepNorm& after, const StepNorm& next, char* out) const {
    const AddJob job{dtype_, model_.hidden, input_.x, found_, model_.factor};
    share_rows(rows_, model_.hidden, [&](int64_t first, int64_t count) {
      normalize(after, found_, found_, first, count);
      level().step->add(job, first, count);
      normalize(next, input_.x, out, first, count);
    });
  }

  const StepModel& model_;
  const StepInput& input_;
  DType dtype_;
  int64_t rows_;
  char *normed_, *qkv_, *attended_, *gates_, *gated_, *found_;
};

}  // namespace
}  // namespace langport

using namespace langport;

LANGPORT_API void langport_step(const StepModel* model, const StepInput* input) { Step(*model, *input).run(); }
