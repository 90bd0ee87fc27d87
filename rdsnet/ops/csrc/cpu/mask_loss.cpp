#include "mask_loss.h"

#include <limits>

namespace rdsnet {
namespace {

constexpr int kStride = 4;  // pixels of an image per cell
constexpr int kLine = 64;   // bytes

void prefetch(const uint8_t* begin, const uint8_t* end) {
  for (; begin < end; begin += kLine) __builtin_prefetch(begin);
}

// Foreground cells of one row of an item.
template <typename T>
void read_row(const TargetMap& map, const Item& item, int64_t y, uint16_t* foreground) {
  constexpr int64_t kBlock = kStride * kCells;
  constexpr int kAhead = 2;  // rows: too far apart for the processor to see the next ones coming
  const Kernels<T>& run = kernels<T>();
  const int begin = item.block_begin, end = item.block_end;
  const int64_t row = map.on_grid ? y : kStride * y + 1;
  const uint8_t* const upper = map.data + row * map.width;
  const uint8_t* const lower = upper + map.width;
  if (map.on_grid) {
    run.grid_targets(upper, map.width, begin, end, foreground);
  } else if (row + 1 >= map.height) {
    std::fill(foreground, foreground + (end - begin), 0);
  } else {
    if (y + kAhead < item.row_end && row + kAhead * kStride + 1 < map.height) {
      const int64_t ahead = kAhead * kStride * map.width;
      const int64_t first = ahead + kBlock * begin, last = std::min(kBlock * end, map.width);
      prefetch(upper + first, upper + ahead + last);
      prefetch(lower + first, lower + ahead + last);
    }
    run.image_targets(upper, lower, map.width, begin, end, foreground);
  }
}

// Targets of an object's window; returns the number of foreground cells.
template <typename T>
int64_t read_targets(const TargetMap& map, Window window, const Item& item, uint16_t* foreground,
                     BlockTargets* targets) {
  const int blocks = item.block_end - item.block_begin;
  int64_t count = 0;
  for (int y = item.row_begin; y < item.row_end; ++y, targets += blocks) {
    read_row<T>(map, item, y, foreground);
    for (int b = 0; b < blocks; ++b) {
      unsigned inside = 0xffff;
      if (b == 0) inside &= 0xffffu << window.x1 % kCells;
      if (b == blocks - 1) inside &= 0xffffu >> (kCells - 1 - (window.x2 - 1) % kCells);
      targets[b].foreground = uint16_t(foreground[b] & inside);
      targets[b].background = uint16_t(~foreground[b] & inside);
      count += __builtin_popcount(targets[b].foreground);
    }
  }
  return count;
}

// The number that the `wanted` hardest background cells, 0 < wanted < all of them, are not below.
// Of equally hard ones the first count; the others are taken out of the background.
template <typename T>
T mine(const T* z, BlockTargets* targets, int64_t blocks, int64_t wanted,
       std::vector<typename SignedKey<T>::type>* room) {
  using Signed = typename SignedKey<T>::type;
  using Bits = typename Key<T>::type;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(T) - 1);
  const Kernels<T>& run = kernels<T>();
  if (int64_t(room->size()) < blocks * kCells) room->resize(blocks * kCells);
  Signed* const keys = room->data();
  run.background_keys(z, targets, blocks, keys);
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

}  // namespace

template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects, const TargetMap* maps,
               double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient) {
  std::fill(loss, loss + objects.count, T(0));
  const std::vector<int64_t> offset = block_offsets(objects);
  const int padded_dims = psi.padded_dims();
  const std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, padded_dims);
  const Kernels<T>& run = kernels<T>();
  const auto shares = share(window_items(objects), groups);
  parallel(int64_t(shares.size()), [&](int64_t group) {
    std::vector<uint16_t> foreground(psi.blocks());
    std::vector<BlockTargets> targets;
    std::vector<typename SignedKey<T>::type> keys;
    const auto visit = [&](const Item& item, int y, const T* row) {
      const int64_t place = offset[item.object] + int64_t(y - item.row_begin) *
                                                      (item.block_end - item.block_begin);
      run.correlate_row(row, delta.data() + int64_t(item.object) * padded_dims, padded_dims,
                        item.block_begin, item.block_end, logit_gradient + place * kCells);
    };
    // An object's logits are complete: they become the gradient.
    const auto finish = [&](const Item& item) {
      const int n = item.object;
      const Window window = objects.window[n];
      const int64_t blocks = offset[n + 1] - offset[n];
      T* const z = logit_gradient + offset[n] * kCells;
      if (int64_t(targets.size()) < blocks) targets.resize(blocks);
      const int64_t positives =
          read_targets<T>(maps[n], window, item, foreground.data(), targets.data());
      const int64_t negatives = window_area(window) - positives;
      const int64_t wanted = kept_negatives(positives, negatives, mining);
      T threshold = std::numeric_limits<T>::infinity();
      if (wanted == negatives) {
        threshold = -threshold;
      } else if (wanted > 0) {
        threshold = mine(z, targets.data(), blocks, wanted, &keys);
      }
      const T scale = T(1) / T(positives + wanted + 1);
      const double sum = run.loss_and_gradient(z, targets.data(), blocks, threshold, scale);
      loss[n] = T(sum * double(scale));
    };
    sweep<T>(psi, shares[group], nullptr, visit, finish);
  });
}

#define RDSNET_INSTANTIATE(T)                                                                  \
  template void mask_loss<T>(const PsiView&, const T*, const Objects&, const TargetMap*,      \
                             double, int, const Parallel&, T*, T*);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
