// What the threads of a warp or a block work out together. Everything here has a fixed order, so
// that sums of floating point numbers come out the same every time.
//
// All threads of the block have to call these functions, and blocks are whole warps.
#pragma once

#include "runtime.h"

namespace rdsnet {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp() { return int(threadIdx.x) / kWarp; }

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <typename Bits>
__device__ inline Bits warp_max(Bits value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Bits other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

__device__ inline uint32_t warp_max(uint32_t value) {
#if defined(RDSNET_CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
  return __reduce_max_sync(kAllLanes, value);
#else
  return warp_max<uint32_t>(value);
#endif
}

template <int kThreads, typename T>
__device__ inline T block_sum(T value) {
  __shared__ T of_warp[kThreads / kWarp];
  value = warp_sum(value);
  if (lane() == 0) of_warp[warp()] = value;
  __syncthreads();
  T total = T(0);
  for (int w = 0; w < kThreads / kWarp; ++w) total += of_warp[w];
  __syncthreads();
  return total;
}

// Sum over the threads before this one, and over all of them.
template <int kThreads, typename T>
__device__ inline T block_scan(T value, T* total) {
  __shared__ T of_warp[kThreads / kWarp];
  T sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane() >= step) sum += before;
  }
  if (lane() == kWarp - 1) of_warp[warp()] = sum;
  __syncthreads();
  T before = T(0), all = T(0);
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w == warp()) before = all;
    all += of_warp[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - value;
}

// atomicMax exists for the types of CUDA, not for those of stdint.h.
__device__ inline void raise(uint32_t* place, uint32_t key) { atomicMax(place, key); }
__device__ inline void raise(uint64_t* place, uint64_t key) {
  atomicMax(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(key));
}

}  // namespace cuda
}  // namespace rdsnet
