// Included by kernels_generic.cpp and kernels_avx2.cpp inside a namespace of their own. Nothing
// here may have external linkage under a shared name (no standard library templates): the linker
// would keep one copy, perhaps the one that needs AVX2.

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(32), aligned(4), may_alias));
  typedef float Vec __attribute__((vector_size(32)));
  typedef int32_t Mask __attribute__((vector_size(32)));
  typedef int32_t Int;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(32), aligned(8), may_alias));
  typedef double Vec __attribute__((vector_size(32)));
  typedef int64_t Mask __attribute__((vector_size(32)));
  typedef int64_t Int;
};

template <typename T>
static inline typename Simd<T>::Vec load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::V*>(p);
}

template <typename T>
static inline void store(T* p, typename Simd<T>::Vec v) {
  *reinterpret_cast<typename Simd<T>::V*>(p) = v;
}

template <typename T>
static inline typename Simd<T>::Vec splat(T x) {
  return x - typename Simd<T>::Vec{};
}

template <typename T>
static inline typename Simd<T>::Vec fma_(typename Simd<T>::Vec a, typename Simd<T>::Vec b,
                                         typename Simd<T>::Vec c) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    return (typename Simd<T>::Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (typename Simd<T>::Vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
#else
  return a * b + c;
#endif
}

template <typename T>
static inline typename Simd<T>::Vec max_(typename Simd<T>::Vec a, typename Simd<T>::Vec b) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    return (typename Simd<T>::Vec)_mm256_max_ps((__m256)a, (__m256)b);
  } else {
    return (typename Simd<T>::Vec)_mm256_max_pd((__m256d)a, (__m256d)b);
  }
#else
  return a > b ? a : b;
#endif
}

// One bit per lane.
template <typename T>
static inline unsigned bits_of(typename Simd<T>::Mask mask) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    return unsigned(_mm256_movemask_ps((__m256)mask));
  } else {
    return unsigned(_mm256_movemask_pd((__m256d)mask));
  }
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= unsigned(mask[i] & 1) << i;
  return bits;
#endif
}

// --- element types -----------------------------------------------------------------------------

static inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static inline float half_to_float(uint16_t half) {
#ifdef RDSNET_AVX2
  return _cvtsh_ss(half);
#else
  // Shift exponent and mantissa into place; the product rescales the exponent, subnormals too.
  const float magnitude = bits_to_float(uint32_t(half & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite = magnitude >= 65536.f ? 0x7f800000u : 0u;
  return bits_to_float(float_to_bits(magnitude) | infinite | uint32_t(half & 0x8000) << 16);
#endif
}

static inline uint16_t float_to_half(float value) {
#ifdef RDSNET_AVX2
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000;
  const float magnitude = bits_to_float(bits & 0x7fffffff);
  if (!(magnitude == magnitude)) return uint16_t(sign | 0x7e00);
  if (magnitude >= 65520.f) return uint16_t(sign | 0x7c00);
  // Adding a power of two with the last place of the result rounds to nearest, ties to even.
  uint32_t exponent = float_to_bits(magnitude) & 0x7f800000;
  if (exponent < 0x38800000) exponent = 0x38800000;  // subnormal halves share one last place
  const float anchor = bits_to_float(exponent + (13u << 23));
  const float rounded = (magnitude + anchor) - anchor;
  if (rounded < 0x1p-14f) return uint16_t(sign | uint32_t(rounded * 0x1p24f));
  return uint16_t(sign | ((float_to_bits(rounded) - (112u << 23)) >> 13));
#endif
}

static inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (!(value == value)) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <Kind kind, typename T>
static inline T read(const void* data, int64_t i) {
  if constexpr (kind == Kind::kFloat) return T(static_cast<const float*>(data)[i]);
  if constexpr (kind == Kind::kDouble) return T(static_cast<const double*>(data)[i]);
  if constexpr (kind == Kind::kHalf) return T(half_to_float(static_cast<const uint16_t*>(data)[i]));
  if constexpr (kind == Kind::kBFloat16) {
    return T(bits_to_float(uint32_t(static_cast<const uint16_t*>(data)[i]) << 16));
  }
}

template <Kind kind, typename T>
static inline void write(void* data, int64_t i, T value) {
  if constexpr (kind == Kind::kFloat) static_cast<float*>(data)[i] = float(value);
  if constexpr (kind == Kind::kDouble) static_cast<double*>(data)[i] = double(value);
  if constexpr (kind == Kind::kHalf) static_cast<uint16_t*>(data)[i] = float_to_half(float(value));
  if constexpr (kind == Kind::kBFloat16) {
    static_cast<uint16_t*>(data)[i] = float_to_bfloat16(float(value));
  }
}

// Whether rows in memory have the type of the computation, so that whole vectors can be copied.
template <Kind kind, typename T>
constexpr bool kSameType = kind == (sizeof(T) == 4 ? Kind::kFloat : Kind::kDouble);

template <typename T>
static inline void copy_block(const T* source, T* target) {
  for (int i = 0; i < kCells; i += kLanes<T>) store(target + i, load(source + i));
}

// Past the cache, where the processor can: a gradient of the size of psi would push out what is
// needed next, and fetching the old content of its lines would double the traffic.
template <typename T>
static inline void stream_block(const T* source, T* target) {
#ifdef RDSNET_AVX2
  if (reinterpret_cast<uintptr_t>(target) % 32 == 0) {
    for (int i = 0; i < kCells; i += kLanes<T>) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
    }
    return;
  }
#endif
  copy_block(source, target);
}

template <Kind kind, typename T>
static void load_row_as(const void* source, int64_t stride_d, int64_t stride_x, int dims,
                        int padded_dims, int first, int cells, T* row) {
  const int64_t block_size = int64_t(padded_dims) * kCells;
  T* const start = row + first / kCells * block_size;
  for (int d = 0; d < dims; ++d) {
    T* out = start + d * kCells;
    for (int x = 0; x < cells; x += kCells, out += block_size) {
      const int64_t at = d * stride_d + (first + x) * stride_x;
      const int count = cells - x < kCells ? cells - x : kCells;
      if (count == kCells && stride_x == 1) {
        if constexpr (kSameType<kind, T>) {
          copy_block(static_cast<const T*>(source) + at, out);
        } else {
          T block[kCells];  // of its own, so that the compiler sees no aliasing
          for (int i = 0; i < kCells; ++i) block[i] = read<kind, T>(source, at + i);
          copy_block(block, out);
        }
      } else {
        for (int i = 0; i < count; ++i) out[i] = read<kind, T>(source, at + i * stride_x);
        for (int i = count; i < kCells; ++i) out[i] = T(0);
      }
    }
  }
}

template <Kind kind, typename T>
static void store_row_as(const T* row, int64_t stride_d, int64_t stride_x, int dims,
                         int padded_dims, int cells, void* target) {
  for (int d = 0; d < dims; ++d) {
    for (int x = 0; x < cells; x += kCells) {
      const T* in = row + (int64_t(x / kCells) * padded_dims + d) * kCells;
      const int64_t at = d * stride_d + x * stride_x;
      const int count = cells - x < kCells ? cells - x : kCells;
      if (count == kCells && stride_x == 1) {
        if constexpr (kSameType<kind, T>) {
          stream_block(in, static_cast<T*>(target) + at);
        } else {
          T block[kCells];
          copy_block(in, block);
          for (int i = 0; i < kCells; ++i) write<kind, T>(target, at + i, block[i]);
        }
      } else {
        for (int i = 0; i < count; ++i) write<kind, T>(target, at + i * stride_x, in[i]);
      }
    }
  }
}

template <typename T>
static void load_row(const void* source, Kind kind, int64_t stride_d, int64_t stride_x, int dims,
                     int padded_dims, int first, int cells, T* row) {
  const auto load_as = kind == Kind::kFloat    ? load_row_as<Kind::kFloat, T>
                       : kind == Kind::kDouble ? load_row_as<Kind::kDouble, T>
                       : kind == Kind::kHalf   ? load_row_as<Kind::kHalf, T>
                                               : load_row_as<Kind::kBFloat16, T>;
  load_as(source, stride_d, stride_x, dims, padded_dims, first, cells, row);
}

template <typename T>
static void store_row(const T* row, Kind kind, int64_t stride_d, int64_t stride_x, int dims,
                      int padded_dims, int cells, void* target) {
  const auto store_as = kind == Kind::kFloat    ? store_row_as<Kind::kFloat, T>
                        : kind == Kind::kDouble ? store_row_as<Kind::kDouble, T>
                        : kind == Kind::kHalf   ? store_row_as<Kind::kHalf, T>
                                                : store_row_as<Kind::kBFloat16, T>;
  store_as(row, stride_d, stride_x, dims, padded_dims, cells, target);
#ifdef RDSNET_AVX2
  _mm_sfence();  // other threads read the gradient
#endif
}

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

// --- interpolation and threshold ---------------------------------------------------------------

template <typename T>
static inline void expand_block(const T* cells, const ColumnTaps<T>& taps, int64_t column, T* out) {
  for (int i = 0; i < kPixels; ++i) {
    T sum = T(0);
    for (int k = 0; k < taps.taps; ++k) {
      const int64_t at = k * taps.columns + column + i;
      sum += taps.weight[at] * cells[taps.offset[at]];
    }
    out[i] = sum;
  }
}

#ifdef RDSNET_AVX2
// Enlarging maps eight neighbouring pixels to at most eight neighbouring cells: one load and a
// permutation per tap instead of a gather.
template <int kCount>
static void expand_narrow(const float* cells, int origin, const ColumnTaps<float>& taps,
                          int block_begin, int block_end, float* out) {
  const int32_t* const base = taps.base;
  const int64_t columns = taps.columns;
  const int32_t* offset = taps.offset + int64_t(block_begin) * kPixels;
  const float* weight = taps.weight + int64_t(block_begin) * kPixels;
  cells -= origin;
  for (int b = block_begin; b < block_end; ++b) {
    const __m256 source = _mm256_loadu_ps(cells + base[b]);
    __m256 sum = _mm256_setzero_ps();
    for (int k = 0; k < kCount; ++k) {
      const __m256i lane =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset + k * columns));
      const __m256 cell = _mm256_permutevar8x32_ps(source, lane);
      sum = _mm256_fmadd_ps(cell, _mm256_loadu_ps(weight + k * columns), sum);
    }
    _mm256_storeu_ps(out, sum);
    offset += kPixels;
    weight += kPixels;
    out += kPixels;
  }
}
#endif

template <typename T>
static void expand_row(const T* cells, int origin, const ColumnTaps<T>& taps, int block_begin,
                       int block_end, T* out) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    if (taps.all_narrow) {
      const auto expand = taps.taps == 2 ? expand_narrow<2> : expand_narrow<3>;
      return expand(cells, origin, taps, block_begin, block_end, out);
    }
  }
#endif
  for (int b = block_begin; b < block_end; ++b, out += kPixels) {
    expand_block(cells + (taps.base[b] - origin), taps, int64_t(b) * kPixels, out);
  }
}

template <typename T, bool kThreeRows>
static CombinedRow<T> combine(const T* row0, const T* row1, const T* row2, T weight0, T weight1,
                              T weight2, T threshold, int skip, int count, int y,
                              T* column_maxima, uint8_t* bits, Flip* flips) {
  using Vec = typename Simd<T>::Vec;
  using Mask = typename Simd<T>::Mask;
  using Int = typename Simd<T>::Int;
  constexpr int kLane = kLanes<T>, kVectors = kPixels / kLane, kWordBlocks = 64 / kPixels;
  Mask lane;
  for (int i = 0; i < kLane; ++i) lane[i] = i;
  const T lowest = -(T)__builtin_inf();
  const Vec w0 = splat(weight0), w1 = splat(weight1), w2 = splat(weight2);
  const Vec limit = splat(threshold), nothing = splat(T(0)) + lowest;
  const int blocks = (count + kPixels - 1) / kPixels;
  Vec highest = nothing;
  // One block; only the first and the last one have pixels outside the window.
  const auto foreground = [&](int b, bool outer) {
    unsigned now = 0;
    for (int v = 0; v < kVectors; ++v) {
      const int x = b * kPixels + v * kLane;
      Vec z = load(row0 + x) * w0;
      z = fma_<T>(load(row1 + x), w1, z);
      if (kThreeRows) z = fma_<T>(load(row2 + x), w2, z);
      if (outer) {
        const Mask place = lane + Int(x);
        z = (place >= Int(skip)) & (place < Int(count)) ? z : nothing;
      }
      highest = max_<T>(z, highest);
      store(column_maxima + x, max_<T>(z, load(column_maxima + x)));
      now |= bits_of<T>(z > limit) << (v * kLane);
    }
    return uint64_t(now);
  };
  int num_flips = 0;
  for (int begin = 0; begin < blocks; begin += kWordBlocks) {
    const bool last_word = begin + kWordBlocks >= blocks;
    const int inner_end = last_word ? blocks - 1 : begin + kWordBlocks;
    uint64_t now = 0, before = 0;
    int b = begin;
    if (b == 0 && b < inner_end) now = foreground(b++, true);
    for (; b < inner_end; ++b) now |= foreground(b, false) << ((b - begin) * kPixels);
    if (last_word) now |= foreground(b, true) << ((b - begin) * kPixels);
    // Bit i of byte j is pixel 8 j + i, whatever the byte order.
    for (int j = 0; j < kWordBlocks; ++j) {
      before |= uint64_t(bits[begin + j]) << (j * kPixels);
      bits[begin + j] = uint8_t(now >> (j * kPixels));
    }
    // Most rows have no more than two flips: writing two places without asking saves branches that
    // nobody can predict.
    uint64_t changed = now ^ before;
    const int found = __builtin_popcountll(changed);
    Flip* out = flips + num_flips;
    for (int i = 0; i < kSpareFlips || i < found; ++i) {
      out[i].x = begin * kPixels + (changed ? __builtin_ctzll(changed) : 0);
      out[i].y = y;
      changed &= changed - 1;
    }
    num_flips += found;
  }
  CombinedRow<T> result = {highest[0], num_flips};
  for (int i = 1; i < kLane; ++i) {
    if (highest[i] > result.maximum) result.maximum = highest[i];
  }
  return result;
}

template <typename T>
static CombinedRow<T> combine_rows(const T* row0, const T* row1, const T* row2, T weight0,
                                   T weight1, T weight2, T threshold, int skip, int count, int y,
                                   T* column_maxima, uint8_t* bits, Flip* flips) {
  const auto run = row2 ? combine<T, true> : combine<T, false>;
  return run(row0, row1, row2, weight0, weight1, weight2, threshold, skip, count, y, column_maxima,
             bits, flips);
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

template <typename T>
static const Kernels<T>& table() {
  static const Kernels<T> kernels = {
      load_row<T>,        store_row<T>,  correlate_row<T>,  expand_row<T>,
      combine_rows<T>,    sigmoid_row,   grid_targets,      image_targets,
      background_keys<T>, count_keys<T>, loss_and_gradient, add_phi_gradient<T>,
      psi_gradient_block<T>,
  };
  return kernels;
}
