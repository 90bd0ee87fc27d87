// Typed views of psi, and the tile that a block works on.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "block.h"
#include "operators.h"

namespace rdsnet {
namespace cuda {

template <typename S>
struct Cells {
  S* data;
  int64_t stride_b, stride_d, stride_y, stride_x;
  int dims, height, width;

  // Dimension 0 of a cell; dimension d lies d * stride_d further on.
  __device__ S* at(int64_t image, int y, int x) const {
    return data + image * stride_b + y * stride_y + x * stride_x;
  }
};

template <typename S>
Cells<S> cells_of(const Grid& grid) {
  return {static_cast<S*>(grid.data), grid.stride_b, grid.stride_d, grid.stride_y,
          grid.stride_x,              grid.dims,     grid.height,   grid.width};
}

// Calls run(cells) for the type of the elements. Sums of type double are of double elements alone.
template <typename T, typename Run>
void with_cells(const Grid& grid, const Run& run) {
  if constexpr (sizeof(T) == sizeof(double)) {
    run(cells_of<double>(grid));
  } else {
    switch (grid.kind) {
      case Kind::kHalf: run(cells_of<c10::Half>(grid)); break;
      case Kind::kBFloat16: run(cells_of<c10::BFloat16>(grid)); break;
      default: run(cells_of<float>(grid)); break;
    }
  }
}

// The part of an object's window that a block works on.
struct Tile {
  int64_t object;
  Window window;           // of the object
  int x1, y1, x2, y2;      // of the tile
  int64_t row_of_tiles;    // counted from the top of the window
};

__device__ inline Tile tile_at(int64_t index, const Plan& plan) {
  Tile tile;
  tile.object = owner_of(index, plan.tile, plan.objects);
  tile.window = plan.window[tile.object];
  const int across = (tile.window.x2 - tile.window.x1 + plan.tile_width - 1) / plan.tile_width;
  const int64_t place = index - plan.tile[tile.object];
  tile.row_of_tiles = place / across;
  tile.x1 = tile.window.x1 + int(place % across) * plan.tile_width;
  tile.y1 = tile.window.y1 + int(tile.row_of_tiles) * plan.tile_height;
  tile.x2 = min(tile.x1 + plan.tile_width, tile.window.x2);
  tile.y2 = min(tile.y1 + plan.tile_height, tile.window.y2);
  return tile;
}

// The cell of the grid that pixel o looks at with tap k. A wrong index, which the summary reports,
// must not lead outside the grid.
template <typename T>
__device__ int cell_of(const Taps<T>& taps, int64_t o, int k, int cells) {
  return int(tap_cell(clamp_index(taps.first[o], cells - 1), k, cells));
}

// How many blocks stride over tiles whose number only the device knows.
inline int striding_blocks() { return 8 * multiprocessors(); }

}  // namespace cuda
}  // namespace rdsnet
