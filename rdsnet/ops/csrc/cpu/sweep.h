// One pass over the rows of psi that serves every object on its way.
//
// Reading psi object by object would fetch it from memory once per object; this way each row is
// brought into the cache once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../common.h"
#include "kernels.h"

namespace rdsnet {

// A (B, D, h, w) tensor, any strides (in elements).
struct PsiView {
  const void* data;
  Kind kind;
  int64_t item_size;
  int64_t stride_b, stride_d, stride_y, stride_x;
  int images, dims, height, width;

  int padded_dims() const { return (dims + kDimStep - 1) / kDimStep * kDimStep; }
  int blocks() const { return (width + kCells - 1) / kCells; }
  const char* row(int image, int y) const {
    return static_cast<const char*>(data) + (image * stride_b + y * stride_y) * item_size;
  }
};

// The cells of psi that one object looks at: rows [row_begin, row_end) of blocks of columns.
struct Item {
  int object, image;
  int row_begin, row_end;
  int block_begin, block_end;
};

// Runs task(0), ..., task(count - 1), perhaps at the same time.
using Parallel = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// phi_fg - phi_bg, (N, D) -> (N, padded_dims).
template <typename T>
std::vector<T> pad_deltas(const T* deltas, int64_t objects, int dims, int padded_dims) {
  std::vector<T> padded(objects * padded_dims, T(0));
  for (int64_t n = 0; n < objects; ++n) {
    std::copy_n(deltas + n * dims, dims, padded.data() + n * padded_dims);
  }
  return padded;
}

inline Item window_item(int object, int image, Window window) {
  return {object,    image,     window.y1, window.y2, window.x1 / kCells,
          (window.x2 + kCells - 1) / kCells};
}

// Items in groups of about equal work, in the order in which a sweep meets them. What is computed
// for an object does not depend on the grouping.
inline std::vector<std::vector<Item>> share(std::vector<Item> items, int groups) {
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    if (a.image != b.image) return a.image < b.image;
    if (a.row_begin != b.row_begin) return a.row_begin < b.row_begin;
    return a.object < b.object;
  });
  const auto work = [](const Item& item) {
    return int64_t(item.row_end - item.row_begin) * (item.block_end - item.block_begin + 1);
  };
  int64_t total = 0, done = 0;
  for (const Item& item : items) total += work(item);
  std::vector<std::vector<Item>> shares(std::max(groups, 1));
  for (const Item& item : items) {
    const size_t group = total ? size_t(done * int64_t(shares.size()) / total) : 0;
    shares[group].push_back(item);
    done += work(item);
  }
  return shares;
}

// Asks for a row of psi piece by piece, so that it comes from memory while other work is done: a row
// is too short for the processor to see the next one coming, and all of it at once would have to be
// waited for.
class RowPrefetch {
 public:
  // Cells [first, first + cells) of all dimensions of a row.
  RowPrefetch(const PsiView& psi, const char* row, int first, int cells)
      : place_(row + first * psi.item_size),
        step_(psi.stride_d * psi.item_size),
        bytes_(psi.stride_x == 1 ? cells * psi.item_size : 0),
        dims_left_(bytes_ > 0 ? psi.dims : 0) {}

  int lines() const { return int(dims_left_ * ((bytes_ + kLine - 1) / kLine)); }

  void ask_for(int lines) {
    for (; lines > 0 && dims_left_ > 0; --lines) {
      __builtin_prefetch(place_ + at_, 0, 2);
      at_ += kLine;
      if (at_ < bytes_) continue;
      at_ = 0;
      place_ += step_;
      --dims_left_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;  // bytes
  const char* place_;
  int64_t step_, bytes_, at_ = 0;
  int dims_left_;
};

// visit(item, y, row) for every row of every item, row by row; done(item) after an item's last
// row. Rows that `needed` (by y; may be null) rules out are skipped.
template <typename T, typename Visit, typename Done>
void sweep(const PsiView& psi, const std::vector<Item>& items, const uint8_t* needed,
           const Visit& visit, const Done& done) {
  const Kernels<T>& run = kernels<T>();
  const int padded_dims = psi.padded_dims();
  std::vector<T> row(size_t(psi.blocks()) * padded_dims * kCells, T(0));
  std::vector<Item> active;
  size_t next = 0;
  while (next < items.size() || !active.empty()) {
    const int image = active.empty() ? items[next].image : active[0].image;
    int y = active.empty() ? items[next].row_begin : active[0].row_begin;
    // What follows from `active` changes only where an object begins or ends.
    int block_begin = 0, block_end = 0, next_end = y;
    bool changed = true;
    while (true) {
      while (next < items.size() && items[next].image == image && items[next].row_begin <= y) {
        active.push_back(items[next++]);
        changed = true;
      }
      if (active.empty()) break;
      if (changed) {
        block_begin = active[0].block_begin, block_end = active[0].block_end;
        next_end = active[0].row_end;
        for (const Item& item : active) {
          block_begin = std::min(block_begin, item.block_begin);
          block_end = std::max(block_end, item.block_end);
          next_end = std::min(next_end, item.row_end);
        }
        changed = false;
      }
      if (!needed || needed[y]) {
        const int first = block_begin * kCells;
        const int cells = std::min(block_end * kCells, psi.width) - first;
        run.load_row(psi.row(image, y), psi.kind, psi.stride_d, psi.stride_x, psi.dims,
                     padded_dims, first, cells, row.data());
        RowPrefetch next_row(psi, psi.row(image, y + 1 < psi.height ? y + 1 : y), first, cells);
        const int share = next_row.lines() / int(active.size()) + 1;
        for (const Item& item : active) {
          next_row.ask_for(share);
          visit(item, y, row.data());
        }
      }
      ++y;
      if (y < next_end) continue;
      changed = true;
      size_t kept = 0;
      for (size_t i = 0; i < active.size(); ++i) {
        if (active[i].row_end > y) {
          active[kept++] = active[i];
        } else {
          done(active[i]);
        }
      }
      active.resize(kept);
    }
  }
}

}  // namespace rdsnet
