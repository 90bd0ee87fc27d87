#include "targets.h"

#include "mining.h"

namespace rdsnet {

void mask_targets(const uint8_t* masks, int64_t count, int64_t height, int64_t width, int stride,
                  const Window* windows, int64_t grid_height, int64_t grid_width,
                  uint8_t* targets) {
  TargetReader truth;
  for (int64_t m = 0; m < count; ++m) {
    const Window window = windows[m];
    if (window_area(window) == 0) continue;
    const Item item = window_item(int(m), 0, window);
    truth.read({masks + m * height * width, height, width, stride}, window, item);
    const BlockTargets* row = truth.targets.data();
    for (int y = window.y1; y < window.y2; ++y, row += item.block_end - item.block_begin) {
      uint8_t* const out = targets + (m * grid_height + y) * grid_width;
      for (int x = window.x1; x < window.x2; ++x) {
        out[x] = row[x / kCells - item.block_begin].foreground >> x % kCells & 1;
      }
    }
  }
}

}  // namespace rdsnet
