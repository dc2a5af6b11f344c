#include "vec_avx512.h"
#include "kernels.inl"
#include "sample.inl"

namespace langport {

const SampleKernels* avx512_samples() { return &sample_kernels; }

}  // namespace langport
