// Windows and taps. Both cost little, but would cost a dozen small tensor operations each.
#pragma once

#include "../common.h"

namespace rdsnet {

// rdsnet.modeling.cropping.expanded_windows: boxes (N, 4) -> windows (N, 4). sizes: height and
// width per image; image (N) may be null where there is one.
void expanded_windows(const double* boxes, int64_t count, double expand, const int64_t* sizes,
                      const int64_t* image, int64_t* windows);

// rdsnet.ops.resize_taps: first (output) and weights (output, kTaps); scale is in cells per pixel.
void resize_taps(int64_t output, double scale, int64_t grid, int64_t* first, float* weights);

}  // namespace rdsnet
