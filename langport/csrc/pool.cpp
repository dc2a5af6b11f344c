#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define LANGPORT_FORKS
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace langport {
namespace {

// Between two calls of a step lie a few dozen microseconds; sleeping and waking costs about five.
constexpr auto kSpin = std::chrono::microseconds(80);
constexpr int kPausesPerLook = 32;  // at the clock

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `ready` or until spinning has lasted long enough; true: ready.
template <class F>
bool spin_until(F ready) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPausesPerLook; i++) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - begin < kSpin);
  return false;
}

class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 1; i <= workers; i++) std::thread([this, i] { work(i); }).detach();
  }

  void run(int64_t items, WorkFunction function, void* context) {
    function_ = function;
    context_ = context;
    items_ = items;
    next_.store(0);
    open_.store(++calls_);
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    take_items(0);
    open_.store(0);
    // Only those that have joined are waited for. One of them may have lost its core to another process: then this one is
    // left, too, so that the system can go on with what waits for a core.
    const auto are_gone = [this] { return joined_.load() == 0; };
    if (spin_until(are_gone)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    is_waiting_.store(true);
    gone_.wait(lock, are_gone);
    is_waiting_.store(false);
  }

 private:
  void take_items(int thread) {
    for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;)
      function_(context_, item, thread);
  }

  // Threads live as long as the process: they hold nothing, and waiting for them at exit could hang.
  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      const auto is_new = [&] {
        const uint64_t call = open_.load();
        return call != 0 && call != seen;
      };
      if (!spin_until(is_new)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, is_new);
        sleeping_.fetch_sub(1);
      }
      joined_.fetch_add(1);
      const uint64_t call = open_.load();  // while it is open and somebody has joined, nothing of it changes
      if (call != 0) {
        seen = call;
        take_items(thread);
      }
      if (joined_.fetch_sub(1) == 1 && is_waiting_.load()) {
        { std::lock_guard<std::mutex> lock(mutex_); }
        gone_.notify_one();
      }
    }
  }

  WorkFunction function_ = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  uint64_t calls_ = 0;
  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> joined_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> is_waiting_{false};
  std::mutex mutex_;
  std::condition_variable wake_, gone_;
};

int g_threads = 1;
Pool* g_pool = nullptr;
int g_pool_threads = 0;
std::atomic_flag g_busy = ATOMIC_FLAG_INIT;

// In a child the threads are gone; what they used is left to lie.
void forget_pool() {
  g_pool = nullptr;
  g_busy.clear();
}

}  // namespace

void set_threads(int count) { g_threads = count < 1 ? 1 : count; }
int threads() { return g_threads; }

void share_work(int64_t items, WorkFunction function, void* context) {
  // A second caller at the same time, which only tests have, works alone.
  const bool alone = g_threads == 1 || items <= 1 || g_busy.test_and_set();
  if (alone) {
    for (int64_t item = 0; item < items; item++) function(context, item, 0);
    return;
  }
  if (g_pool == nullptr || g_pool_threads != g_threads) {
#ifdef LANGPORT_FORKS
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)registered;
#endif
    g_pool = new Pool(g_threads - 1);
    g_pool_threads = g_threads;
  }
  g_pool->run(items, function, context);
  g_busy.clear();
}

}  // namespace langport
