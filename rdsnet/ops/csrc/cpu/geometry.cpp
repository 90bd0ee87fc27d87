#include "geometry.h"

#include <algorithm>
#include <cmath>

namespace rdsnet {
namespace {

// The first pixel whose centre is not left of the edge; 0 <= result <= limit.
int64_t first_pixel(double edge, int64_t limit) {
  return int64_t(std::min(std::max(std::ceil(edge - 0.5), 0.0), double(limit)));
}

}  // namespace

void expanded_windows(const double* boxes, int64_t count, double expand, const int64_t* sizes,
                      const int64_t* image, int64_t* windows) {
  for (int64_t n = 0; n < count; ++n) {
    const double* const box = boxes + 4 * n;
    const int64_t* const size = sizes + (image ? 2 * image[n] : 0);
    int64_t* const window = windows + 4 * n;
    bool valid = true;
    for (int axis = 0; axis < 2; ++axis) {
      const double low = box[axis], high = box[axis + 2];
      // Rounded on its own: a fused multiply-add would decide ties another way than PyTorch does.
      const volatile double half = (high - low) * (expand / 2);
      const double centre = (low + high) / 2, begin = centre - half, end = centre + half;
      valid = valid && std::isfinite(begin) && std::isfinite(end) && low <= high;
      window[axis] = valid ? first_pixel(begin, size[1 - axis]) : 0;
      window[axis + 2] = valid ? first_pixel(end, size[1 - axis]) : 0;
    }
    if (!valid) std::fill(window, window + 4, 0);
  }
}

void resize_taps(int64_t output, double scale, int64_t grid, int64_t* first, float* weights) {
  for (int64_t o = 0; o < output; ++o) {
    const volatile double from_corner = (double(o) + 0.5) * scale;
    const double position = std::min(std::max(from_corner - 0.5, 0.0), double(grid - 1));
    first[o] = int64_t(position);
    const double fraction = position - double(first[o]);
    weights[o * kTaps] = float(1 - fraction);
    weights[o * kTaps + 1] = float(fraction);
    weights[o * kTaps + 2] = 0.f;
  }
}

}  // namespace rdsnet
