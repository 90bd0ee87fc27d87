// Correlation on the feature grid, packed window by window, and the mask loss on top of it.
//
// deltas (N, D) are phi_fg - phi_bg; offsets (N + 1) say where each object's logits begin.
#pragma once

#include "sweep.h"

namespace rdsnet {

struct Objects {
  int64_t count;
  const int64_t* image;   // (N)
  const Window* window;   // (N), clamped to the grid
  const int64_t* offset;  // (N + 1)
};

template <typename T>
void correlate(const PsiView& psi, const T* deltas, const Objects& objects, int groups,
               const Parallel& parallel, T* logits);

// loss (N), and d loss / d logit (packed). targets (M, h, w): non-zero is foreground.
// mining < 0 keeps every pixel of the window.
template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects,
               const uint8_t* targets, const int64_t* target_index, double mining, int groups,
               const Parallel& parallel, T* loss, T* logit_gradient);

// Gradients for packed d / d logit, times scale[n] (may be null) for each object n, in one pass over
// the rows. delta_gradient is (N, D). Writes every element of psi_gradient, a tensor of psi's shape
// whose `data` is written to.
template <typename T>
void correlate_backward(const PsiView& psi, const PsiView& psi_gradient, const T* deltas,
                        const Objects& objects, const T* logit_gradient, const T* scale,
                        const Parallel& parallel, T* delta_gradient);

}  // namespace rdsnet
