// CUDA's language and runtime, as far as the kernels of rdsnet/ops/csrc/cuda use them, on the CPU.
//
// Blocks run one after the other; the threads of a block are fibers that run until they have to
// wait for each other, in a random order. So barriers, ballots, shuffles and shared memory mean
// what they mean on a GPU, and a missing barrier shows as a wrong result sooner or later. What it
// can't show: races between blocks, alignment, limits of registers and shared memory, speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

using std::max;
using std::min;
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_emulation {

// Of the fiber that runs now.
extern dim3 thread_index, block_index, block_size, grid_size;

void run_grid(dim3 blocks, int threads, const std::function<void()>& kernel);
void wait_for_block();
// Gives `value` to the warp, waits for all of it, and returns the values of its 32 lanes.
const uint64_t* exchange(uint64_t value);

template <typename T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulation

#define threadIdx (cuda_emulation::thread_index)
#define blockIdx (cuda_emulation::block_index)
#define blockDim (cuda_emulation::block_size)
#define gridDim (cuda_emulation::grid_size)

inline void __syncthreads() { cuda_emulation::wait_for_block(); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const uint64_t* votes = cuda_emulation::exchange(predicate);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= unsigned(votes[lane] & 1) << lane;
  return ballot;
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const uint64_t* values = cuda_emulation::exchange(cuda_emulation::to_bits(value));
  return cuda_emulation::from_bits<T>(values[(threadIdx.x % 32) ^ unsigned(mask)]);
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const uint64_t* values = cuda_emulation::exchange(cuda_emulation::to_bits(value));
  const int source = int(threadIdx.x % 32) - delta;
  return source < 0 ? value : cuda_emulation::from_bits<T>(values[source]);
}

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const uint64_t* values = cuda_emulation::exchange(value);
  return unsigned(*std::max_element(values, values + 32));
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

template <typename T, typename V>
T atomicAdd(T* place, V value) {
  const T before = *place;
  *place = T(before + value);
  return before;
}

template <typename T, typename V>
T atomicMax(T* place, V value) {
  const T before = *place;
  *place = std::max(before, T(value));
  return before;
}

template <typename T, typename V>
T atomicMin(T* place, V value) {
  const T before = *place;
  *place = std::min(before, T(value));
  return before;
}

namespace rdsnet {
namespace cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t,
            Arguments... arguments) {
  cuda_emulation::run_grid(blocks, threads, [=] { kernel(Parameters(arguments)...); });
}

// Few, so that blocks have to stride.
inline int multiprocessors() { return 1; }

inline cudaStream_t current_stream() { return nullptr; }

struct DeviceGuard {
  template <typename Device>
  explicit DeviceGuard(const Device&) {}
};

}  // namespace cuda
}  // namespace rdsnet
