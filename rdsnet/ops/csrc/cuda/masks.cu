// Masks at the output resolution: correlation, interpolation, threshold, row and column maxima.
//
// A block takes 64 columns x 32 rows of an object's window. It correlates the patch of psi that
// these pixels look at once, in shared memory; a warp then goes along the columns, each lane one
// row, so that a ballot gives 32 pixels of a column as one word, in the order of COCO's RLE.
#include "tiles.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnsPerWarp = kMaskTileWidth / (kThreads / kWarp);
constexpr int kPatchCells = 4096;
constexpr int kDimsAtOnce = 64;
static_assert(kMaskTileHeight == kWarp, "a word of bits is one row of tiles");
static_assert(kMaskTileWidth + kMaskTileHeight <= kThreads, "a thread per tap of the tile");

// Cells of the grid that a tile looks at, both ends included. The pitch is odd, so that the rows
// that the lanes of a warp read lie in different banks.
struct Patch {
  int left, top, right, bottom;

  __device__ int width() const { return right - left + 1; }
  __device__ int height() const { return bottom - top + 1; }
  __device__ int pitch() const { return width() | 1; }
  __device__ bool fits() const { return int64_t(pitch()) * height() <= kPatchCells; }
};

// Whole block. Taps may be in any order, so all of the tile's are looked at.
template <typename T>
__device__ Patch patch_of(const Tile& tile, const Taps<T>& rows, const Taps<T>& columns, int height,
                          int width) {
  __shared__ int left, top, right, bottom;
  if (threadIdx.x == 0) {
    left = width;
    top = height;
    right = bottom = -1;
  }
  __syncthreads();
  const int x = tile.x1 + int(threadIdx.x);
  const int y = tile.y1 + int(threadIdx.x) - kMaskTileWidth;
  if (int(threadIdx.x) < kMaskTileWidth) {
    if (x < tile.x2) {
      atomicMin(&left, cell_of(columns, x, 0, width));
      atomicMax(&right, cell_of(columns, x, kTaps - 1, width));
    }
  } else if (int(threadIdx.x) < kMaskTileWidth + kMaskTileHeight && y < tile.y2) {
    atomicMin(&top, cell_of(rows, y, 0, height));
    atomicMax(&bottom, cell_of(rows, y, kTaps - 1, height));
  }
  __syncthreads();
  const Patch patch = {left, top, right, bottom};
  __syncthreads();
  return patch;
}

// One output pixel from the correlated patch.
template <typename T>
__device__ T interpolate(const T* cells, int pitch, const int* row, const T* row_weight,
                         const int* column, const T* column_weight) {
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    T along = T(0);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) along += column_weight[j] * cells[row[i] * pitch + column[j]];
    sum += row_weight[i] * along;
  }
  return sum;
}

template <typename S, typename T>
__global__ void __launch_bounds__(kThreads) assemble_tiles(Cells<S> psi, const T* delta, Taps<T> rows, Taps<T> columns,
                               T threshold, Plan plan, MaskBuffers<T> masks) {
  using Bits = typename Key<T>::type;
  __shared__ T cells[kPatchCells];
  __shared__ T factor[kDimsAtOnce];
  __shared__ Bits row_key[kMaskTileHeight];
  __shared__ int area;
  const int64_t tiles = plan.tile[plan.objects];
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, plan);
    const int64_t n = tile.object;
    const Patch patch = patch_of(tile, rows, columns, psi.height, psi.width);
    // Strong reduction spreads the taps of a tile too far: then each tap is a product of its own.
    const bool fits = patch.fits();
    if (threadIdx.x == 0) area = 0;
    if (int(threadIdx.x) < kMaskTileHeight) row_key[threadIdx.x] = 0;

    const int patch_cells = fits ? patch.width() * patch.height() : 0;
    int begin = 0;
    do {
      const int dims = min(kDimsAtOnce, psi.dims - begin);
      if (int(threadIdx.x) < dims) factor[threadIdx.x] = delta[n * psi.dims + begin + threadIdx.x];
      __syncthreads();
      for (int i = int(threadIdx.x); i < patch_cells; i += kThreads) {
        const int y = i / patch.width(), x = i % patch.width();
        S* cell = psi.at(0, patch.top + y, patch.left + x);
        T sum = begin == 0 ? T(0) : cells[y * patch.pitch() + x];
#pragma unroll 8
        for (int d = 0; d < dims; ++d) {
          sum += factor[d] * static_cast<T>(cell[(begin + d) * psi.stride_d]);
        }
        cells[y * patch.pitch() + x] = sum;
      }
      __syncthreads();
      begin += kDimsAtOnce;
    } while (begin < psi.dims);

    const auto product = [&](int y, int x) {
      S* cell = psi.at(0, y, x);
      T sum = T(0);
      for (int d = 0; d < psi.dims; ++d) {
        sum += delta[n * psi.dims + d] * static_cast<T>(cell[d * psi.stride_d]);
      }
      return sum;
    };

    const int y = tile.y1 + lane();
    int row[kTaps] = {};
    T row_weight[kTaps] = {};
    if (y < tile.y2) {
      for (int k = 0; k < kTaps; ++k) {
        row[k] = cell_of(rows, y, k, psi.height) - patch.top;
        row_weight[k] = rows.weights[int64_t(y) * kTaps + k];
      }
    }
    Bits highest = 0;
    int own_area = 0;
    for (int c = 0; c < kColumnsPerWarp; ++c) {
      const int x = tile.x1 + warp() * kColumnsPerWarp + c;
      if (x >= tile.x2) break;  // the whole warp
      int column[kTaps];
      T column_weight[kTaps];
      for (int k = 0; k < kTaps; ++k) {
        column[k] = cell_of(columns, x, k, psi.width) - patch.left;
        column_weight[k] = columns.weights[int64_t(x) * kTaps + k];
      }
      T logit = T(0);
      if (y < tile.y2) {
        if (fits) {
          logit = interpolate(cells, patch.pitch(), row, row_weight, column, column_weight);
        } else {
          for (int i = 0; i < kTaps * kTaps; ++i) {
            const T weight = row_weight[i / kTaps] * column_weight[i % kTaps];
            if (weight == T(0)) continue;
            logit += weight * product(patch.top + row[i / kTaps], patch.left + column[i % kTaps]);
          }
        }
      }
      const bool there = y < tile.y2;
      const uint32_t word = __ballot_sync(kAllLanes, there && logit > threshold);
      const Bits key = there ? ordered_key(logit) : Bits(0);
      highest = key > highest ? key : highest;
      const Bits column_key = warp_max(key);
      if (lane() == 0) {
        const Window window = tile.window;
        const int64_t words = (window.y2 - window.y1 + 31) / 32;
        masks.words[plan.word[n] + (x - window.x1) * words + tile.row_of_tiles] = word;
        raise(&masks.column_keys[n * columns.output + x], column_key);
        own_area += __popc(word);
      }
    }
    if (y < tile.y2) raise(&row_key[lane()], highest);
    if (own_area > 0) atomicAdd(&area, own_area);
    __syncthreads();
    if (int(threadIdx.x) < tile.y2 - tile.y1) {
      raise(&masks.row_keys[n * rows.output + tile.y1 + threadIdx.x], row_key[threadIdx.x]);
    }
    if (threadIdx.x == 0 && area > 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&masks.areas[n]),
                static_cast<unsigned long long>(area));
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) key_to_probability(typename Key<T>::type* keys, int64_t count) {
  T* const probabilities = reinterpret_cast<T*>(keys);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    const auto key = keys[i];
    probabilities[i] = key == 0 ? T(0) : sigmoid(key_to_number<T>(key));
  }
}

}  // namespace

template <typename T>
void assemble(const Grid& psi, const T* delta, const Taps<T>& rows, const Taps<T>& columns,
              T logit_threshold, const Plan& plan, const MaskBuffers<T>& masks,
              cudaStream_t stream) {
  with_cells<T>(psi, [&](auto cells) {
    using S = std::remove_pointer_t<decltype(cells.data)>;
    launch(assemble_tiles<S, T>, striding_blocks(), kThreads, stream, cells, delta, rows, columns,
           logit_threshold, plan, masks);
  });
}

template <typename T>
void keys_to_probabilities(typename Key<T>::type* keys, int64_t count, cudaStream_t stream) {
  launch(key_to_probability<T>, multiprocessors(), kThreads, stream, keys, count);
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void assemble<T>(const Grid&, const T*, const Taps<T>&, const Taps<T>&, T,             \
                            const Plan&, const MaskBuffers<T>&, cudaStream_t);                    \
  template void keys_to_probabilities<T>(Key<T>::type*, int64_t, cudaStream_t);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace cuda
}  // namespace rdsnet
