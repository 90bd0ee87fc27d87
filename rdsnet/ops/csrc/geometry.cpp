// Windows and taps: operators because they would take a dozen small tensor operations each. They
// need no kernels, and are there whatever kernels the others have.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "arguments.h"

namespace rdsnet {
namespace {

// The first pixel whose centre is not left of the edge; 0 <= result <= limit.
int64_t first_pixel(double edge, int64_t limit) {
  return int64_t(std::min(std::max(std::ceil(edge - 0.5), 0.0), double(limit)));
}

// rdsnet.ops.expanded_windows: boxes (N, 4) -> windows (N, 4). sizes: height and
// width per image; image (N) may be null where there is one.
template <typename T>
void expanded_windows(const T* boxes, int64_t count, double expand, const int64_t* sizes,
                      const int64_t* image, int64_t* windows) {
  for (int64_t n = 0; n < count; ++n) {
    const T* const box = boxes + 4 * n;
    const int64_t* const size = sizes + (image ? 2 * image[n] : 0);
    int64_t* const window = windows + 4 * n;
    bool valid = true;
    for (int axis = 0; axis < 2; ++axis) {
      const double low = box[axis], high = box[axis + 2];
      // Rounded on its own: a fused multiply-add would decide ties another way than PyTorch does.
      const volatile double half = (high - low) * (expand / 2);
      const double centre = (low + high) / 2, begin = centre - half, end = centre + half;
      valid = valid && std::isfinite(begin) && std::isfinite(end) && low <= high;
      window[axis] = valid ? first_pixel(begin, size[1 - axis]) : 0;
      window[axis + 2] = valid ? first_pixel(end, size[1 - axis]) : 0;
    }
    if (!valid) std::fill(window, window + 4, 0);
  }
}

// rdsnet.ops.resize_taps: first (output) and weights (output, kTaps); scale is in cells per pixel.
void resize_taps(int64_t output, double scale, int64_t grid, int64_t* first, float* weights) {
  for (int64_t o = 0; o < output; ++o) {
    const volatile double from_corner = (double(o) + 0.5) * scale;
    const double position = std::min(std::max(from_corner - 0.5, 0.0), double(grid - 1));
    first[o] = int64_t(position);
    const double fraction = position - double(first[o]);
    weights[o * kTaps] = float(1 - fraction);
    weights[o * kTaps + 1] = float(fraction);
    weights[o * kTaps + 2] = 0.f;
  }
}

Tensor expanded_windows_tensor(const Tensor& boxes, double expand, at::IntArrayRef sizes,
                            const std::optional<Tensor>& image_index) {
  const char* const op = "expanded_windows";
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, op,
                    ": boxes must have shape (N, 4), got ", boxes.sizes());
  const int64_t count = boxes.size(0), images = int64_t(sizes.size()) / 2;
  TORCH_CHECK_VALUE(sizes.size() % 2 == 0 && (image_index.has_value() || images == 1), op,
                    ": sizes must be height and width of every image, got ", sizes);
  Tensor image;
  if (image_index.has_value()) {
    image = index_of_objects(*image_index, count, op, "image_index");
    const int64_t* const values = image.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < count; ++n) {
      if (values[n] < 0 || values[n] >= images) {
        refuse_index(values[n], n, images, op, "image_index");
      }
    }
  }
  const bool wide = boxes.scalar_type() != at::kFloat;
  const Tensor corners = contiguous_as(boxes, wide ? at::kDouble : at::kFloat);
  Tensor windows = at::empty({count, 4}, corners.options().dtype(at::kLong));
  dispatch(corners.scalar_type(), [&](auto zero) {
    expanded_windows(corners.const_data_ptr<decltype(zero)>(), count, expand, sizes.data(),
                     image.defined() ? image.const_data_ptr<int64_t>() : nullptr,
                     windows.mutable_data_ptr<int64_t>());
  });
  return windows;
}

std::tuple<Tensor, Tensor> resize_taps_tensor(int64_t output, double scale, int64_t grid) {
  TORCH_CHECK_VALUE(output >= 0 && grid > 0, "resize_taps: sizes must be positive, got ", output,
                    " and ", grid);
  Tensor first = at::empty({output}, at::kLong), weights = at::empty({output, kTaps}, at::kFloat);
  resize_taps(output, scale, grid, first.mutable_data_ptr<int64_t>(),
              weights.mutable_data_ptr<float>());
  return {first, weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(rdsnet, CPU, m) {
  m.impl("expanded_windows", expanded_windows_tensor);
}

// Without a tensor among its arguments there is no device to choose a kernel by.
TORCH_LIBRARY_IMPL(rdsnet, CompositeExplicitAutograd, m) {
  m.impl("resize_taps", resize_taps_tensor);
}

}  // namespace rdsnet
