// Included by kernels_impl.h: targets, the hardest background, cross-entropy.

// --- targets -----------------------------------------------------------------------------------

// kBytes bytes of a row, zeros beyond its end; in `room` if that is needed.
template <int kBytes>
static inline const uint8_t* piece_of_row(const uint8_t* row, int64_t width, int64_t begin,
                                          uint8_t* room) {
  if (begin + kBytes <= width) return row + begin;
  for (int64_t i = 0; i < kBytes; ++i) room[i] = begin + i < width ? row[begin + i] : 0;
  return room;
}

static void grid_targets(const uint8_t* row, int64_t width, int block_begin, int block_end,
                         uint16_t* bits) {
  uint8_t room[kCells];
  for (int64_t b = block_begin; b < block_end; ++b) {
    const uint8_t* const cells = piece_of_row<kCells>(row, width, b * kCells, room);
#ifdef RDSNET_AVX2
    const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cells));
    *bits++ = uint16_t(~_mm_movemask_epi8(_mm_cmpeq_epi8(loaded, _mm_setzero_si128())));
#else
    unsigned found = 0;
    for (int i = 0; i < kCells; ++i) found |= unsigned(cells[i] != 0) << i;
    *bits++ = uint16_t(found);
#endif
  }
}

static void image_targets(const uint8_t* upper, const uint8_t* lower, int64_t width,
                          int block_begin, int block_end, uint16_t* bits) {
  using Mask = Simd<float>::Mask;
  constexpr int kStride = 4, kBytes = kCells * kStride, kLane = kLanes<float>;
  uint8_t room[2][kBytes];
  for (int64_t b = block_begin; b < block_end; ++b) {
    const uint8_t* const above = piece_of_row<kBytes>(upper, width, b * kBytes, room[0]);
    const uint8_t* const below = piece_of_row<kBytes>(lower, width, b * kBytes, room[1]);
    unsigned found = 0;
    for (int i = 0; i < kCells; i += kLane) {
      // Four pixels in one number: their bytes do not overflow, and bytes 1 and 2 are the middle
      // ones in either byte order.
      const Mask votes = (Mask)load(reinterpret_cast<const float*>(above + i * kStride)) +
                         (Mask)load(reinterpret_cast<const float*>(below + i * kStride));
      const Mask middle = ((votes >> 8) + (votes >> 16)) & 0xff;
      found |= bits_of<float>(middle >= 3) << i;
    }
    *bits++ = uint16_t(found);
  }
}

// --- the hardest background --------------------------------------------------------------------

// All bits of the lanes whose bit is set.
template <typename T>
static inline typename Simd<T>::Mask lanes_of(unsigned bits) {
  using Int = typename Simd<T>::Int;
  typename Simd<T>::Mask lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = Int(1) << i;
  return (lane & Int(bits)) != 0;
}

template <typename T>
static void background_keys(const T* z, const BlockTargets* targets, int64_t blocks,
                            typename SignedKey<T>::type* keys) {
  using Vec = typename Simd<T>::Vec;
  using Mask = typename Simd<T>::Mask;
  using Int = typename Simd<T>::Int;
  constexpr int kSign = 8 * sizeof(T) - 1;
  const Int lowest = Int(uint64_t(1) << kSign);
  for (int64_t b = 0; b < blocks; ++b) {
    for (int i = 0; i < kCells; i += kLanes<T>) {
      // Adding 0 makes -0 and 0 the same number.
      const Mask raw = (Mask)(load(z + b * kCells + i) + splat(T(0)));
      const Mask key = raw ^ ((raw >> kSign) & ~lowest);
      const Mask chosen = lanes_of<T>(unsigned(targets[b].background) >> i);
      const Mask result = (key & chosen) | (~chosen & lowest);
      store(reinterpret_cast<T*>(keys + b * kCells + i), (Vec)result);
    }
  }
}

template <typename T>
static int64_t count_keys(const typename SignedKey<T>::type* keys, int64_t blocks,
                          typename SignedKey<T>::type least) {
  using Mask = typename Simd<T>::Mask;
  constexpr int kVectors = kCells / kLanes<T>;
  Mask found[kVectors] = {};
  const T* place = reinterpret_cast<const T*>(keys);
  for (int64_t b = 0; b < blocks; ++b, place += kCells) {
    for (int v = 0; v < kVectors; ++v) {
      found[v] -= (Mask)load(place + v * kLanes<T>) >= least;
    }
  }
  int64_t total = 0;
  for (int v = 0; v < kVectors; ++v) {
    for (int i = 0; i < kLanes<T>; ++i) total += found[v][i];
  }
  return total;
}

// --- cross-entropy -----------------------------------------------------------------------------

// The losses of the kept lanes; their gradients replace the logits.
static inline Simd<float>::Vec loss_vector(float* z, unsigned foreground_bits,
                                           unsigned background_bits, float threshold,
                                           float scale) {
  using Vec = Simd<float>::Vec;
  using Mask = Simd<float>::Mask;
  const Vec logit = load(z), zero = splat(0.f);
  const Mask foreground = lanes_of<float>(foreground_bits);
  // Not `>=`: a NaN is kept, so that it shows in the loss.
  const Mask kept =
      foreground | (lanes_of<float>(background_bits) & ~(logit < splat(threshold)));
  if (bits_of<float>(kept) == 0) {
    store(z, zero);
    return zero;
  }
  const Vec e = exp_negative(-magnitude(logit));
  const Vec loss = max_<float>(zero, foreground ? -logit : logit) + log1p_(e);
  const Vec gradient = sigmoid_vector(logit, e) - (foreground ? splat(1.f) : zero);
  store(z, kept ? gradient * splat(scale) : zero);
  return kept ? loss : zero;
}

static double loss_and_gradient(float* z, const BlockTargets* targets, int64_t blocks,
                                float threshold, float scale) {
  constexpr int kLane = kLanes<float>, kStretch = 32;
  double total = 0;
  for (int64_t b = 0; b < blocks;) {
    // Single precision for a stretch, double for their sum.
    const int64_t end = blocks - b > kStretch ? b + kStretch : blocks;
    Simd<float>::Vec sum = {};
    for (; b < end; ++b) {
      for (int i = 0; i < kCells; i += kLane) {
        sum += loss_vector(z + b * kCells + i, unsigned(targets[b].foreground) >> i,
                           unsigned(targets[b].background) >> i, threshold, scale);
      }
    }
    for (int i = 0; i < kLane; ++i) total += double(sum[i]);
  }
  return total;
}

static double loss_and_gradient(double* z, const BlockTargets* targets, int64_t blocks,
                                double threshold, double scale) {
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int i = 0; i < kCells; ++i) {
      double& value = z[b * kCells + i];
      const bool foreground = targets[b].foreground >> i & 1;
      if (foreground || ((targets[b].background >> i & 1) && !(value < threshold))) {
        total += pixel_loss(value, foreground);
        value = scale * pixel_gradient(value, foreground);
      } else {
        value = 0;
      }
    }
  }
  return total;
}
