// The inner loops, on raw pointers, compiled once per instruction set.
//
// A row of psi is handed around in blocks of kCells cells, [block][padded_dims][kCells]: an object
// then reads memory in one stream, whatever the strides of psi. Dimensions are padded to a multiple
// of kDimStep and cells to whole blocks, with zeros. Output pixels are handled in blocks of
// kPixels, aligned to the output, not to the window.
#pragma once

#include <stdint.h>

namespace rdsnet {

constexpr int kCells = 16;
constexpr int kPixels = 8;
constexpr int kDimStep = 4;
constexpr int kMaxRows = 4;
constexpr int kSpareFlips = 2;

enum class Kind { kFloat, kDouble, kHalf, kBFloat16 };

// A pixel where the thresholded mask differs from the pixel above it.
struct Flip {
  int32_t x, y;
};

// Horizontal taps of the output columns, prepared for blocks of kPixels.
template <typename T>
struct ColumnTaps {
  int taps;               // 2 where no third weight is used, else 3
  const int32_t* base;    // per block: its first cell
  bool all_narrow;        // the cells of every block lie within kPixels from its base
  const int32_t* offset;  // [tap][column]: cell - base
  const T* weight;        // [tap][column]
  int64_t columns;        // rounded up to whole blocks
};

// The pixels that look at each cell of a row, neighbours, and with which weights: a cell's weights
// are in whole vectors of kPixels, the last ones 0.
template <typename T>
struct CellTaps {
  const int32_t* first;  // (cells): its first pixel
  const int32_t* begin;  // (cells + 1): its weights in `weight`
  const T* weight;
};

// Which cells of a block take part in the loss, bit i for cell i; those outside the window neither
// way.
struct BlockTargets {
  uint16_t foreground, background;
};

// Signed integers in the order of the logits: ordered_key of common.h less 2^31 (2^63).
template <typename T>
struct SignedKey;

template <>
struct SignedKey<float> {
  using type = int32_t;
};

template <>
struct SignedKey<double> {
  using type = int64_t;
};

// Consecutive rows of the output that look at the same rows of the grid, inside the window of one
// object. Pixels are counted from its first block.
template <typename T>
struct OutputRows {
  const T* grid[3];  // the grid rows, expanded; the third is null where it has no weight
  const T* weights;  // [row][3]
  int first, count;  // of the output's rows; count is 1..kMaxRows
  int skip, end;     // pixels before `skip` and from `end` on are outside the window
  T* column_maxima;
  T* row_maxima;  // of the whole output
  // One bit per pixel, [kMaxRows + 1][whole words of 64 pixels]. First the row above, which the
  // last of these rows replaces.
  uint8_t* bits;
  Flip* flips;  // has room for kSpareFlips more than there are pixels
};

// An object that looks at a block of cells, and where its logits of these cells belong.
template <typename T>
struct CellLogits {
  const T* delta;
  T* logits;
};

template <typename T>
struct Kernels {
  // Cells [first, first + cells) of one row of psi into blocks; first is a multiple of kCells.
  void (*load_row)(const void* source, Kind kind, int64_t stride_d, int64_t stride_x, int dims,
                   int padded_dims, int first, int cells, T* row);

  // The reverse, for gradients.
  void (*store_row)(const T* row, Kind kind, int64_t stride_d, int64_t stride_x, int dims,
                    int padded_dims, int cells, void* target);

  // out[i] = sum_d delta[d] * psi[d, block_begin * kCells + i].
  void (*correlate_row)(const T* row, const T* delta, int padded_dims, int block_begin,
                        int block_end, T* out);

  // The same for one block and all the objects that look at it. The dimensions of psi are stride
  // apart: a block need not have been loaded.
  void (*correlate_block)(const T* psi, int64_t stride, int padded_dims,
                          const CellLogits<T>* objects, int count);

  // Horizontal interpolation of a row of logits whose first cell is origin. Reads up to kPixels
  // cells beyond the last one in use.
  void (*expand_row)(const T* cells, int origin, const ColumnTaps<T>& taps, int block_begin,
                     int block_end, T* out);

  // Interpolation across rows, maxima and threshold. Returns the number of flips.
  int (*combine_rows)(const OutputRows<T>& rows, T threshold);

  void (*sigmoid_row)(T* values, int64_t count);

  // out = sum over k of weights[k] * rows[k], in whole blocks of kPixels; the third row may be null.
  void (*blend_rows)(const T* const* rows, const T* weights, int64_t blocks, T* out);

  // The transposed map: rows[k] += weights[k] * row.
  void (*spread_row)(const T* row, const T* weights, int64_t blocks, T* const* rows);

  // The transpose of expand_row: out[cell - cell_begin] = sum of what the pixels that look at a cell
  // give it. pixels[0] is pixel `origin`; reads whole vectors from a cell's first pixel on.
  void (*reduce_row)(const T* pixels, int64_t origin, const CellTaps<T>& taps, int cell_begin,
                     int cell_end, T* out);

  // Foreground cells of a row of blocks, bit i of bits[block - block_begin] for cell i, from the
  // row of a map on the grid, where non-zero is foreground.
  void (*grid_targets)(const uint8_t* row, int64_t width, int block_begin, int block_end,
                       uint16_t* bits);

  // The same from the two middle rows of 4 x 4 pixels (0 or 1) per cell: at least 3 of a cell's 4
  // middle pixels. width is in pixels; what lies beyond counts as 0.
  void (*image_targets)(const uint8_t* upper, const uint8_t* lower, int64_t width, int block_begin,
                        int block_end, uint16_t* bits);

  // Keys of the background's logits; the lowest of all for other cells. -0 has the key of 0.
  void (*background_keys)(const T* z, const BlockTargets* targets, int64_t blocks,
                          typename SignedKey<T>::type* keys);

  // How many keys are at least `least`.
  int64_t (*count_keys)(const typename SignedKey<T>::type* keys, int64_t blocks,
                        typename SignedKey<T>::type least);

  // Keeps foreground, and background where z >= threshold. Replaces z by scale * d loss / dz (0
  // where not kept) and returns the sum of the kept losses.
  double (*loss_and_gradient)(T* z, const BlockTargets* targets, int64_t blocks, T threshold,
                              T scale);

  // partial[d][lane] += sum over cells of psi[d] * grad; grad is 0 outside the window.
  void (*add_phi_gradient)(const T* row, const T* grad, int padded_dims, int block_begin,
                           int block_end, T* partial);

  // out[d][cell] = sum over objects of delta[object][d] * grad[object][cell] for one block.
  void (*psi_gradient_block)(const T* const* grads, const T* const* deltas, int objects,
                             int padded_dims, T* out);
};

// Lanes of `partial` in add_phi_gradient.
template <typename T>
constexpr int kLanes = 32 / sizeof(T);

namespace generic {
const Kernels<float>& float_kernels();
const Kernels<double>& double_kernels();
}  // namespace generic

namespace avx2 {
bool available();  // compiled in, and the processor has AVX2, FMA and F16C
const Kernels<float>& float_kernels();
const Kernels<double>& double_kernels();
}  // namespace avx2

template <typename T>
const Kernels<T>& kernels();

}  // namespace rdsnet
