// What the mask losses share: the ground truth of a window as bits, and its hardest background.
#pragma once

#include <vector>

#include "sweep.h"

namespace rdsnet {

// The ground-truth mask of an object. Where stride is 1 it has a value per cell, and non-zero is
// foreground; else it has stride x stride pixels (0 or 1) per cell, which is foreground when at
// least 3 of its 4 middle pixels are (of an odd stride: the middle one).
struct TargetMap {
  const uint8_t* data;
  int64_t height, width;
  int stride;
};

// Reads the ground truth inside windows; one per thread.
class TargetReader {
 public:
  // The targets of an object's window, whose rows and blocks the item has, into `targets` (whole
  // blocks, row after row). Returns the number of foreground cells.
  int64_t read(const TargetMap& map, Window window, const Item& item);

  std::vector<BlockTargets> targets;

 private:
  std::vector<uint16_t> foreground_;
};

// The number that the `wanted` hardest background cells, 0 < wanted < all of them, are not below.
// Of equally hard ones the first count; the others are taken out of the targets' background. keys
// are those of background_keys.
template <typename T>
T hardest(const typename SignedKey<T>::type* keys, BlockTargets* targets, int64_t blocks,
          int64_t wanted);

}  // namespace rdsnet
