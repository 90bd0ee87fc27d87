#include "taps.h"

#include <algorithm>

namespace rdsnet {

template <typename T>
int used_taps(const TapsView<T>& taps) {
  for (int64_t o = 0; o < taps.output; ++o) {
    if (taps.weights[o * kTaps + 2] != T(0)) return 3;
  }
  return 2;
}

template <typename T>
ColumnTable<T>::ColumnTable(const TapsView<T>& taps, int cells) {
  const int64_t columns = (taps.output + kCells - 1) / kCells * kCells;
  const int64_t blocks = columns / kPixels;
  const int count = used_taps(taps);
  base.resize(blocks);
  last.resize(blocks);
  bool all_narrow = true;
  offset_.resize(count * columns);
  weight_.resize(count * columns);
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t lowest = cells - 1, highest = 0;
    for (int64_t o = b * kPixels; o < (b + 1) * kPixels; ++o) {
      const int64_t source = std::min(o, taps.output - 1);
      for (int k = 0; k < count; ++k) {
        const int32_t cell = int32_t(tap_cell(taps.first[source], k, cells));
        offset_[k * columns + o] = cell;
        weight_[k * columns + o] = taps.weights[source * kTaps + k];
        lowest = std::min(lowest, cell);
        highest = std::max(highest, cell);
      }
    }
    base[b] = lowest;
    last[b] = highest;
    all_narrow = all_narrow && highest - lowest < kPixels;
    for (int k = 0; k < count; ++k) {
      for (int i = 0; i < kPixels; ++i) offset_[k * columns + b * kPixels + i] -= lowest;
    }
  }
  view = {count, base.data(), all_narrow, offset_.data(), weight_.data(), columns};
}

template <typename T>
CellTable<T>::CellTable(const TapsView<T>& taps, int cells) {
  const int count = used_taps(taps);
  // The pixels that look at a cell are neighbours: [first, end).
  std::vector<int64_t> end(cells, 0);
  first_.assign(cells, 0);
  for (int64_t o = 0; o < taps.output; ++o) {
    for (int k = 0; k < count; ++k) {
      const int64_t cell = tap_cell(taps.first[o], k, cells);
      if (end[cell] == 0) first_[cell] = int32_t(o);
      end[cell] = o + 1;
    }
  }
  begin_.assign(cells + 1, 0);
  for (int c = 0; c < cells; ++c) {
    const int64_t pixels = end[c] == 0 ? 0 : end[c] - first_[c];
    const int length = int((pixels + kPixels - 1) / kPixels * kPixels);
    begin_[c + 1] = begin_[c] + length;
    longest = std::max(longest, length);
  }
  weight_.assign(begin_[cells], T(0));
  for (int64_t o = 0; o < taps.output; ++o) {
    for (int k = 0; k < count; ++k) {
      const int64_t cell = tap_cell(taps.first[o], k, cells);
      weight_[begin_[cell] + (o - first_[cell])] += taps.weights[o * kTaps + k];
    }
  }
  view = {first_.data(), begin_.data(), weight_.data()};
}

#define RDSNET_INSTANTIATE(T)                     \
  template int used_taps<T>(const TapsView<T>&);  \
  template class ColumnTable<T>;                  \
  template class CellTable<T>;
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
