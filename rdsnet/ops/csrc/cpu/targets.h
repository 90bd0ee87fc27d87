// Ground-truth masks on the grid of the pixel representations.
#pragma once

#include "../common.h"

namespace rdsnet {

// masks (M, height, width), 0 or 1 -> targets (M, grid_height, grid_width), zeros on entry, written
// inside the windows. A cell of stride x stride pixels is foreground when at least 3 of its 4 middle
// pixels are (of an odd stride: the middle one). What lies outside the windows is neither read nor
// written.
void mask_targets(const uint8_t* masks, int64_t count, int64_t height, int64_t width, int stride,
                  const Window* windows, int64_t grid_height, int64_t grid_width,
                  uint8_t* targets);

}  // namespace rdsnet
