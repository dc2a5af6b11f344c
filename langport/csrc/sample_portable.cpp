#include "vec_portable.h"
#include "kernels.inl"
#include "sample.inl"

namespace langport {

const SampleKernels* portable_samples() { return &sample_kernels; }

}  // namespace langport
