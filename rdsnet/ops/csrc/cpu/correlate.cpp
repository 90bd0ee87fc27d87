#include "correlate.h"

#include <cmath>
#include <numeric>

namespace rdsnet {

std::vector<Item> window_items(const Objects& objects) {
  std::vector<Item> items;
  for (int64_t n = 0; n < objects.count; ++n) {
    if (window_area(objects.window[n]) > 0) {
      items.push_back(window_item(int(n), int(objects.image[n]), objects.window[n]));
    }
  }
  return items;
}

std::vector<int64_t> block_offsets(const Objects& objects) {
  std::vector<int64_t> offset(objects.count + 1, 0);
  for (int64_t n = 0; n < objects.count; ++n) {
    const Item item = window_item(0, 0, objects.window[n]);
    offset[n + 1] = offset[n] + int64_t(item.row_end - item.row_begin) *
                                    (item.block_end - item.block_begin);
  }
  return offset;
}

template <typename T>
void correlate(const PsiView& psi, const T* deltas, const Objects& objects, int groups,
               const Parallel& parallel, T* logits) {
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
    sweep<T>(psi, shares[group], nullptr, visit, [](const Item&) {});
  });
}

namespace {

// One row of an object's packed values in whole blocks, 0 outside the window.
template <typename T>
void unpack_row(const T* values, Window window, T* blocks) {
  const int skip = window.x1 % kCells, width = window.x2 - window.x1;
  const int end = (skip + width + kCells - 1) / kCells * kCells;
  std::fill(blocks, blocks + skip, T(0));
  std::copy_n(values, width, blocks + skip);
  std::fill(blocks + skip + width, blocks + end, T(0));
}

// Per row, the objects that look at each block, in their order.
template <typename T>
class BlockLists {
 public:
  BlockLists(int blocks, size_t objects)
      : objects_(objects), count_(blocks), grads_(blocks * objects), factors_(blocks * objects) {}

  void clear() { std::fill(count_.begin(), count_.end(), 0); }

  void add(const Item& item, const T* grad, const T* factor) {
    for (int b = item.block_begin; b < item.block_end; ++b, grad += kCells) {
      const size_t place = b * objects_ + count_[b]++;
      grads_[place] = grad;
      factors_[place] = factor;
    }
  }

  int count(int block) const { return count_[block]; }
  const T* const* grads(int block) const { return grads_.data() + block * objects_; }
  const T* const* factors(int block) const { return factors_.data() + block * objects_; }

 private:
  size_t objects_;
  std::vector<int> count_;
  std::vector<const T*> grads_, factors_;
};

// correlate_backward cell by cell, inside the windows alone. delta (N, padded_dims) has been scaled;
// delta_gradient is not.
template <typename T>
void correlate_backward_inside(const PsiView& psi, const PsiView& psi_gradient,
                               const std::vector<T>& delta, const std::vector<Item>& items,
                               const Objects& objects, const T* logit_gradient,
                               const int64_t* block_offset, T* delta_gradient) {
  const int padded_dims = psi.padded_dims();
  const Kernels<T>& run = kernels<T>();
  const size_t row_size = size_t(psi.blocks()) * padded_dims * kCells;
  std::vector<T> psi_row(row_size), gradient_row(row_size);
  std::fill(delta_gradient, delta_gradient + objects.count * psi.dims, T(0));
  for (int64_t row = 0; row < int64_t(psi.images) * psi.height; ++row) {
    const int image = int(row / psi.height), y = int(row % psi.height);
    run.load_row(psi.row(image, y), psi.kind, psi.stride_d, psi.stride_x, psi.dims, padded_dims, 0,
                 psi.width, psi_row.data());
    std::fill(gradient_row.begin(), gradient_row.end(), T(0));
    for (const Item& item : items) {
      if (item.image != image || item.row_begin > y || item.row_end <= y) continue;
      const int n = item.object;
      const Window window = objects.window[n];
      const int64_t width = item.block_end - item.block_begin, above = y - window.y1;
      const T* const grad =
          block_offset ? logit_gradient + (block_offset[n] + above * width) * kCells +
                             (window.x1 - item.block_begin * kCells)
                       : logit_gradient + objects.offset[n] + above * (window.x2 - window.x1);
      for (int x = window.x1; x < window.x2; ++x) {
        const int64_t cell = int64_t(x / kCells) * padded_dims * kCells + x % kCells;
        for (int d = 0; d < psi.dims; ++d) {
          const T value = grad[x - window.x1];
          gradient_row[cell + d * kCells] += delta[int64_t(n) * padded_dims + d] * value;
          delta_gradient[int64_t(n) * psi.dims + d] += psi_row[cell + d * kCells] * value;
        }
      }
    }
    run.store_row(gradient_row.data(), psi_gradient.kind, psi_gradient.stride_d,
                  psi_gradient.stride_x, psi_gradient.dims, padded_dims, psi_gradient.width,
                  const_cast<char*>(psi_gradient.row(image, y)));
  }
}

template <typename T>
bool all_finite(const T* values, int64_t count) {
  return std::all_of(values, values + count, [](T value) { return std::isfinite(value); });
}

}  // namespace

template <typename T>
void correlate_backward(const PsiView& psi, const PsiView& psi_gradient, const T* deltas,
                        const Objects& objects, const T* logit_gradient,
                        const int64_t* block_offset, const T* scale, const Parallel& parallel,
                        T* delta_gradient) {
  constexpr int kRows = 16;  // per task, whatever the number of threads: sums stay the same
  constexpr int kLane = kLanes<T>;
  const int padded_dims = psi.padded_dims(), blocks = psi.blocks();
  std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, padded_dims);
  for (int64_t i = 0; scale && i < int64_t(delta.size()); ++i) delta[i] *= scale[i / padded_dims];
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
    std::vector<T> psi_row(near.empty() ? 0 : row_size), gradient_row(row_size, T(0));
    std::vector<T> partial(near.size() * padded_dims * kLane, T(0));
    std::vector<T> unpacked(block_offset ? 0 : near.size() * blocks * kCells);
    BlockLists<T> lists(blocks, near.size());
    std::vector<size_t> active;  // in near
    for (int y = begin; y < end; ++y) {
      active.clear();
      lists.clear();
      int block_begin = blocks, block_end = 0;
      for (size_t i = 0; i < near.size(); ++i) {
        if (near[i].row_begin > y || near[i].row_end <= y) continue;
        active.push_back(i);
        block_begin = std::min(block_begin, near[i].block_begin);
        block_end = std::max(block_end, near[i].block_end);
      }
      if (!active.empty()) {
        const int first = block_begin * kCells;
        const int count = std::min(block_end * kCells, psi.width) - first;
        run.load_row(psi.row(image, y), psi.kind, psi.stride_d, psi.stride_x, psi.dims,
                     padded_dims, first, count, psi_row.data());
        RowPrefetch next_row(psi, psi.row(image, y + 1 < psi.height ? y + 1 : y), first, count);
        const int share = next_row.lines() / int(active.size()) + 1;
        for (size_t i : active) {
          const Item& item = near[i];
          const int n = item.object;
          const Window window = objects.window[n];
          const int64_t row = y - window.y1;
          const T* grad;
          if (block_offset) {
            const int64_t place = block_offset[n] + row * (item.block_end - item.block_begin);
            grad = logit_gradient + place * kCells;
          } else {
            T* const room = unpacked.data() + i * blocks * kCells;
            const int64_t place = objects.offset[n] + row * (window.x2 - window.x1);
            unpack_row(logit_gradient + place, window, room);
            grad = room;
          }
          next_row.ask_for(share);
          run.add_phi_gradient(psi_row.data(), grad, padded_dims, item.block_begin,
                               item.block_end, partial.data() + i * padded_dims * kLane);
          lists.add(item, grad, delta.data() + int64_t(n) * padded_dims);
        }
      }
      for (int b = 0; b < blocks; ++b) {
        run.psi_gradient_block(lists.grads(b), lists.factors(b), lists.count(b), padded_dims,
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
  // The kernels take whole blocks and rely on gradients of 0 outside the windows. Where these met
  // infinity or NaN, in psi or in delta, the products are NaN instead of 0.
  if (!all_finite(delta.data(), delta.size()) ||
      !all_finite(delta_gradient, objects.count * psi.dims)) {
    correlate_backward_inside(psi, psi_gradient, delta, items, objects, logit_gradient,
                              block_offset, delta_gradient);
  }
  for (int64_t i = 0; scale && i < objects.count * psi.dims; ++i) {
    delta_gradient[i] *= scale[i / psi.dims];
  }
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void correlate<T>(const PsiView&, const T*, const Objects&, int, const Parallel&,     \
                             T*);                                                                \
  template void correlate_backward<T>(const PsiView&, const PsiView&, const T*, const Objects&,   \
                                      const T*, const int64_t*, const T*, const Parallel&, T*);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
