// Included by kernels_impl.h: vectors of 32 bytes.

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

// The largest lane; no lane may be a NaN.
template <typename T>
static inline T largest(typename Simd<T>::Vec v) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    const __m256 all = (__m256)v;
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
#endif
  T largest = v[0];
  for (int i = 1; i < kLanes<T>; ++i) {
    if (v[i] > largest) largest = v[i];
  }
  return largest;
}

// The sum of the lanes.
template <typename T>
static inline T total_of(typename Simd<T>::Vec v) {
#ifdef RDSNET_AVX2
  if constexpr (sizeof(T) == 4) {
    const __m256 all = (__m256)v;
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
#endif
  T total = v[0];
  for (int i = 1; i < kLanes<T>; ++i) total += v[i];
  return total;
}
