// Included by kernels_impl.h: rows of psi in and out of blocks, whatever their element type.

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
