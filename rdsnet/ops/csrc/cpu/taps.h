// Interpolation along one axis, as tables that the inner loops read.
#pragma once

#include <vector>

#include "../common.h"
#include "kernels.h"

namespace rdsnet {

// Linear map of one axis: output o is sum_k weights[3 o + k] * cell[first[o] + k].
template <typename T>
struct TapsView {
  const int64_t* first;
  const T* weights;
  int64_t output;
};

// 2 where no third weight is used, else 3.
template <typename T>
int used_taps(const TapsView<T>& taps);

// From cells to pixels: storage behind ColumnTaps, for whole blocks of kCells pixels.
template <typename T>
class ColumnTable {
 public:
  ColumnTable(const TapsView<T>& taps, int cells);
  ColumnTable(const ColumnTable&) = delete;

  std::vector<int32_t> base, last;  // per block of kPixels: its first and its last cell
  ColumnTaps<T> view;

 private:
  std::vector<int32_t> offset_;
  std::vector<T> weight_;
};

// From pixels back to cells: storage behind CellTaps. taps.first must not decrease.
template <typename T>
class CellTable {
 public:
  CellTable(const TapsView<T>& taps, int cells);
  CellTable(const CellTable&) = delete;

  CellTaps<T> view;
  int longest = 0;  // pixels that any one cell is read with

 private:
  std::vector<int32_t> first_, begin_;
  std::vector<T> weight_;
};

}  // namespace rdsnet
