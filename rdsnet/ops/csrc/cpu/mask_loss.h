// The mask loss with online hard example mining, on top of the correlation.
#pragma once

#include "correlate.h"

namespace rdsnet {

// The ground-truth mask of an object: on the grid of psi (non-zero is foreground), or at the
// resolution of the image (0 or 1), where a cell of 4 x 4 pixels is foreground when at least 3 of
// its 4 middle pixels are.
struct TargetMap {
  const uint8_t* data;
  int64_t height, width;
  bool on_grid;
};

// loss (N), and d loss / d logit in whole blocks (block_offsets), 0 outside the window. maps (N).
// mining < 0 keeps every pixel of the window.
template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects, const TargetMap* maps,
               double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient);

}  // namespace rdsnet
