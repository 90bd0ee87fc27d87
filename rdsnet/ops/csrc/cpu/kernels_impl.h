// Included by kernels_generic.cpp and kernels_avx2.cpp inside a namespace of their own. Nothing
// here may have external linkage under a shared name (no standard library templates): the linker
// would keep one copy, perhaps the one that needs AVX2.

#include "simd_impl.h"

#include "mask_kernels_impl.h"
#include "row_kernels_impl.h"

// --- correlation and its gradients -------------------------------------------------------------

template <typename T>
static void correlate_row(const T* row, const T* delta, int padded_dims, int block_begin,
                          int block_end, T* out) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kVectors = kCells / kLanes<T>;
  const int64_t block_size = int64_t(padded_dims) * kCells;
  for (int b = block_begin; b < block_end; ++b, out += kCells) {
    const T* p = row + b * block_size;
    const T* const end = p + block_size;
    const T* factor_of = delta;
    // As many sums as it takes to hide the latency of the fused multiply-add.
    Vec sum[kDimStep][kVectors] = {};
    for (; p != end; p += kDimStep * kCells, factor_of += kDimStep) {
      for (int j = 0; j < kDimStep; ++j) {
        const Vec factor = splat<T>(factor_of[j]);
        for (int v = 0; v < kVectors; ++v) {
          sum[j][v] = fma_<T>(load(p + j * kCells + v * kLanes<T>), factor, sum[j][v]);
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      store(out + v * kLanes<T>, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
    }
  }
}

template <typename T, int kObjects>
static void correlate_objects(const T* psi, int64_t stride, int padded_dims,
                              const CellLogits<T>* objects) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kVectors = kCells / kLanes<T>, kSums = 2;
  const T* delta[kObjects];
  Vec sum[kObjects][kSums][kVectors];
  for (int n = 0; n < kObjects; ++n) {
    delta[n] = objects[n].delta;
    for (int j = 0; j < kSums; ++j) {
      for (int v = 0; v < kVectors; ++v) sum[n][j][v] = splat(T(0));
    }
  }
  int d = 0;
  do {  // padded_dims is never 0: the compiler need not keep the sums in memory for that case
    for (int j = 0; j < kSums; ++j, psi += stride) {
      Vec cells[kVectors];
      for (int v = 0; v < kVectors; ++v) cells[v] = load(psi + v * kLanes<T>);
      for (int n = 0; n < kObjects; ++n) {
        const Vec factor = splat<T>(delta[n][d + j]);
        for (int v = 0; v < kVectors; ++v) sum[n][j][v] = fma_<T>(cells[v], factor, sum[n][j][v]);
      }
    }
    d += kSums;
  } while (d < padded_dims);
  for (int n = 0; n < kObjects; ++n) {
    for (int v = 0; v < kVectors; ++v) {
      store(objects[n].logits + v * kLanes<T>, sum[n][0][v] + sum[n][1][v]);
    }
  }
}

template <typename T>
static void correlate_block(const T* psi, int64_t stride, int padded_dims,
                            const CellLogits<T>* objects, int count) {
  // Two or three at a time make use of every cell while it is in a register.
  while (count > 0) {
    const int taken = count == 1 ? 1 : count == 2 || count == 4 ? 2 : 3;
    const auto run = taken == 1   ? correlate_objects<T, 1>
                     : taken == 2 ? correlate_objects<T, 2>
                                  : correlate_objects<T, 3>;
    run(psi, stride, padded_dims, objects);
    objects += taken;
    count -= taken;
  }
}

// kDims sums at once, as many as it takes to hide the latency of the fused multiply-add.
template <int kDims, typename T>
static inline void add_phi_gradient_of(const T* row, const T* grad, int64_t block_size,
                                       int64_t blocks, T* partial) {
  using Vec = typename Simd<T>::Vec;
  Vec sum[kDims];
  for (int j = 0; j < kDims; ++j) sum[j] = load(partial + j * kLanes<T>);
  const T* const end = grad + blocks * kCells;
  for (; grad != end; grad += kCells, row += block_size) {
    for (int i = 0; i < kCells; i += kLanes<T>) {
      const Vec weight = load(grad + i);
      for (int j = 0; j < kDims; ++j) {
        sum[j] = fma_<T>(load(row + j * kCells + i), weight, sum[j]);
      }
    }
  }
  for (int j = 0; j < kDims; ++j) store(partial + j * kLanes<T>, sum[j]);
}

template <typename T>
static void add_phi_gradient(const T* row, const T* grad, int padded_dims, int block_begin,
                             int block_end, T* partial) {
  const int64_t block_size = int64_t(padded_dims) * kCells;
  const T* const first = row + block_begin * block_size;
  const int64_t blocks = block_end - block_begin;
  int64_t d = 0;
  for (; d + 2 * kDimStep <= padded_dims; d += 2 * kDimStep) {
    add_phi_gradient_of<2 * kDimStep>(first + d * kCells, grad, block_size, blocks,
                                      partial + d * kLanes<T>);
  }
  for (; d < padded_dims; d += kDimStep) {
    add_phi_gradient_of<kDimStep>(first + d * kCells, grad, block_size, blocks,
                                  partial + d * kLanes<T>);
  }
}

template <typename T>
static void psi_gradient_block(const T* const* grads, const T* const* deltas, int objects,
                               int padded_dims, T* out) {
  using Vec = typename Simd<T>::Vec;
  constexpr int kVectors = kCells / kLanes<T>;
  for (int64_t d = 0; d < padded_dims; d += kDimStep, out += kDimStep * kCells) {
    Vec sum[kDimStep][kVectors] = {};
    for (int64_t n = 0; n < objects; ++n) {
      const T* const grad = grads[n];
      const T* const factor_of = deltas[n] + d;
      for (int j = 0; j < kDimStep; ++j) {
        const Vec factor = splat<T>(factor_of[j]);
        for (int v = 0; v < kVectors; ++v) {
          sum[j][v] = fma_<T>(load(grad + v * kLanes<T>), factor, sum[j][v]);
        }
      }
    }
    for (int j = 0; j < kDimStep; ++j) {
      for (int v = 0; v < kVectors; ++v) store(out + j * kCells + v * kLanes<T>, sum[j][v]);
    }
  }
}

// --- sigmoid -----------------------------------------------------------------------------------

// exp(x) for x <= 0, to 1 or 2 units in the last place; 0 below -64. There, 1e-28, products with
// it could become subnormal numbers, which cost a hundred times as much.
static inline Simd<float>::Vec exp_negative(Simd<float>::Vec x) {
  using Vec = Simd<float>::Vec;
  using Mask = Simd<float>::Mask;
  const Mask vanished = x < splat(-64.f);
  x = max_<float>(x, splat(-64.f));
  // x = n ln 2 + r. Adding 1.5 * 2^23 leaves the rounded n in the low bits.
  const Vec shifted = fma_<float>(x, splat(1.44269504f), splat(12582912.f));
  const Vec n = shifted - splat(12582912.f);
  Vec r = fma_<float>(n, splat(-0.693359375f), x);
  r = fma_<float>(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.f / 5040);
  p = fma_<float>(p, r, splat(1.f / 720));
  p = fma_<float>(p, r, splat(1.f / 120));
  p = fma_<float>(p, r, splat(1.f / 24));
  p = fma_<float>(p, r, splat(1.f / 6));
  p = fma_<float>(p, r, splat(0.5f));
  p = fma_<float>(p, r, splat(1.f));
  p = fma_<float>(p, r, splat(1.f));
  return (Vec)(((Mask)p + ((Mask)shifted << 23)) & ~vanished);
}

// log(1 + e) for 0 <= e <= 1 with full relative accuracy: 2 artanh(s), s = e / (2 + e) <= 1/3.
static inline Simd<float>::Vec log1p_(Simd<float>::Vec e) {
  using Vec = Simd<float>::Vec;
  const Vec s = e / (e + splat(2.f)), q = s * s;
  Vec p = splat(2.f / 15);
  p = fma_<float>(p, q, splat(2.f / 13));
  p = fma_<float>(p, q, splat(2.f / 11));
  p = fma_<float>(p, q, splat(2.f / 9));
  p = fma_<float>(p, q, splat(2.f / 7));
  p = fma_<float>(p, q, splat(2.f / 5));
  p = fma_<float>(p, q, splat(2.f / 3));
  p = fma_<float>(p, q, splat(2.f));
  return p * s;
}

static inline Simd<float>::Vec magnitude(Simd<float>::Vec z) {
  return (Simd<float>::Vec)((Simd<float>::Mask)z & 0x7fffffff);
}

static inline Simd<float>::Vec sigmoid_vector(Simd<float>::Vec z, Simd<float>::Vec e) {
  const Simd<float>::Vec one = splat(1.f);
  return (z >= splat(0.f) ? one : e) / (one + e);
}

static void sigmoid_row(float* values, int64_t count) {
  float buffer[kLanes<float>];
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) {
    const Simd<float>::Vec z = load(values + i);
    store(values + i, sigmoid_vector(z, exp_negative(-magnitude(z))));
  }
  for (; i < count; i += kLanes<float>) {
    const int left = int(count - i < kLanes<float> ? count - i : kLanes<float>);
    for (int j = 0; j < kLanes<float>; ++j) buffer[j] = j < left ? values[i + j] : 0.f;
    const Simd<float>::Vec z = load(buffer);
    store(buffer, sigmoid_vector(z, exp_negative(-magnitude(z))));
    for (int j = 0; j < left; ++j) values[i + j] = buffer[j];
  }
}

static void sigmoid_row(double* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = sigmoid(values[i]);
}

#include "loss_kernels_impl.h"
#include "pixel_kernels_impl.h"

template <typename T>
static const Kernels<T>& table() {
  static const Kernels<T> kernels = {
      load_row<T>,   store_row<T>,       correlate_row<T>, correlate_block<T>,
      expand_row<T>, combine_rows<T>,    sigmoid_row,      blend_rows<T>,
      spread_row<T>, reduce_row<T>,      grid_targets,     image_targets,
      background_keys<T>, count_keys<T>, loss_and_gradient,
      add_phi_gradient<T>, psi_gradient_block<T>,
  };
  return kernels;
}
