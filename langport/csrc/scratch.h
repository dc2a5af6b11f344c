// Memory that grows and is kept from call to call.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace langport {

class Scratch {
 public:
  char* at_least(size_t bytes) {
    if (bytes > size_) {
      free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      if (posix_memalign(reinterpret_cast<void**>(&data_), 64, size_) != 0) std::abort();
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace langport
