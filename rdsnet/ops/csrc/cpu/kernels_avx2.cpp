// The inner loops for x86 processors with AVX2, FMA and F16C, whatever the compiler's default.
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

// Functions from here on, not those of the headers above, may use these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define RDSNET_AVX2 1

// A copy of the shared math of our own: this one may use AVX2.
#define rdsnet rdsnet_avx2_math
#include "../common.h"
#undef rdsnet

namespace rdsnet {
namespace avx2 {

using rdsnet_avx2_math::pixel_gradient;
using rdsnet_avx2_math::pixel_loss;
using rdsnet_avx2_math::sigmoid;

#include "kernels_impl.h"

const Kernels<float>& float_kernels() {
  return table<float>();
}

const Kernels<double>& double_kernels() {
  return table<double>();
}

}  // namespace avx2
}  // namespace rdsnet

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace rdsnet {
namespace avx2 {

bool available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace avx2
}  // namespace rdsnet

#else

namespace rdsnet {
namespace avx2 {

bool available() {
  return false;
}

const Kernels<float>& float_kernels() {
  return generic::float_kernels();
}

const Kernels<double>& double_kernels() {
  return generic::double_kernels();
}

}  // namespace avx2
}  // namespace rdsnet

#endif
