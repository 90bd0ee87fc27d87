#include "mining.h"

namespace rdsnet {
namespace {

constexpr int kLine = 64;  // bytes
constexpr int kAhead = 2;  // rows: too far apart for the processor to see the next ones coming

void prefetch(const uint8_t* begin, const uint8_t* end) {
  for (; begin < end; begin += kLine) __builtin_prefetch(begin);
}

// As image_targets, for any stride.
void image_targets_of(const uint8_t* upper, const uint8_t* lower, int64_t width, int stride,
                      int block_begin, int block_end, uint16_t* bits) {
  for (int64_t b = block_begin; b < block_end; ++b) {
    unsigned found = 0;
    for (int i = 0; i < kCells; ++i) {
      const int64_t left = (b * kCells + i) * stride + (stride - 1) / 2;
      const int64_t right = left + (stride % 2 == 0);
      if (right >= width) break;
      const int votes = upper[left] + upper[right] + lower[left] + lower[right];
      found |= unsigned(votes >= 3) << i;
    }
    *bits++ = uint16_t(found);
  }
}

// Foreground cells of one row of an item.
void read_row(const TargetMap& map, const Item& item, int64_t y, uint16_t* foreground) {
  const Kernels<float>& run = kernels<float>();
  const int begin = item.block_begin, end = item.block_end, stride = map.stride;
  const int64_t row = stride * y + (stride - 1) / 2, next = stride % 2 == 0;
  if (row + next >= map.height) {
    std::fill(foreground, foreground + (end - begin), 0);
    return;
  }
  const uint8_t* const upper = map.data + row * map.width;
  const uint8_t* const lower = upper + next * map.width;
  if (y + kAhead < item.row_end && row + kAhead * stride + next < map.height) {
    const int64_t ahead = kAhead * stride * map.width, block = int64_t(stride) * kCells;
    const int64_t first = ahead + block * begin, last = ahead + std::min(block * end, map.width);
    prefetch(upper + first, upper + last);
    if (next) prefetch(lower + first, lower + last);
  }
  if (stride == 1) {
    run.grid_targets(upper, map.width, begin, end, foreground);
  } else if (stride == 4) {
    run.image_targets(upper, lower, map.width, begin, end, foreground);
  } else {
    image_targets_of(upper, lower, map.width, stride, begin, end, foreground);
  }
}

}  // namespace

int64_t TargetReader::read(const TargetMap& map, Window window, const Item& item) {
  const int blocks = item.block_end - item.block_begin;
  const int64_t wanted = int64_t(item.row_end - item.row_begin) * blocks;
  if (int64_t(targets.size()) < wanted) targets.resize(wanted);
  if (int(foreground_.size()) < blocks) foreground_.resize(blocks);
  BlockTargets* row = targets.data();
  int64_t count = 0;
  for (int y = item.row_begin; y < item.row_end; ++y, row += blocks) {
    read_row(map, item, y, foreground_.data());
    for (int b = 0; b < blocks; ++b) {
      unsigned inside = 0xffff;
      if (b == 0) inside &= 0xffffu << window.x1 % kCells;
      if (b == blocks - 1) inside &= 0xffffu >> (kCells - 1 - (window.x2 - 1) % kCells);
      row[b].foreground = uint16_t(foreground_[b] & inside);
      row[b].background = uint16_t(~foreground_[b] & inside);
      count += __builtin_popcount(row[b].foreground);
    }
  }
  return count;
}

template <typename T>
T hardest(const typename SignedKey<T>::type* keys, BlockTargets* targets, int64_t blocks,
          int64_t wanted) {
  using Signed = typename SignedKey<T>::type;
  using Bits = typename Key<T>::type;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  const Kernels<T>& run = kernels<T>();
  // The largest key that enough others are not below, bit by bit; any that exactly as many are not
  // below does as well.
  Bits prefix = 0;
  int64_t found = -1;
  for (Bits bit = kSign; bit != 0 && found != wanted; bit >>= 1) {
    const int64_t count = run.count_keys(keys, blocks, Signed((prefix | bit) ^ kSign));
    if (count < wanted) continue;
    prefix |= bit;
    found = count;
  }
  const Signed least = Signed(prefix ^ kSign);
  for (int64_t i = blocks * kCells - 1; found > wanted; --i) {
    if (keys[i] != least) continue;
    targets[i / kCells].background &= uint16_t(~(1u << i % kCells));
    --found;
  }
  return key_to_number<T>(prefix);
}

template float hardest<float>(const int32_t*, BlockTargets*, int64_t, int64_t);
template double hardest<double>(const int64_t*, BlockTargets*, int64_t, int64_t);

}  // namespace rdsnet
