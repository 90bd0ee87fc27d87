// Included by kernels_impl.h: interpolation to the output, maxima, threshold.

// --- along the rows ----------------------------------------------------------------------------

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

// --- across the rows, and the threshold --------------------------------------------------------

// Block j of kPixels is byte j: pixel i of 64 is bit i.
static inline uint64_t load_word(const uint8_t* bits) {
  uint64_t word;
  __builtin_memcpy(&word, bits, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

// Where a row of bits differs from the one above it. Returns the number of flips.
static inline int find_flips(const uint8_t* above, const uint8_t* bits, int words, int y,
                             Flip* flips) {
  int num_flips = 0;
  for (int w = 0; w < words; ++w) {
    uint64_t changed = load_word(above + 8 * w) ^ load_word(bits + 8 * w);
    const int found = __builtin_popcountll(changed);
    // Most rows have no more than two flips: writing two places without asking saves branches that
    // nobody can predict.
    Flip* out = flips + num_flips;
    for (int i = 0; i < kSpareFlips || i < found; ++i) {
      out[i].x = 64 * w + (changed ? __builtin_ctzll(changed) : 0);
      out[i].y = y;
      changed &= changed - 1;
    }
    num_flips += found;
  }
  return num_flips;
}

// All rows in one pass: what they look at, and the maxima of the columns, are loaded once.
template <typename T, int kRows, bool kThreeTaps>
static int combine(const OutputRows<T>& rows, T threshold) {
  using Vec = typename Simd<T>::Vec;
  using Mask = typename Simd<T>::Mask;
  using Int = typename Simd<T>::Int;
  constexpr int kLane = kLanes<T>, kVectors = kPixels / kLane;
  Mask lane;
  for (int i = 0; i < kLane; ++i) lane[i] = i;
  const Vec limit = splat(threshold), nothing = splat(T(0)) - (T)__builtin_inf();
  Vec weight[kRows][3], highest[kRows];
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 3; ++k) weight[r][k] = splat(rows.weights[r * 3 + k]);
    highest[r] = nothing;
  }
  const T *const grid0 = rows.grid[0], *const grid1 = rows.grid[1], *const grid2 = rows.grid[2];
  T* const column_maxima = rows.column_maxima;
  const int blocks = (rows.end + kPixels - 1) / kPixels, words = (blocks + 7) / 8;
  uint8_t* const bits = rows.bits;
  const int stride = 8 * words;
  // One block of all rows; only the first and the last one have pixels outside the window.
  const auto block = [&](int b, bool outer) __attribute__((always_inline)) {
    unsigned foreground[kRows] = {};
    for (int v = 0; v < kVectors; ++v) {
      const int x = b * kPixels + v * kLane;
      const Vec cell0 = load(grid0 + x), cell1 = load(grid1 + x);
      const Vec cell2 = kThreeTaps ? load(grid2 + x) : cell0;
      const Mask place = lane + Int(x);
      const Mask inside = (place >= Int(rows.skip)) & (place < Int(rows.end));
      Vec best = load(column_maxima + x);
      for (int r = 0; r < kRows; ++r) {
        Vec z = cell0 * weight[r][0];
        z = fma_<T>(cell1, weight[r][1], z);
        if (kThreeTaps) z = fma_<T>(cell2, weight[r][2], z);
        if (outer) z = inside ? z : nothing;
        highest[r] = max_<T>(z, highest[r]);
        best = max_<T>(z, best);
        foreground[r] |= bits_of<T>(z > limit) << (v * kLane);
      }
      store(column_maxima + x, best);
    }
    for (int r = 0; r < kRows; ++r) bits[(r + 1) * stride + b] = uint8_t(foreground[r]);
  };
  block(0, true);
  for (int b = 1; b < blocks - 1; ++b) block(b, false);
  if (blocks > 1) block(blocks - 1, true);

  int num_flips = 0;
  for (int r = 0; r < kRows; ++r) {
    num_flips += find_flips(bits + r * stride, bits + (r + 1) * stride, words, rows.first + r,
                            rows.flips + num_flips);
    rows.row_maxima[rows.first + r] = largest<T>(highest[r]);
  }
  for (int w = 0; w < words; ++w) {
    __builtin_memcpy(bits + 8 * w, bits + kRows * stride + 8 * w, 8);
  }
  return num_flips;
}

template <typename T>
static int combine_rows(const OutputRows<T>& rows, T threshold) {
  static_assert(kMaxRows == 4, "a function for every number of rows");
  using Combine = int (*)(const OutputRows<T>&, T);
  constexpr Combine two_taps[] = {combine<T, 1, false>, combine<T, 2, false>, combine<T, 3, false>,
                                  combine<T, 4, false>};
  constexpr Combine three_taps[] = {combine<T, 1, true>, combine<T, 2, true>, combine<T, 3, true>,
                                    combine<T, 4, true>};
  return (rows.grid[2] ? three_taps : two_taps)[rows.count - 1](rows, threshold);
}
