// Checks of the tensors that operators are given, and phi_fg - phi_bg: the same on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "common.h"

namespace rdsnet {

using at::Tensor;

inline Tensor contiguous_as(const Tensor& tensor, at::ScalarType type) {
  return tensor.to(type).contiguous();
}

inline void check_floating(const Tensor& tensor, const char* op, const char* name) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kHalf ||
                       type == at::kBFloat16,
                   op, ": ", name, " must be float16, bfloat16, float32 or float64, got ",
                   tensor.dtype());
}

inline void check_psi(const Tensor& psi, const char* op) {
  TORCH_CHECK_VALUE(psi.dim() == 4, op, ": psi must have shape (B, D, h, w), got ", psi.sizes());
  check_floating(psi, op, "psi");
}

// Half precision is computed in single precision.
inline at::ScalarType compute_type(const Tensor& psi, const Tensor& phi) {
  const bool wide = psi.scalar_type() == at::kDouble || phi.scalar_type() == at::kDouble;
  return wide ? at::kDouble : at::kFloat;
}

// run(zero of the C++ type that stands for type).
template <typename Run>
void dispatch(at::ScalarType type, const Run& run) {
  if (type == at::kDouble) {
    run(double());
  } else {
    run(float());
  }
}

inline void check_phi(const Tensor& phi, const Tensor& psi, const char* op) {
  TORCH_CHECK_VALUE(phi.dim() == 3 && phi.size(1) == 2 && phi.size(2) == psi.size(-3), op,
                    ": phi must have shape (N, 2, D) with the D of psi, ", psi.size(-3), "; got ",
                    phi.sizes());
  check_floating(phi, op, "phi");
}

// phi (N, 2, D) -> (N, D), foreground minus background.
inline Tensor delta_of(const Tensor& phi, const Tensor& psi, at::ScalarType type,
                       const char* op) {
  check_phi(phi, psi, op);
  return phi.select(1, 1).to(type).sub(phi.select(1, 0).to(type)).contiguous();
}

inline Tensor checked_windows(const Tensor& windows, int64_t count, const char* op) {
  TORCH_CHECK_VALUE(windows.dim() == 2 && windows.size(0) == count && windows.size(1) == 4, op,
                    ": windows must have shape (N, 4) with N = ", count, ", got ",
                    windows.sizes());
  return contiguous_as(windows, at::kLong);
}

// The shape alone: the values are looked at where they are.
inline Tensor index_of_objects(const Tensor& index, int64_t count, const char* op,
                               const char* name) {
  TORCH_CHECK_VALUE(index.dim() == 1 && index.size(0) == count, op, ": ", name,
                    " must have shape (N,) with N = ", count, ", got ", index.sizes());
  return contiguous_as(index, at::kLong);
}

inline void refuse_index(int64_t value, int64_t object, int64_t bound, const char* op,
                         const char* name) {
  TORCH_CHECK_VALUE(false, op, ": ", name, " must lie in 0..", bound - 1, ", got ", value,
                    " for object ", object);
}

inline void check_targets(const Tensor& targets, const Tensor& psi, const char* op) {
  TORCH_CHECK_VALUE(targets.dim() == 3 && targets.size(1) == psi.size(2) &&
                        targets.size(2) == psi.size(3),
                    op, ": targets must have shape (M, h, w) with the (h, w) of psi, got ",
                    targets.sizes());
  TORCH_CHECK_TYPE(targets.scalar_type() == at::kByte || targets.scalar_type() == at::kBool, op,
                   ": targets must be uint8 or bool, got ", targets.dtype());
}

// Ground truth at the resolution of an image.
inline void check_image_masks(const Tensor& masks, const char* op) {
  TORCH_CHECK_VALUE(masks.dim() == 3, op, ": masks must have shape (M, H, W), got ",
                    masks.sizes());
  TORCH_CHECK_TYPE(masks.scalar_type() == at::kByte || masks.scalar_type() == at::kBool, op,
                   ": masks must be uint8 or bool, got ", masks.dtype());
}

// The same, of every image of the batch.
inline void check_masks_of_images(at::TensorList masks, const Tensor& psi, const char* op) {
  TORCH_CHECK_VALUE(int64_t(masks.size()) == psi.size(0), op,
                    ": masks must be a tensor per image, ", psi.size(0), "; got ", masks.size());
  for (const Tensor& own : masks) check_image_masks(own, op);
}

// Gradients of packed logits, and the factor of every object, if there is one.
inline void check_elements(const Tensor& tensor, int64_t wanted, const char* op,
                           const char* name) {
  TORCH_CHECK_VALUE(tensor.numel() == wanted, op, ": ", name, " must have ", wanted,
                    " elements, got ", tensor.numel());
}

inline void check_taps(const Tensor& first, const Tensor& weights, const char* op,
                       const char* name) {
  TORCH_CHECK_VALUE(first.dim() == 1 && first.size(0) > 0 && weights.dim() == 2 &&
                        weights.size(0) == first.size(0) && weights.size(1) == kTaps,
                    op, ": ", name, " must hold first (output,) and weights (output, ", kTaps,
                    "), got ", first.sizes(), " and ", weights.sizes());
}

inline void refuse_tap(int64_t value, int64_t output, int64_t cells, const char* op,
                       const char* name) {
  TORCH_CHECK_VALUE(false, op, ": ", name, ".first must lie on the grid, 0..", cells - 1,
                    ", got ", value, " for output pixel ", output);
}

inline void check_stride(int64_t stride, const char* op) {
  TORCH_CHECK_VALUE(stride >= 1 && stride <= 1024, op, ": stride must be 1 to 1024 pixels, got ",
                    stride);
}

inline void check_output_size(int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(height * width < (int64_t(1) << 32), "assemble_masks: output of ", height,
                    " x ", width,
                    " pixels is too large for run-length encoding (2^32 pixels at most)");
}

// sigmoid(z) > t is z > log(t / (1 - t)).
inline double logit_of(double threshold) { return std::log(threshold / (1 - threshold)); }

}  // namespace rdsnet
