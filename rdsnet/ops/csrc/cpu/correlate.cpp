#include "correlate.h"

#include <limits>
#include <numeric>

namespace rdsnet {
namespace {

constexpr int kRadixBits = 11;

std::vector<Item> window_items(const Objects& objects) {
  std::vector<Item> items;
  for (int64_t n = 0; n < objects.count; ++n) {
    if (window_area(objects.window[n]) > 0) {
      items.push_back(window_item(int(n), int(objects.image[n]), objects.window[n]));
    }
  }
  return items;
}

// One row of an object's packed values (times factor), in whole blocks, 0 outside the window.
template <typename T>
void unpack_row(const T* values, Window window, T factor, T* blocks) {
  const int skip = window.x1 % kCells, width = window.x2 - window.x1;
  const int end = (skip + width + kCells - 1) / kCells * kCells;
  std::fill(blocks, blocks + skip, T(0));
  for (int i = 0; i < width; ++i) blocks[skip + i] = values[i] * factor;
  std::fill(blocks + skip + width, blocks + end, T(0));
}

// Calls finish(object) when an object's logits are complete and still in the cache.
template <typename T, typename Finish>
void correlate_then(const PsiView& psi, const T* deltas, const Objects& objects, int groups,
                    const Parallel& parallel, T* logits, const Finish& finish) {
  const int padded_dims = psi.padded_dims();
  const std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, padded_dims);
  const Kernels<T>& run = kernels<T>();
  const auto shares = share(window_items(objects), groups);
  parallel(int64_t(shares.size()), [&](int64_t group) {
    std::vector<T> cells(size_t(psi.blocks()) * kCells);
    const auto visit = [&](const Item& item, int y, const T* row) {
      const int n = item.object;
      const Window window = objects.window[n];
      const int width = window.x2 - window.x1;
      run.correlate_row(row, delta.data() + int64_t(n) * padded_dims, padded_dims,
                        item.block_begin, item.block_end, cells.data());
      std::copy_n(cells.data() + window.x1 % kCells, width,
                  logits + objects.offset[n] + int64_t(y - window.y1) * width);
    };
    sweep<T>(psi, shares[group], nullptr, visit, [&](const Item& item) { finish(item.object); });
  });
}

// The wanted-th largest logit of the background (target 0), by radix selection on its key: the
// first pass counts all pixels, later ones those that share the leading bits with the result.
template <typename T>
T select_threshold(const T* z, const uint8_t* target, int64_t count, int64_t wanted,
                   int64_t* equal, int64_t* equal_wanted) {
  using Bits = typename Key<T>::type;
  constexpr int kBins = 1 << kRadixBits;
  // Two histograms in turn, so that an increment need not wait for the one before it.
  std::vector<uint32_t> bins(2 * kBins);
  std::vector<Bits> keys;
  // Adding 0 makes -0 and 0 the same number.
  const auto key_of = [z](int64_t i) { return ordered_key(z[i] + T(0)); };
  int undecided = 8 * sizeof(T);  // bits
  Bits prefix = 0;
  for (bool first = true;; first = false) {
    const int bits = std::min(kRadixBits, undecided), shift = undecided - bits;
    const Bits mask = (Bits(1) << bits) - 1;
    std::fill(bins.begin(), bins.end(), 0);
    if (first) {
      for (int64_t i = 0; i < count; ++i) {
        bins[(i & 1) * kBins + (key_of(i) >> shift)] += target[i] == 0;
      }
    } else {
      for (size_t i = 0; i < keys.size(); ++i) {
        ++bins[(i & 1) * kBins + ((keys[i] >> shift) & mask)];
      }
    }
    int64_t inside = 0;
    int bin = int(mask);
    for (;; --bin) {
      inside = int64_t(bins[bin]) + bins[kBins + bin];
      if (inside >= wanted) break;
      wanted -= inside;
    }
    prefix = first ? Bits(bin) : (prefix << bits) | Bits(bin);
    undecided = shift;
    if (undecided == 0) {
      *equal = inside;
      *equal_wanted = wanted;
      return key_to_number<T>(prefix);
    }
    if (first) {
      keys.resize(inside + 1);  // one more: where keys that do not count are written
      int64_t filled = 0;
      for (int64_t i = 0; i < count; ++i) {
        const Bits key = key_of(i);
        keys[filled] = key;
        filled += target[i] == 0 && key >> shift == prefix;
      }
      keys.resize(inside);
    } else {
      keys.erase(std::remove_if(keys.begin(), keys.end(),
                                [&](Bits key) { return key >> shift != prefix; }),
                 keys.end());
    }
  }
}

// Loss of one object; z becomes the gradient. target is 1 foreground, 0 background.
template <typename T>
T object_loss(T* z, uint8_t* target, int64_t count, double mining) {
  int64_t positives = 0;
  for (int64_t i = 0; i < count; ++i) positives += target[i];
  const int64_t negatives = count - positives;
  const int64_t wanted = kept_negatives(positives, negatives, mining);
  T threshold = std::numeric_limits<T>::infinity();
  if (wanted == negatives) {
    threshold = -threshold;
  } else if (wanted > 0) {
    int64_t equal, equal_wanted;
    threshold = select_threshold(z, target, count, wanted, &equal, &equal_wanted);
    // Of equally hard pixels the first ones are kept.
    for (int64_t i = 0; equal > equal_wanted && i < count; ++i) {
      if (target[i] == 0 && z[i] == threshold && equal_wanted-- <= 0) target[i] = 2;
    }
  }
  const T scale = T(1) / T(positives + wanted + 1);
  return T(kernels<T>().loss_and_gradient(z, target, count, threshold, scale) * double(scale));
}

}  // namespace

template <typename T>
void correlate(const PsiView& psi, const T* deltas, const Objects& objects, int groups,
               const Parallel& parallel, T* logits) {
  correlate_then(psi, deltas, objects, groups, parallel, logits, [](int) {});
}

template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects,
               const uint8_t* targets, const int64_t* target_index, double mining, int groups,
               const Parallel& parallel, T* loss, T* logit_gradient) {
  std::fill(loss, loss + objects.count, T(0));
  const auto finish = [&](int n) {
    const Window window = objects.window[n];
    const int64_t count = window_area(window);
    const int width = window.x2 - window.x1;
    std::vector<uint8_t> target(count);
    const uint8_t* map = targets + target_index[n] * psi.height * psi.width;
    for (int y = window.y1; y < window.y2; ++y) {
      const uint8_t* in = map + int64_t(y) * psi.width + window.x1;
      uint8_t* out = target.data() + int64_t(y - window.y1) * width;
      for (int i = 0; i < width; ++i) out[i] = in[i] != 0;
    }
    loss[n] = object_loss(logit_gradient + objects.offset[n], target.data(), count, mining);
  };
  correlate_then(psi, deltas, objects, groups, parallel, logit_gradient, finish);
}

template <typename T>
void correlate_backward(const PsiView& psi, const PsiView& psi_gradient, const T* deltas,
                        const Objects& objects, const T* logit_gradient, const T* scale,
                        const Parallel& parallel, T* delta_gradient) {
  constexpr int kRows = 16;  // per task, whatever the number of threads: sums stay the same
  constexpr int kLane = kLanes<T>;
  const int padded_dims = psi.padded_dims(), blocks = psi.blocks();
  const std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, padded_dims);
  const std::vector<Item> items = window_items(objects);
  const Kernels<T>& run = kernels<T>();
  const int64_t tasks_per_image = (psi.height + kRows - 1) / kRows;
  struct Part {  // of the gradient of delta, from the rows of one task
    std::vector<int> object;
    std::vector<T> sums;  // (objects, D)
  };
  std::vector<Part> parts(tasks_per_image * psi.images);
  parallel(int64_t(parts.size()), [&](int64_t task) {
    const int image = int(task / tasks_per_image);
    const int begin = int(task % tasks_per_image) * kRows;
    const int end = std::min(begin + kRows, psi.height);
    std::vector<Item> near;
    for (const Item& item : items) {
      if (item.image == image && item.row_begin < end && item.row_end > begin) {
        near.push_back(item);
      }
    }
    const size_t row_size = size_t(blocks) * padded_dims * kCells;
    std::vector<T> psi_row(near.empty() ? 0 : row_size), gradient_row(row_size, T(0)), cells;
    std::vector<T> partial(near.size() * padded_dims * kLane, T(0));
    std::vector<const T*> grads, factors;
    struct Active {
      const Item* item;
      T* partial;
      size_t at;  // in cells
    };
    std::vector<Active> active;
    for (int y = begin; y < end; ++y) {
      active.clear();
      size_t used = 0;
      int block_begin = blocks, block_end = 0;
      for (size_t i = 0; i < near.size(); ++i) {
        const Item& item = near[i];
        if (item.row_begin > y || item.row_end <= y) continue;
        active.push_back({&item, partial.data() + i * padded_dims * kLane, used});
        used += size_t(item.block_end - item.block_begin) * kCells;
        block_begin = std::min(block_begin, item.block_begin);
        block_end = std::max(block_end, item.block_end);
      }
      if (cells.size() < used) cells.resize(used);
      if (!active.empty()) {
        const int first = block_begin * kCells;
        const int count = std::min(block_end * kCells, psi.width) - first;
        run.load_row(psi.row(image, y), psi.kind, psi.stride_d, psi.stride_x, psi.dims,
                     padded_dims, first, count, psi_row.data());
        RowPrefetch next_row(psi, psi.row(image, y + 1 < psi.height ? y + 1 : y), first, count);
        const int share = next_row.lines() / int(active.size()) + 1;
        for (const Active& one : active) {
          const Item& item = *one.item;
          const Window window = objects.window[item.object];
          const int64_t place = objects.offset[item.object] +
                                int64_t(y - window.y1) * (window.x2 - window.x1);
          next_row.ask_for(share);
          unpack_row(logit_gradient + place, window, scale ? scale[item.object] : T(1),
                     cells.data() + one.at);
          run.add_phi_gradient(psi_row.data(), cells.data() + one.at, padded_dims,
                               item.block_begin, item.block_end, one.partial);
        }
      }
      for (int b = 0; b < blocks; ++b) {
        grads.clear();
        factors.clear();
        for (const Active& one : active) {
          const Item& item = *one.item;
          if (item.block_begin > b || item.block_end <= b) continue;
          grads.push_back(cells.data() + one.at + size_t(b - item.block_begin) * kCells);
          factors.push_back(delta.data() + int64_t(item.object) * padded_dims);
        }
        run.psi_gradient_block(grads.data(), factors.data(), int(grads.size()), padded_dims,
                               gradient_row.data() + int64_t(b) * padded_dims * kCells);
      }
      run.store_row(gradient_row.data(), psi_gradient.kind, psi_gradient.stride_d,
                    psi_gradient.stride_x, psi_gradient.dims, padded_dims, psi_gradient.width,
                    const_cast<char*>(psi_gradient.row(image, y)));
    }
    Part& part = parts[task];
    part.sums.reserve(near.size() * psi.dims);
    for (size_t i = 0; i < near.size(); ++i) {
      part.object.push_back(near[i].object);
      for (int d = 0; d < psi.dims; ++d) {
        const T* const sums = partial.data() + (i * padded_dims + d) * kLane;
        part.sums.push_back(std::accumulate(sums, sums + kLane, T(0)));
      }
    }
  });
  std::fill(delta_gradient, delta_gradient + objects.count * psi.dims, T(0));
  for (const Part& part : parts) {
    for (size_t i = 0; i < part.object.size(); ++i) {
      T* const total = delta_gradient + int64_t(part.object[i]) * psi.dims;
      for (int d = 0; d < psi.dims; ++d) total[d] += part.sums[i * psi.dims + d];
    }
  }
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void correlate<T>(const PsiView&, const T*, const Objects&, int, const Parallel&,     \
                             T*);                                                                \
  template void mask_loss<T>(const PsiView&, const T*, const Objects&, const uint8_t*,           \
                             const int64_t*, double, int, const Parallel&, T*, T*);              \
  template void correlate_backward<T>(const PsiView&, const PsiView&, const T*, const Objects&,   \
                                      const T*, const T*, const Parallel&, T*);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
