// The kernels behind raw pointers. All of these point to device memory, and nothing here waits for
// the device; errors that only the device can see are left in Summary.
#pragma once

#include "../common.h"
#include "runtime.h"

namespace rdsnet {
namespace cuda {

enum class Kind { kFloat, kDouble, kHalf, kBFloat16 };

// A (B, D, h, w) tensor, any strides (in elements).
struct Grid {
  void* data;
  Kind kind;
  int64_t stride_b, stride_d, stride_y, stride_x;
  int64_t images;
  int dims, height, width;
};

// What the host may have to know, copied there in one go. First wrong places: -1 if there are none.
struct Summary {
  int64_t total;        // size of the packed result
  int64_t words;        // of bits
  int64_t wrong_image;  // object
  int64_t wrong_target;
  int64_t wrong_row;  // output pixel
  int64_t wrong_column;
};
constexpr int kSummarySize = sizeof(Summary) / sizeof(int64_t);

// Windows cut into tiles, and where the share of each object begins: offsets (N + 1).
struct Plan {
  int64_t objects;
  int tile_width, tile_height;
  Window* window;   // (N), clamped to the map
  int64_t* pixel;   // packed pixels
  int64_t* tile;    // tiles
  int64_t* column;  // columns of the windows
  int64_t* word;    // 32 rows of a column are one word of bits
  Summary* summary;
};

// Values to be checked on the way; all may be null.
struct Checks {
  const int64_t* image;
  int64_t images;
  const int64_t* target;
  int64_t targets;
  const int64_t* rows;  // taps.first
  int64_t height, grid_height;
  const int64_t* columns;
  int64_t width, grid_width;
};

// windows (N, 4). An object with a wrong index gets an empty window.
void plan_windows(const int64_t* windows, int64_t height, int64_t width, const Checks& checks,
                  const Plan& plan, cudaStream_t stream);

// Output o is sum_k weights[3 o + k] * cell[first[o] + k].
template <typename T>
struct Taps {
  const int64_t* first;
  const T* weights;
  int64_t output;
};

// The ground-truth masks of an image, (count, height, width).
struct ImageMasks {
  const uint8_t* data;
  int64_t count, height, width;
};
constexpr int kImageMasksSize = sizeof(ImageMasks) / sizeof(int64_t);

// The mask of every object: number index[n] of those of its image.
struct ObjectMasks {
  const ImageMasks* masks;  // of every image
  int64_t images;
  const int64_t* image;  // (N)
  const int64_t* index;  // (N)
};

// --- on the feature grid: correlation.cu, mining.cu. delta (N, D) is phi_fg - phi_bg -----------

constexpr int kGridTileWidth = 32, kGridTileHeight = 8;
// For sums over pixels a tile is taller, as there is one partial sum per tile.
constexpr int kSumTileHeight = 64;

template <typename T>
void correlate(const Grid& psi, const T* delta, const int64_t* image, const Plan& plan, T* logits,
               cudaStream_t stream);

// logits (packed) become d loss / d logit; loss (N). mining < 0 keeps every pixel.
template <typename T>
void mask_loss(const Plan& plan, const uint8_t* targets, const int64_t* target, int height,
               int width, double mining, T* logits, T* loss, cudaStream_t stream);

// The same at the pixels of the images.
template <typename T>
void mask_loss(const Plan& plan, const ObjectMasks& truth, double mining, T* logits, T* loss,
               cudaStream_t stream);

// Gradients for d / d logit (packed, `pixels` of them), times scale[n] (may be null).
// partial has room for (tiles, D) sums.
template <typename T>
void delta_gradient(const Grid& psi, const int64_t* image, const Plan& plan, const T* gradient,
                    int64_t pixels, const T* scale, T* partial, int64_t tiles,
                    T* delta_gradient, cudaStream_t stream);

// Writes every element of psi_gradient.
template <typename T>
void psi_gradient(const Grid& psi_gradient, const T* delta, const int64_t* image, const Plan& plan,
                  const T* gradient, int64_t pixels, const T* scale, cudaStream_t stream);

// --- between the grid and the pixels of the images: pixels.cu; numbers are packed ---------------

// Windows (N, 4) of pixels, cut off where an object's mask or the taps end, and the cells that they
// look at. right (N) is 0, or -1 for an object whose index is wrong; its windows are empty.
template <typename T>
void place_windows(const int64_t* windows, int64_t objects, const ObjectMasks& truth,
                   const Taps<T>& rows, const Taps<T>& columns, int grid_height, int grid_width,
                   int64_t* pixel_windows, int64_t* cell_windows, int64_t* right,
                   cudaStream_t stream);

// Pixels out of cells.
template <typename T>
void expand(const T* of_cells, const Plan& cells, const Plan& pixels, const Taps<T>& rows,
            const Taps<T>& columns, int grid_height, int grid_width, T* of_pixels,
            cudaStream_t stream);

// The transposed map: what the pixels give to the cells that they look at.
template <typename T>
void reduce(const T* of_pixels, const Plan& pixels, const Plan& cells, const Taps<T>& rows,
            const Taps<T>& columns, int grid_height, int grid_width, T* of_cells,
            cudaStream_t stream);

// --- at the output resolution: masks.cu, runs.cu -----------------------------------------------

constexpr int kMaskTileWidth = 64, kMaskTileHeight = 32;

template <typename T>
struct MaskBuffers {
  using Bits = typename Key<T>::type;
  uint32_t* words;      // bit r of a word: row 32 * word + r of that column of the window
  Bits* row_keys;       // (N, H), zeros on entry: ordered keys of the largest logits
  Bits* column_keys;    // (N, W), likewise
  int64_t* areas;       // (N), zeros on entry
};

template <typename T>
void assemble(const Grid& psi, const T* delta, const Taps<T>& rows, const Taps<T>& columns,
              T logit_threshold, const Plan& plan, const MaskBuffers<T>& masks,
              cudaStream_t stream);

// Keys become probabilities, in place; 0, which no number has as its key, becomes 0.
template <typename T>
void keys_to_probabilities(typename Key<T>::type* keys, int64_t count, cudaStream_t stream);

// run_offsets (N + 1); column_runs (columns): where a column's runs begin within its object.
// The number of runs goes to summary.total.
void count_runs(const uint32_t* words, const Plan& plan, int64_t height, int64_t width,
                int64_t* column_runs, int64_t* run_offsets, cudaStream_t stream);

// edges: room for as many numbers as there are runs.
void write_runs(const uint32_t* words, const Plan& plan, int64_t height, int64_t width,
                const int64_t* column_runs, const int64_t* run_offsets, int64_t* edges,
                int64_t* run_lengths, cudaStream_t stream);

// COCO's compressed form. place (runs): where a run's characters begin within its object. The
// number of characters goes to summary->total, the first object with wrong bounds to wrong_image.
void count_characters(const int64_t* runs, int64_t count, const int64_t* run_offsets,
                      int64_t objects, int64_t* place, int64_t* text_offsets, Summary* summary,
                      cudaStream_t stream);
void write_characters(const int64_t* runs, const int64_t* run_offsets, int64_t objects,
                      const int64_t* place, const int64_t* text_offsets, char* text,
                      cudaStream_t stream);

// One block: counts (N) in offsets[1...] become offsets, offsets[0] = 0; the sum goes to *total.
void offsets_from_counts(int64_t* offsets, int64_t objects, int64_t* total, cudaStream_t stream);

}  // namespace cuda
}  // namespace rdsnet
