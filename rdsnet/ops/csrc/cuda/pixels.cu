// From the cells of the grid to the pixels of the images, inside each window, and back.
#include "tiles.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = kGridTileWidth * kGridTileHeight;

// 3 where a third weight is used, else 2. Whole block.
template <typename T>
__device__ int used_taps(const Taps<T>& taps) {
  __shared__ int third;
  if (threadIdx.x == 0) third = 0;
  __syncthreads();
  for (int64_t o = threadIdx.x; o < taps.output; o += kThreads) {
    if (taps.weights[o * kTaps + 2] != T(0)) atomicMax(&third, 1);
  }
  __syncthreads();
  const int used = 2 + third;
  __syncthreads();
  return used;
}

__device__ void write_window(const Window& window, int64_t* corners) {
  corners[0] = window.x1;
  corners[1] = window.y1;
  corners[2] = window.x2;
  corners[3] = window.y2;
}

// One block.
template <typename T>
__global__ void __launch_bounds__(kThreads) place(const int64_t* windows, int64_t objects, ObjectMasks truth, Taps<T> rows,
                      Taps<T> columns, int grid_height, int grid_width, int64_t* pixel_windows,
                      int64_t* cell_windows, int64_t* right) {
  const int last_row = used_taps(rows) - 1, last_column = used_taps(columns) - 1;
  for (int64_t n = threadIdx.x; n < objects; n += kThreads) {
    Window pixels = {0, 0, 0, 0}, cells = {0, 0, 0, 0};
    bool wrong = false;
    if (truth.image[n] >= 0 && truth.image[n] < truth.images) {
      const ImageMasks own = truth.masks[truth.image[n]];
      wrong = truth.index[n] < 0 || truth.index[n] >= own.count;
      pixels = clamp_window(windows + 4 * n, min(own.height, rows.output),
                            min(own.width, columns.output));
    }
    if (wrong) pixels = cells;
    if (window_area(pixels) > 0) {
      cells.x1 = cell_of(columns, pixels.x1, 0, grid_width);
      cells.y1 = cell_of(rows, pixels.y1, 0, grid_height);
      cells.x2 = cell_of(columns, pixels.x2 - 1, last_column, grid_width) + 1;
      cells.y2 = cell_of(rows, pixels.y2 - 1, last_row, grid_height) + 1;
    }
    write_window(pixels, pixel_windows + 4 * n);
    write_window(cells, cell_windows + 4 * n);
    right[n] = wrong ? -1 : 0;
  }
}

// Taps may lead outside of an object's own cells where a weight is 0, or `first` decreases.
__device__ int held(int cell, int begin, int end) {
  return cell < begin ? begin : (cell < end ? cell : end - 1);
}

// A thread per pixel.
template <typename T>
__global__ void __launch_bounds__(kThreads) expand_tiles(const T* of_cells, Plan cells, Plan pixels, Taps<T> rows, Taps<T> columns,
                             int grid_height, int grid_width, T* of_pixels) {
  const int64_t tiles = pixels.tile[pixels.objects];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, pixels);
    const int x = tile.x1 + int(threadIdx.x) % kGridTileWidth;
    const int y = tile.y1 + int(threadIdx.x) / kGridTileWidth;
    if (x >= tile.x2 || y >= tile.y2) continue;
    const Window own = cells.window[tile.object];
    const T* const cell = of_cells + cells.pixel[tile.object];
    const int64_t pitch = own.x2 - own.x1;
    T sum = T(0);
    for (int i = 0; i < kTaps; ++i) {
      const T row_weight = rows.weights[int64_t(y) * kTaps + i];
      const int row = held(cell_of(rows, y, i, grid_height), own.y1, own.y2) - own.y1;
      T along = T(0);
      for (int j = 0; j < kTaps; ++j) {
        const int column = held(cell_of(columns, x, j, grid_width), own.x1, own.x2) - own.x1;
        along += columns.weights[int64_t(x) * kTaps + j] * cell[row * pitch + column];
      }
      sum += row_weight * along;
    }
    const Window window = tile.window;
    of_pixels[pixels.pixel[tile.object] + int64_t(y - window.y1) * (window.x2 - window.x1) +
              (x - window.x1)] = sum;
  }
}

// The first pixel of [begin, end) from which on taps begin at `cell` or beyond.
template <typename T>
__device__ int first_at(const Taps<T>& taps, int begin, int end, int cell) {
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (taps.first[middle] < cell) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// With which weight a pixel looks at a cell.
template <typename T>
__device__ T weight_at(const Taps<T>& taps, int pixel, int cell, int cells) {
  T weight = T(0);
  for (int k = 0; k < kTaps; ++k) {
    if (cell_of(taps, pixel, k, cells) == cell) weight += taps.weights[int64_t(pixel) * kTaps + k];
  }
  return weight;
}

// A thread per cell gathers from the pixels that look at it, in their order: no atomics, and the
// same bits every time.
template <typename T>
__global__ void __launch_bounds__(kThreads) reduce_tiles(const T* of_pixels, Plan pixels, Plan cells, Taps<T> rows, Taps<T> columns,
                             int grid_height, int grid_width, T* of_cells) {
  const int64_t tiles = cells.tile[cells.objects];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, cells);
    const int cx = tile.x1 + int(threadIdx.x) % kGridTileWidth;
    const int cy = tile.y1 + int(threadIdx.x) / kGridTileWidth;
    if (cx >= tile.x2 || cy >= tile.y2) continue;
    const Window own = pixels.window[tile.object];
    const T* const pixel = of_pixels + pixels.pixel[tile.object];
    const int64_t pitch = own.x2 - own.x1;
    const int top = first_at(rows, own.y1, own.y2, cy - (kTaps - 1));
    const int bottom = first_at(rows, top, own.y2, cy + 1);
    const int left = first_at(columns, own.x1, own.x2, cx - (kTaps - 1));
    const int right = first_at(columns, left, own.x2, cx + 1);
    T sum = T(0);
    for (int y = top; y < bottom; ++y) {
      const T row_weight = weight_at(rows, y, cy, grid_height);
      if (row_weight == T(0)) continue;
      T along = T(0);
      for (int x = left; x < right; ++x) {
        along += weight_at(columns, x, cx, grid_width) * pixel[(y - own.y1) * pitch + x - own.x1];
      }
      sum += row_weight * along;
    }
    const Window window = tile.window;
    of_cells[cells.pixel[tile.object] + int64_t(cy - window.y1) * (window.x2 - window.x1) +
             (cx - window.x1)] = sum;
  }
}

}  // namespace

template <typename T>
void place_windows(const int64_t* windows, int64_t objects, const ObjectMasks& truth,
                   const Taps<T>& rows, const Taps<T>& columns, int grid_height, int grid_width,
                   int64_t* pixel_windows, int64_t* cell_windows, int64_t* right,
                   cudaStream_t stream) {
  launch(place<T>, 1, kThreads, stream, windows, objects, truth, rows, columns, grid_height,
         grid_width, pixel_windows, cell_windows, right);
}

template <typename T>
void expand(const T* of_cells, const Plan& cells, const Plan& pixels, const Taps<T>& rows,
            const Taps<T>& columns, int grid_height, int grid_width, T* of_pixels,
            cudaStream_t stream) {
  launch(expand_tiles<T>, striding_blocks(), kThreads, stream, of_cells, cells, pixels, rows,
         columns, grid_height, grid_width, of_pixels);
}

template <typename T>
void reduce(const T* of_pixels, const Plan& pixels, const Plan& cells, const Taps<T>& rows,
            const Taps<T>& columns, int grid_height, int grid_width, T* of_cells,
            cudaStream_t stream) {
  launch(reduce_tiles<T>, striding_blocks(), kThreads, stream, of_pixels, pixels, cells, rows,
         columns, grid_height, grid_width, of_cells);
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void place_windows<T>(const int64_t*, int64_t, const ObjectMasks&, const Taps<T>&,     \
                                 const Taps<T>&, int, int, int64_t*, int64_t*, int64_t*,          \
                                 cudaStream_t);                                                   \
  template void expand<T>(const T*, const Plan&, const Plan&, const Taps<T>&, const Taps<T>&,     \
                          int, int, T*, cudaStream_t);                                            \
  template void reduce<T>(const T*, const Plan&, const Plan&, const Taps<T>&, const Taps<T>&,     \
                          int, int, T*, cudaStream_t);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace cuda
}  // namespace rdsnet
