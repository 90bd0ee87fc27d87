// The CUDA runtime, or its emulation on the CPU that the tests use (tests/ops/cuda_emulation).
//
// Kernels are started by launch() alone, so that the very same kernel source can be run by either.
#pragma once

#include <stdint.h>

#if defined(RDSNET_CUDA_EMULATION)

#include "cuda_emulation.h"

#else

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime.h>

#if !defined(__CUDACC__)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace rdsnet {
namespace cuda {

#if defined(__CUDACC__)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
            Arguments... arguments) {
  kernel<<<blocks, threads, 0, stream>>>(Parameters(arguments)...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}
#else
using DeviceGuard = c10::cuda::CUDAGuard;

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
#endif

inline int multiprocessors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace cuda
}  // namespace rdsnet

#endif
