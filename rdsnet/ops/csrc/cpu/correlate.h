// Correlation on the feature grid, window by window, and its gradients.
//
// deltas (N, D) are phi_fg - phi_bg. Numbers of the windows' cells are packed row by row, or kept
// in whole blocks of kCells cells, which needs no copying to and fro.
#pragma once

#include <vector>

#include "sweep.h"

namespace rdsnet {

struct Objects {
  int64_t count;
  const int64_t* image;   // (N)
  const Window* window;   // (N), clamped to the grid
  const int64_t* offset;  // (N + 1), where packed numbers begin
};

// One item per window that is not empty.
std::vector<Item> window_items(const Objects& objects);

// (N + 1), in blocks: where the rows of each object begin if they are kept in whole blocks.
std::vector<int64_t> block_offsets(const Objects& objects);

// Packed logits.
template <typename T>
void correlate(const PsiView& psi, const T* deltas, const Objects& objects, int groups,
               const Parallel& parallel, T* logits);

// Gradients, in one pass over the rows, for d / d logit: packed, or where block_offset is given in
// whole blocks, 0 outside the window. Those of object n count scale[n] times (once if scale is
// null). delta_gradient is (N, D). Writes every element of psi_gradient, a tensor of psi's shape
// whose `data` is written to.
template <typename T>
void correlate_backward(const PsiView& psi, const PsiView& psi_gradient, const T* deltas,
                        const Objects& objects, const T* logit_gradient,
                        const int64_t* block_offset, const T* scale, const Parallel& parallel,
                        T* delta_gradient);

}  // namespace rdsnet
