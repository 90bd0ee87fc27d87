// Correlation inside the windows, and its two gradients.
#include "tiles.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = kGridTileWidth * kGridTileHeight;
constexpr int kDimsAtOnce = 32;
constexpr int kSumsAtOnce = 8;
constexpr int kObjectsAtOnce = 16;

// A thread per pixel.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads) correlate_tiles(Cells<S> psi, const T* delta, const int64_t* image, Plan plan,
                                T* logits) {
  __shared__ T factor[kDimsAtOnce];
  const int64_t tiles = plan.tile[plan.objects];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, plan);
    const int x = tile.x1 + int(threadIdx.x) % kGridTileWidth;
    const int y = tile.y1 + int(threadIdx.x) / kGridTileWidth;
    const bool inside = x < tile.x2 && y < tile.y2;
    const S* cell = inside ? psi.at(image[tile.object], y, x) : psi.data;
    T sum = T(0);
    for (int begin = 0; begin < psi.dims; begin += kDimsAtOnce) {
      const int dims = min(kDimsAtOnce, psi.dims - begin);
      __syncthreads();
      if (int(threadIdx.x) < dims) {
        factor[threadIdx.x] = delta[tile.object * psi.dims + begin + threadIdx.x];
      }
      __syncthreads();
      if (inside) {
#pragma unroll 8
        for (int d = 0; d < dims; ++d) {
          sum += factor[d] * static_cast<T>(cell[(begin + d) * psi.stride_d]);
        }
      }
    }
    if (inside) {
      const Window window = tile.window;
      const int64_t row = y - window.y1, width = window.x2 - window.x1;
      logits[plan.pixel[tile.object] + row * width + (x - window.x1)] = sum;
    }
  }
}

// partial[tile][d] = sum over the tile of gradient * psi[d]. The tiles are kSumTileHeight high.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads) sum_tiles(Cells<S> psi, const int64_t* image, Plan plan, const T* gradient,
                          int64_t pixels, T* partial, int64_t room) {
  const int64_t tiles = min(plan.tile[plan.objects], room);
  const int64_t groups = (psi.dims + kSumsAtOnce - 1) / kSumsAtOnce;
  for (int64_t index = blockIdx.x; index < tiles * groups; index += gridDim.x) {
    const Tile tile = tile_at(index / groups, plan);
    const int begin = int(index % groups) * kSumsAtOnce;
    const Window window = tile.window;
    const int64_t width = window.x2 - window.x1;
    const int x = tile.x1 + int(threadIdx.x) % kGridTileWidth;
    T sum[kSumsAtOnce] = {};
    for (int y = tile.y1 + int(threadIdx.x) / kGridTileWidth; y < tile.y2;
         y += kThreads / kGridTileWidth) {
      const int64_t place =
          plan.pixel[tile.object] + (y - window.y1) * width + (x - window.x1);
      if (x >= tile.x2 || place >= pixels) continue;
      const S* cell = psi.at(image[tile.object], y, x);
      const T factor = gradient[place];
#pragma unroll
      for (int d = 0; d < kSumsAtOnce; ++d) {
        if (begin + d < psi.dims) {
          sum[d] += factor * static_cast<T>(cell[(begin + d) * psi.stride_d]);
        }
      }
    }
#pragma unroll
    for (int d = 0; d < kSumsAtOnce; ++d) {
      const T total = block_sum<kThreads>(sum[d]);
      if (threadIdx.x == 0 && begin + d < psi.dims) {
        partial[(index / groups) * psi.dims + begin + d] = total;
      }
    }
  }
}

// A thread per object and dimension.
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_partials(Plan plan, const T* partial, int64_t room, const T* scale, int dims,
                             T* result) {
  const int64_t count = plan.objects * dims;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t n = i / dims, d = i % dims;
    T sum = T(0);
    const int64_t end = min(plan.tile[n + 1], room);
    for (int64_t tile = plan.tile[n]; tile < end; ++tile) {
      sum += partial[tile * dims + d];
    }
    result[i] = scale == nullptr ? sum : sum * scale[n];
  }
}

__device__ bool overlaps(const Window& window, int x, int y) {
  return window.x1 < x + kGridTileWidth && window.x2 > x && window.y1 < y + kGridTileHeight &&
         window.y2 > y;
}

// A thread per pixel of psi gathers from all objects that look at it, in the order of the objects:
// no atomics, and the same bits every time.
template <typename S, typename T>
__global__ void __launch_bounds__(kThreads) gather_gradient(Cells<S> result, int64_t images, const T* delta,
                                const int64_t* image, Plan plan, const T* gradient,
                                int64_t pixels, const T* scale) {
  __shared__ int near[kThreads];
  __shared__ T factor[kObjectsAtOnce][kDimsAtOnce];
  const int64_t across = (result.width + kGridTileWidth - 1) / kGridTileWidth;
  const int64_t down = (result.height + kGridTileHeight - 1) / kGridTileHeight;
  const int64_t groups = (result.dims + kDimsAtOnce - 1) / kDimsAtOnce;
  const int64_t tiles = images * down * across * groups;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const int begin = int(index % groups) * kDimsAtOnce;
    const int64_t tile = index / groups, own = tile / across / down;
    const int left = int(tile % across) * kGridTileWidth;
    const int top = int(tile / across % down) * kGridTileHeight;
    const int x = left + int(threadIdx.x) % kGridTileWidth;
    const int y = top + int(threadIdx.x) / kGridTileWidth;
    T sum[kDimsAtOnce] = {};
    for (int64_t first = 0; first < plan.objects; first += kThreads) {
      const int64_t candidate = first + threadIdx.x;
      const bool looks = candidate < plan.objects && image[candidate] == own &&
                         overlaps(plan.window[candidate], left, top);
      int count;
      const int rank = block_scan<kThreads>(int(looks), &count);
      if (looks) near[rank] = int(candidate);
      __syncthreads();
      for (int start = 0; start < count; start += kObjectsAtOnce) {
        const int several = min(kObjectsAtOnce, count - start);
        for (int i = int(threadIdx.x); i < several * kDimsAtOnce; i += kThreads) {
          const int d = begin + i % kDimsAtOnce;
          const int64_t n = near[start + i / kDimsAtOnce];
          factor[i / kDimsAtOnce][i % kDimsAtOnce] =
              d < result.dims ? delta[n * result.dims + d] : T(0);
        }
        __syncthreads();
        for (int i = 0; i < several; ++i) {
          const int64_t n = near[start + i];
          const Window window = plan.window[n];
          if (x < window.x1 || x >= window.x2 || y < window.y1 || y >= window.y2) continue;
          const int64_t place = plan.pixel[n] +
                                int64_t(y - window.y1) * (window.x2 - window.x1) +
                                (x - window.x1);
          if (place >= pixels) continue;
          const T value = scale == nullptr ? gradient[place] : gradient[place] * scale[n];
#pragma unroll
          for (int d = 0; d < kDimsAtOnce; ++d) sum[d] += value * factor[i][d];
        }
        __syncthreads();
      }
    }
    if (x < result.width && y < result.height) {
      S* cell = result.at(own, y, x);
#pragma unroll
      for (int d = 0; d < kDimsAtOnce; ++d) {
        if (begin + d < result.dims) {
          cell[(begin + d) * result.stride_d] = static_cast<S>(sum[d]);
        }
      }
    }
  }
}

template <typename S>
Cells<const S> read_only(const Cells<S>& cells) {
  return {cells.data,     cells.stride_b, cells.stride_d, cells.stride_y,
          cells.stride_x, cells.dims,     cells.height,   cells.width};
}

}  // namespace

template <typename T>
void correlate(const Grid& psi, const T* delta, const int64_t* image, const Plan& plan, T* logits,
               cudaStream_t stream) {
  with_cells<T>(psi, [&](auto cells) {
    using S = std::remove_pointer_t<decltype(cells.data)>;
    launch(correlate_tiles<const S, T>, striding_blocks(), kThreads, stream, read_only(cells),
           delta, image, plan, logits);
  });
}

template <typename T>
void delta_gradient(const Grid& psi, const int64_t* image, const Plan& plan, const T* gradient,
                    int64_t pixels, const T* scale, T* partial, int64_t tiles,
                    T* delta_gradient, cudaStream_t stream) {
  with_cells<T>(psi, [&](auto cells) {
    using S = std::remove_pointer_t<decltype(cells.data)>;
    launch(sum_tiles<const S, T>, striding_blocks(), kThreads, stream, read_only(cells), image,
           plan, gradient, pixels, partial, tiles);
  });
  launch(sum_partials<T>, multiprocessors(), kThreads, stream, plan, partial, tiles, scale,
         psi.dims, delta_gradient);
}

template <typename T>
void psi_gradient(const Grid& psi_gradient, const T* delta, const int64_t* image, const Plan& plan,
                  const T* gradient, int64_t pixels, const T* scale, cudaStream_t stream) {
  with_cells<T>(psi_gradient, [&](auto cells) {
    using S = std::remove_pointer_t<decltype(cells.data)>;
    launch(gather_gradient<S, T>, striding_blocks(), kThreads, stream, cells, psi_gradient.images,
           delta, image, plan, gradient, pixels, scale);
  });
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void correlate<T>(const Grid&, const T*, const int64_t*, const Plan&, T*,              \
                             cudaStream_t);                                                       \
  template void delta_gradient<T>(const Grid&, const int64_t*, const Plan&, const T*, int64_t,    \
                                  const T*, T*, int64_t, T*, cudaStream_t);                       \
  template void psi_gradient<T>(const Grid&, const T*, const int64_t*, const Plan&, const T*,     \
                                int64_t, const T*, cudaStream_t);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace cuda
}  // namespace rdsnet
