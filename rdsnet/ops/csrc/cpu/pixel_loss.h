// The mask loss at the pixels of the image, where the ground truth is exact: logits of the grid are
// interpolated inside each window, and the gradient goes the same way back.
#pragma once

#include "correlate.h"
#include "mining.h"
#include "taps.h"

namespace rdsnet {

// The cells that windows of pixels look at, on a grid of height x width; taps.first must not
// decrease.
template <typename T>
std::vector<Window> cells_of(const std::vector<Window>& pixels, const TapsView<T>& taps_y,
                             const TapsView<T>& taps_x, int64_t height, int64_t width);

// As mask_loss. objects.window holds the cells (cells_of) of the windows `pixels` (N), which lie in
// their maps and in the output of the taps. The maps' stride is 1.
template <typename T>
void pixel_loss(const PsiView& psi, const T* deltas, const Objects& objects, const Window* pixels,
                const TargetMap* maps, const TapsView<T>& taps_y, const TapsView<T>& taps_x,
                double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient);

}  // namespace rdsnet
