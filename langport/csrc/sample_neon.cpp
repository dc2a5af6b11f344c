#include "vec_neon.h"
#include "kernels.inl"
#include "sample.inl"

namespace langport {

const SampleKernels* neon_samples() { return &sample_kernels; }

}  // namespace langport
