// Threads that share the work of one call at a time.
#pragma once

#include <cstdint>

namespace langport {

// Threads that later calls may use, the calling one included. They start when there is first work for two, so a process
// may fork before; a child of a fork starts its own.
void set_threads(int count);
int threads();

using WorkFunction = void (*)(void* context, int64_t item, int thread);

// Calls function(context, item, thread) for every item from 0 to items - 1, in no fixed order, each once, and returns
// when all are done. `thread` is below threads(); no two items with the same one run at once.
// A thread that is late, because the machine is busy, is not waited for: the others take its items.
void share_work(int64_t items, WorkFunction function, void* context);

template <class F>
void share(int64_t items, F&& body) {
  share_work(
      items, [](void* context, int64_t item, int thread) { (*static_cast<F*>(context))(item, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Calls body(first row, number of rows) for pieces of the rows that are worth a thread's while.
template <class F>
void share_rows(int64_t rows, int64_t columns, F&& body) {
  constexpr int64_t kNumbers = 16384;
  const int64_t piece = columns >= kNumbers ? 1 : kNumbers / columns;
  share((rows + piece - 1) / piece, [&](int64_t item, int) {
    const int64_t first = item * piece;
    body(first, rows - first < piece ? rows - first : piece);
  });
}

}  // namespace langport
