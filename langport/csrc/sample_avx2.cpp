#include "vec_avx2.h"
#include "kernels.inl"
#include "sample.inl"

namespace langport {

const SampleKernels* avx2_samples() { return &sample_kernels; }

}  // namespace langport
