// The mask loss with online hard example mining, on top of the correlation.
#pragma once

#include "correlate.h"
#include "mining.h"

namespace rdsnet {

// loss (N), and d loss / d logit in whole blocks (block_offsets), 0 outside the window. maps (N).
// mining < 0 keeps every pixel of the window.
template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects, const TargetMap* maps,
               double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient);

}  // namespace rdsnet
