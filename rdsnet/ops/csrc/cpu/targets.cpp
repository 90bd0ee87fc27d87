#include "targets.h"

#include <string.h>

#include <algorithm>

namespace rdsnet {
namespace {

constexpr int64_t kStride = 4, kCacheLine = 64;

inline uint32_t four_pixels(const uint8_t* row) {
  uint32_t pixels;
  memcpy(&pixels, row, sizeof(pixels));
  return pixels;
}

}  // namespace

void mask_targets(const uint8_t* masks, int64_t count, int64_t height, int64_t width,
                  const Window* windows, int64_t grid_height, int64_t grid_width,
                  uint8_t* targets) {
  for (int64_t m = 0; m < count; ++m) {
    const Window window = windows[m];
    // Only where rows 1 and 2 and columns 1 and 2 of a cell are in the image can it have 3 votes.
    const int64_t last_row = std::min<int64_t>(window.y2, (height + 1) / kStride);
    const int64_t whole = std::min<int64_t>(window.x2, width / kStride);
    const bool cut = width % kStride == 3 && whole < window.x2 && whole >= window.x1;
    for (int64_t y = window.y1; y < last_row; ++y) {
      const uint8_t* const upper = masks + (m * height + kStride * y + 1) * width;
      const uint8_t* const lower = upper + width;
      uint8_t* const out = targets + (m * grid_height + y) * grid_width;
      // Pieces of rows are too short for the processor to see the next ones coming.
      for (int64_t x = kStride * window.x1; x < kStride * whole && y + 2 < last_row;
           x += kCacheLine) {
        __builtin_prefetch(upper + 2 * kStride * width + x);
        __builtin_prefetch(lower + 2 * kStride * width + x);
      }
      for (int64_t x = window.x1; x < whole; ++x) {
        // Four pixels in one number: their bytes do not overflow, and bytes 1 and 2 are the middle
        // ones in either byte order.
        const uint32_t votes = four_pixels(upper + kStride * x) + four_pixels(lower + kStride * x);
        out[x] = (((votes >> 8) + (votes >> 16)) & 0xff) >= 3;
      }
      if (cut) {
        const int64_t left = kStride * whole + 1;
        out[whole] = upper[left] + upper[left + 1] + lower[left] + lower[left + 1] >= 3;
      }
    }
  }
}

}  // namespace rdsnet
