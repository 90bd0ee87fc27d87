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

  int padded_dims() const { return (std::max(dims, 1) + kDimStep - 1) / kDimStep * kDimStep; }
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

// A row of psi, and the items that look at it.
struct Crossing {
  int image, y;
  const std::vector<Item>& active;
  int block_begin, block_end;  // what the items need, all together
  bool changed;                // other items than at the row before
};

// Asks for a row of psi piece by piece, so that it comes from memory while other work is done: a
// row is too short for the processor to see the next one coming, and all of it at once would have
// to be waited for.
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
    while (lines > 0 && dims_left_ > 0) {
      const int run = std::min(lines, int((bytes_ - at_ + kLine - 1) / kLine));
      for (int i = 0; i < run; ++i) __builtin_prefetch(place_ + at_ + i * kLine, 0, 2);
      lines -= run;
      at_ += run * kLine;
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

inline RowPrefetch row_after(const Crossing& c, const PsiView& psi) {
  const int first = c.block_begin * kCells;
  const int cells = std::min(c.block_end * kCells, psi.width) - first;
  return {psi, psi.row(c.image, std::min(c.y + 1, psi.height - 1)), first, cells};
}

// cross(crossing) for every row that an item looks at and that `needed` (by y; may be null) does
// not rule out, row by row; done(item) after an item's last row.
template <typename Cross, typename Done>
void sweep_rows(const std::vector<Item>& items, const uint8_t* needed, const Cross& cross,
                const Done& done) {
  std::vector<Item> active;
  size_t next = 0;
  while (next < items.size() || !active.empty()) {
    const int image = active.empty() ? items[next].image : active[0].image;
    int y = active.empty() ? items[next].row_begin : active[0].row_begin;
    // What follows from `active` changes only where an object begins or ends.
    int block_begin = 0, block_end = 0, next_end = y;
    bool changed = true, fresh = true;
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
        fresh = true;
      }
      if (!needed || needed[y]) {
        cross(Crossing{image, y, active, block_begin, block_end, fresh});
        fresh = false;
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

// visit(item, y, row) with the row of psi in blocks, for every row of every item.
template <typename T, typename Visit, typename Done>
void sweep(const PsiView& psi, const std::vector<Item>& items, const uint8_t* needed,
           const Visit& visit, const Done& done) {
  const Kernels<T>& run = kernels<T>();
  const int padded_dims = psi.padded_dims();
  std::vector<T> row(size_t(psi.blocks()) * padded_dims * kCells, T(0));
  const auto cross = [&](const Crossing& c) {
    const int first = c.block_begin * kCells;
    const int cells = std::min(c.block_end * kCells, psi.width) - first;
    run.load_row(psi.row(c.image, c.y), psi.kind, psi.stride_d, psi.stride_x, psi.dims,
                 padded_dims, first, cells, row.data());
    RowPrefetch next_row = row_after(c, psi);
    const int share = next_row.lines() / int(c.active.size()) + 1;
    for (const Item& item : c.active) {
      next_row.ask_for(share);
      visit(item, c.y, row.data());
    }
  };
  sweep_rows(items, needed, cross, done);
}

// visit(item, y, logits) with the logits of the item's cells, for every row of every item. delta is
// (N, padded_dims). Behind an item's own logits kPixels more values can be read.
//
// Block by block, all the items that look at a block have their logits there while its cells are in
// the innermost cache, which a whole row is too large for.
template <typename T, typename Visit, typename Done>
void sweep_logits(const PsiView& psi, const T* delta, const std::vector<Item>& items,
                  const uint8_t* needed, const Visit& visit, const Done& done) {
  const Kernels<T>& run = kernels<T>();
  const int padded_dims = psi.padded_dims();
  // Blocks are used where they lie if they look there as they would after load_row.
  const Kind own_kind = sizeof(T) == sizeof(float) ? Kind::kFloat : Kind::kDouble;
  const bool in_place = psi.kind == own_kind && psi.stride_x == 1 && psi.dims == padded_dims;
  std::vector<T> copy(size_t(padded_dims) * kCells, T(0));
  std::vector<T> logits;
  std::vector<T*> place;                                     // of each active item in `logits`
  std::vector<std::vector<CellLogits<T>>> at(psi.blocks());  // the active items at each block

  const auto find_places = [&](const std::vector<Item>& active) {
    size_t length = kPixels;
    for (const Item& item : active) length += size_t(item.block_end - item.block_begin) * kCells;
    if (logits.size() < length) logits.resize(length);
    for (auto& objects : at) objects.clear();
    place.clear();
    T* next = logits.data();
    for (const Item& item : active) {
      place.push_back(next);
      for (int b = item.block_begin; b < item.block_end; ++b, next += kCells) {
        at[b].push_back({delta + int64_t(item.object) * padded_dims, next});
      }
    }
  };

  const auto cross = [&](const Crossing& c) {
    const std::vector<Item>& active = c.active;
    if (c.changed) find_places(active);
    RowPrefetch next_row = row_after(c, psi);
    const int lines = next_row.lines() / 2;  // half while correlating, half during the visits
    const int block_share = lines / (c.block_end - c.block_begin) + 1;
    const int visit_share = lines / int(active.size()) + 1;
    const char* const row = psi.row(c.image, c.y);
    for (int b = c.block_begin; b < c.block_end; ++b) {
      if (at[b].empty()) continue;
      next_row.ask_for(block_share);
      const char* const source = row + b * kCells * psi.stride_x * psi.item_size;
      const int cells = std::min(kCells, psi.width - b * kCells);
      const T* block = copy.data();
      int64_t stride = kCells;
      if (in_place && cells == kCells) {
        block = reinterpret_cast<const T*>(source);
        stride = psi.stride_d;
      } else {
        run.load_row(source, psi.kind, psi.stride_d, psi.stride_x, psi.dims, padded_dims, 0, cells,
                     copy.data());
      }
      run.correlate_block(block, stride, padded_dims, at[b].data(), int(at[b].size()));
    }
    for (size_t i = 0; i < active.size(); ++i) {
      next_row.ask_for(visit_share);
      visit(active[i], c.y, place[i]);
    }
  };
  sweep_rows(items, needed, cross, done);
}

}  // namespace rdsnet
