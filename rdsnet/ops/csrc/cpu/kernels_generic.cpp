// The inner loops for every processor, and the choice at run time.
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#include "../common.h"

namespace rdsnet {
namespace generic {

#include "kernels_impl.h"

const Kernels<float>& float_kernels() {
  return table<float>();
}

const Kernels<double>& double_kernels() {
  return table<double>();
}

}  // namespace generic

namespace {

// RDSNET_OPS_ISA=generic, for tests and for comparison, leaves AVX2 unused.
bool use_avx2() {
  const char* wanted = getenv("RDSNET_OPS_ISA");
  return avx2::available() && !(wanted && strcmp(wanted, "generic") == 0);
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  static const bool fast = use_avx2();
  return fast ? avx2::float_kernels() : generic::float_kernels();
}

template <>
const Kernels<double>& kernels<double>() {
  static const bool fast = use_avx2();
  return fast ? avx2::double_kernels() : generic::double_kernels();
}

}  // namespace rdsnet
