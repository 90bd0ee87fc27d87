#include "pixel_loss.h"

#include <limits>

namespace rdsnet {

template <typename T>
std::vector<Window> cells_of(const std::vector<Window>& pixels, const TapsView<T>& taps_y,
                             const TapsView<T>& taps_x, int64_t height, int64_t width) {
  const int last_y = used_taps(taps_y) - 1, last_x = used_taps(taps_x) - 1;
  std::vector<Window> cells;
  for (const Window& own : pixels) {
    if (window_area(own) == 0) {
      cells.push_back({0, 0, 0, 0});
      continue;
    }
    cells.push_back({int(taps_x.first[own.x1]), int(taps_y.first[own.y1]),
                     int(tap_cell(taps_x.first[own.x2 - 1], last_x, width)) + 1,
                     int(tap_cell(taps_y.first[own.y2 - 1], last_y, height)) + 1});
  }
  return cells;
}

namespace {

// What all objects share.
template <typename T>
struct Interpolation {
  const TapsView<T>& rows;
  int row_taps;
  ColumnTable<T> columns;
  CellTable<T> cells;
  int grid_height, grid_width;

  Interpolation(const TapsView<T>& taps_y, const TapsView<T>& taps_x, const PsiView& psi)
      : rows(taps_y),
        row_taps(used_taps(taps_y)),
        columns(taps_x, psi.width),
        cells(taps_x, psi.width),
        grid_height(psi.height),
        grid_width(psi.width) {}

  int cell_row(int y, int k) const { return int(tap_cell(rows.first[y], k, grid_height)); }
  const T* row_weights(int y) const { return rows.weights + y * kTaps; }
};

// Numbers of an object's cells, whole blocks, and its pixels, whole blocks of kCells pixels.
template <typename T>
struct Patch {
  Item cells;
  Item pixels;
  T* values;  // of the cells

  int pixel_blocks() const { return pixels.block_end - pixels.block_begin; }
  size_t length() const { return size_t(pixel_blocks()) * kCells; }
  T* row(int y) const {
    const int64_t blocks = cells.block_end - cells.block_begin;
    return values + (y - cells.row_begin) * blocks * kCells;
  }
};

// Rows of pixels out of rows of cells, from top to bottom. A row of cells is interpolated along x
// once, and kept while rows of pixels look at it.
template <typename T>
class PixelRows {
 public:
  PixelRows(const Interpolation<T>& map, int grid_blocks)
      : map_(map), cells_(size_t(grid_blocks) * kCells + kPixels, T(0)) {}

  void begin(const Patch<T>& patch) {
    patch_ = patch;
    next_ = patch.cells.row_begin;
    if (rows_.size() < kTaps * patch.length()) rows_.resize(kTaps * patch.length());
  }

  // Row y of the pixels; y must not decrease.
  void interpolate(int y, T* out) {
    const Kernels<T>& run = kernels<T>();
    const T* rows[kTaps] = {};
    for (int k = 0; k < map_.row_taps; ++k) {
      const int cell_row = map_.cell_row(y, k);
      while (next_ <= cell_row) expand(next_++);
      rows[k] = expanded(cell_row);
    }
    run.blend_rows(rows, map_.row_weights(y), int64_t(patch_.length() / kPixels), out);
  }

 private:
  T* expanded(int cell_row) { return rows_.data() + cell_row % kTaps * patch_.length(); }

  // Whole blocks of pixels look at cells beyond the object's own, whose numbers do not matter.
  void expand(int cell_row) {
    constexpr int kPerBlock = kCells / kPixels;
    const Item& own = patch_.cells;
    const int64_t first = int64_t(own.block_begin) * kCells;
    std::copy_n(patch_.row(cell_row), (own.block_end - own.block_begin) * kCells,
                cells_.data() + first);
    kernels<T>().expand_row(cells_.data(), 0, map_.columns.view,
                            patch_.pixels.block_begin * kPerBlock,
                            patch_.pixels.block_end * kPerBlock, expanded(cell_row));
  }

  const Interpolation<T>& map_;
  Patch<T> patch_;
  int next_ = 0;
  std::vector<T> cells_;  // a row of the whole grid
  std::vector<T> rows_;   // the last expanded ones, row r in slot r % kTaps
};

// The way back: adds up what rows of pixels give to the cells, from top to bottom.
template <typename T>
class CellSums {
 public:
  explicit CellSums(const Interpolation<T>& map) : map_(map), margin_(map.cells.longest) {}

  void begin(const Patch<T>& patch, Window cells) {
    patch_ = patch;
    window_ = cells;
    next_ = cells.y1;
    rows_.assign(kTaps * slot_size(), T(0));
  }

  // Row y of the pixels, 0 outside the window; y must not decrease.
  void add(int y, const T* row) {
    T* rows[kTaps] = {};
    while (next_ < map_.cell_row(y, 0)) finish_row();
    for (int k = 0; k < map_.row_taps; ++k) rows[k] = slot(map_.cell_row(y, k)) + margin_;
    kernels<T>().spread_row(row, map_.row_weights(y), int64_t(patch_.length() / kPixels), rows);
  }

  // After the last row.
  void end() {
    while (next_ < window_.y2) finish_row();
  }

 private:
  // Beyond a window's pixels, on either side, whole vectors of zeros are read.
  size_t slot_size() const { return patch_.length() + 2 * margin_; }
  T* slot(int cell_row) { return rows_.data() + cell_row % kTaps * slot_size(); }

  void finish_row() {
    T* const out = patch_.row(next_);
    T* const sums = slot(next_);
    const int left = patch_.cells.block_begin * kCells, right = patch_.cells.block_end * kCells;
    std::fill(out, out + (window_.x1 - left), T(0));
    std::fill(out + (window_.x2 - left), out + (right - left), T(0));
    kernels<T>().reduce_row(sums, int64_t(patch_.pixels.block_begin) * kCells - margin_,
                            map_.cells.view, window_.x1, window_.x2, out + (window_.x1 - left));
    std::fill(sums + margin_, sums + margin_ + patch_.length(), T(0));
    ++next_;
  }

  const Interpolation<T>& map_;
  const int margin_;
  Patch<T> patch_;
  Window window_;
  int next_ = 0;
  std::vector<T> rows_;  // row r in slot r % kTaps
};

// The loss of one object after the other; one per thread.
template <typename T>
class ObjectLoss {
 public:
  ObjectLoss(const Interpolation<T>& map, int grid_blocks) : rows_(map, grid_blocks), sums_(map) {}

  // patch.values are logits and become the gradient.
  T operator()(const Patch<T>& patch, Window cells, Window pixels, const TargetMap& map,
               double mining) {
    const Kernels<T>& run = kernels<T>();
    const int blocks = patch.pixel_blocks();
    const int64_t positives = truth_.read(map, pixels, patch.pixels);
    const int64_t negatives = window_area(pixels) - positives;
    const int64_t wanted = kept_negatives(positives, negatives, mining);
    if (row_.size() < patch.length()) row_.resize(patch.length());
    T threshold = std::numeric_limits<T>::infinity();
    if (wanted == negatives) {
      threshold = -threshold;
    } else if (wanted > 0) {
      threshold = mine(patch, wanted);
    }
    const T scale = T(1) / T(positives + wanted + 1);
    const BlockTargets* targets = truth_.targets.data();
    double sum = 0;
    rows_.begin(patch);
    sums_.begin(patch, cells);
    for (int y = pixels.y1; y < pixels.y2; ++y, targets += blocks) {
      rows_.interpolate(y, row_.data());
      sum += run.loss_and_gradient(row_.data(), targets, blocks, threshold, scale);
      sums_.add(y, row_.data());
    }
    sums_.end();
    return T(sum * double(scale));
  }

 private:
  T mine(const Patch<T>& patch, int64_t wanted) {
    const int blocks = patch.pixel_blocks();
    const int64_t all = int64_t(patch.pixels.row_end - patch.pixels.row_begin) * blocks;
    if (int64_t(keys_.size()) < all * kCells) keys_.resize(all * kCells);
    auto* keys = keys_.data();
    const BlockTargets* targets = truth_.targets.data();
    rows_.begin(patch);
    for (int y = patch.pixels.row_begin; y < patch.pixels.row_end; ++y) {
      rows_.interpolate(y, row_.data());
      kernels<T>().background_keys(row_.data(), targets, blocks, keys);
      keys += patch.length();
      targets += blocks;
    }
    return hardest<T>(keys_.data(), truth_.targets.data(), all, wanted);
  }

  PixelRows<T> rows_;
  CellSums<T> sums_;
  TargetReader truth_;
  std::vector<T> row_;
  std::vector<typename SignedKey<T>::type> keys_;
};

}  // namespace

template <typename T>
void pixel_loss(const PsiView& psi, const T* deltas, const Objects& objects, const Window* pixels,
                const TargetMap* maps, const TapsView<T>& taps_y, const TapsView<T>& taps_x,
                double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient) {
  std::fill(loss, loss + objects.count, T(0));
  const std::vector<int64_t> offset = block_offsets(objects);
  const std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, psi.padded_dims());
  const Interpolation<T> map(taps_y, taps_x, psi);
  const auto shares = share(window_items(objects), groups);
  parallel(int64_t(shares.size()), [&](int64_t group) {
    ObjectLoss<T> loss_of(map, psi.blocks());
    const auto patch_of = [&](const Item& cells) {
      const int n = cells.object;
      return Patch<T>{cells, window_item(n, cells.image, pixels[n]),
                      logit_gradient + offset[n] * kCells};
    };
    const auto visit = [&](const Item& item, int y, const T* logits) {
      const int64_t cells = int64_t(item.block_end - item.block_begin) * kCells;
      std::copy_n(logits, cells, patch_of(item).row(y));
    };
    // An object's logits are complete.
    const auto finish = [&](const Item& item) {
      const int n = item.object;
      loss[n] = loss_of(patch_of(item), objects.window[n], pixels[n], maps[n], mining);
    };
    sweep_logits<T>(psi, delta.data(), shares[group], nullptr, visit, finish);
  });
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template std::vector<Window> cells_of<T>(const std::vector<Window>&, const TapsView<T>&,        \
                                           const TapsView<T>&, int64_t, int64_t);                 \
  template void pixel_loss<T>(const PsiView&, const T*, const Objects&, const Window*,            \
                              const TargetMap*, const TapsView<T>&, const TapsView<T>&, double,   \
                              int, const Parallel&, T*, T*);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
