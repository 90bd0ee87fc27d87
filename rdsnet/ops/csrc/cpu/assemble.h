// Masks at the output resolution: correlation, interpolation, threshold, run lengths, maxima.
#pragma once

#include <vector>

#include "sweep.h"
#include "taps.h"

namespace rdsnet {

template <typename T>
struct MaskOutput {
  int64_t* areas;     // (N)
  T* row_maxima;      // (N, H), probabilities; 0 outside the window
  T* column_maxima;   // (N, W), likewise
  std::vector<std::vector<uint32_t>> runs;  // per object: COCO's uncompressed run lengths
};

// windows (N, 4) are clamped to the output here.
template <typename T>
void assemble(const PsiView& psi, const T* deltas, const int64_t* windows, int64_t objects,
              const TapsView<T>& taps_y, const TapsView<T>& taps_x, T logit_threshold,
              int groups, const Parallel& parallel, MaskOutput<T>* output);

// COCO's compressed form of run lengths, at most kLongestCode characters each. Returns its end.
constexpr int kLongestCode = 13;  // 5 of 64 bits a character
char* encode_runs(const int64_t* runs, int64_t count, char* text);

}  // namespace rdsnet
