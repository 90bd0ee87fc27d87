// Included by kernels_impl.h: interpolation from rows of cells to rows of pixels, and back.

template <typename T, bool kThreeTaps>
static void blend(const T* const* rows, const T* weights, int64_t blocks, T* out) {
  const T *const row0 = rows[0], *const row1 = rows[1], *const row2 = rows[2];
  const typename Simd<T>::Vec w0 = splat(weights[0]), w1 = splat(weights[1]);
  const typename Simd<T>::Vec w2 = splat(weights[2]);
  for (int64_t i = 0; i < blocks * kPixels; i += kLanes<T>) {
    typename Simd<T>::Vec z = fma_<T>(load(row1 + i), w1, load(row0 + i) * w0);
    if (kThreeTaps) z = fma_<T>(load(row2 + i), w2, z);
    store(out + i, z);
  }
}

template <typename T>
static void blend_rows(const T* const* rows, const T* weights, int64_t blocks, T* out) {
  (rows[2] ? blend<T, true> : blend<T, false>)(rows, weights, blocks, out);
}

template <typename T, bool kThreeTaps>
static void spread(const T* row, const T* weights, int64_t blocks, T* const* rows) {
  T *const row0 = rows[0], *const row1 = rows[1], *const row2 = rows[2];
  const typename Simd<T>::Vec w0 = splat(weights[0]), w1 = splat(weights[1]);
  const typename Simd<T>::Vec w2 = splat(weights[2]);
  for (int64_t i = 0; i < blocks * kPixels; i += kLanes<T>) {
    const typename Simd<T>::Vec value = load(row + i);
    store(row0 + i, fma_<T>(value, w0, load(row0 + i)));
    store(row1 + i, fma_<T>(value, w1, load(row1 + i)));  // perhaps the same row
    if (kThreeTaps) store(row2 + i, fma_<T>(value, w2, load(row2 + i)));
  }
}

template <typename T>
static void spread_row(const T* row, const T* weights, int64_t blocks, T* const* rows) {
  (rows[2] ? spread<T, true> : spread<T, false>)(row, weights, blocks, rows);
}

template <typename T>
static void reduce_row(const T* pixels, int64_t origin, const CellTaps<T>& taps, int cell_begin,
                       int cell_end, T* out) {
  using Vec = typename Simd<T>::Vec;
  pixels -= origin;
  for (int cell = cell_begin; cell < cell_end; ++cell) {
    const T* pixel = pixels + taps.first[cell];
    Vec sum = {};
    for (int i = taps.begin[cell]; i < taps.begin[cell + 1]; i += kLanes<T>) {
      sum = fma_<T>(load(pixel), load(taps.weight + i), sum);
      pixel += kLanes<T>;
    }
    *out++ = total_of<T>(sum);
  }
}
