// Tensors as the CUDA kernels take them: checked, converted, as views of raw pointers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "../arguments.h"
#include "operators.h"

#if !defined(RDSNET_CUDA_KEY)
#define RDSNET_CUDA_KEY CUDA
#endif

namespace rdsnet {
namespace cuda {

inline Tensor numbers(at::IntArrayRef shape, const Tensor& like, at::ScalarType type = at::kLong) {
  return at::empty(shape, like.options().dtype(type));
}

inline void check_device(const Tensor& tensor, const Tensor& psi, const char* op, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == psi.device(), op, ": ", name, " must be on ", psi.device(),
                    ", the device of psi, but is on ", tensor.device());
}

inline Grid grid_of(const Tensor& psi) {
  Kind kind = Kind::kFloat;
  switch (psi.scalar_type()) {
    case at::kDouble: kind = Kind::kDouble; break;
    case at::kHalf: kind = Kind::kHalf; break;
    case at::kBFloat16: kind = Kind::kBFloat16; break;
    default: break;
  }
  return {psi.data_ptr(), kind,        psi.stride(0),    psi.stride(1),    psi.stride(2),
          psi.stride(3),  psi.size(0), int(psi.size(1)), int(psi.size(2)), int(psi.size(3))};
}

// Sums of type double are of double elements alone.
inline Tensor as_computed(const Tensor& psi, at::ScalarType type) {
  return type == at::kDouble ? psi.to(type) : psi;
}

// A plan with the memory that its pointers look into.
struct OwnedPlan {
  Tensor window, offsets, summary;
  Plan view;

  OwnedPlan(int64_t objects, int tile_width, int tile_height, const Tensor& like) {
    window = numbers({objects, 4}, like, at::kInt);
    offsets = numbers({4, objects + 1}, like);
    summary = numbers({kSummarySize}, like);
    int64_t* const offset = offsets.mutable_data_ptr<int64_t>();
    view = {objects,
            tile_width,
            tile_height,
            reinterpret_cast<Window*>(window.data_ptr()),
            offset,
            offset + (objects + 1),
            offset + 2 * (objects + 1),
            offset + 3 * (objects + 1),
            reinterpret_cast<Summary*>(summary.data_ptr())};
  }
  OwnedPlan(const OwnedPlan&) = delete;

  Tensor pixel_offsets() const { return offsets.select(0, 0).clone(); }
};

// Waits for the device.
inline Summary fetch(const Tensor& summary) {
  const Tensor copy = summary.cpu();
  return *static_cast<const Summary*>(copy.const_data_ptr());
}

inline void refuse_wrong_index(int64_t object, const Tensor& index, int64_t bound, const char* op,
                        const char* name) {
  if (object >= 0) refuse_index(index[object].item<int64_t>(), object, bound, op, name);
}

// The arguments that the operators on the feature grid share, checked and converted.
struct GridArguments {
  at::ScalarType type;
  Tensor psi, delta, image, windows;
  int64_t objects;

  GridArguments(const Tensor& psi_, const Tensor& phi, const Tensor& image_index,
                const Tensor& windows_, const char* op) {
    check_psi(psi_, op);
    check_device(phi, psi_, op, "phi");
    check_device(image_index, psi_, op, "image_index");
    check_device(windows_, psi_, op, "windows");
    type = compute_type(psi_, phi);
    psi = as_computed(psi_, type);
    delta = delta_of(phi, psi_, type, op);
    objects = delta.size(0);
    image = index_of_objects(image_index, objects, op, "image_index");
    windows = checked_windows(windows_, objects, op);
  }

  Checks checks() const {
    Checks checks = {};
    checks.image = image.const_data_ptr<int64_t>();
    checks.images = psi.size(0);
    return checks;
  }

  void plan(const Checks& checks, const Plan& plan) const {
    plan_windows(windows.const_data_ptr<int64_t>(), psi.size(2), psi.size(3), checks, plan,
                 current_stream());
  }
};

// Taps of one axis, from the cells of the grid to the pixels of the output.
class OwnedTaps {
 public:
  OwnedTaps(const Tensor& first, const Tensor& weights, const Tensor& psi, at::ScalarType type,
            const char* op, const char* name)
      : first_(contiguous_as(first, at::kLong)), weights_(contiguous_as(weights, type)) {
    check_device(first, psi, op, name);
    check_device(weights, psi, op, name);
    check_taps(first_, weights_, op, name);
  }

  int64_t output() const { return first_.size(0); }
  const int64_t* begin() const { return first_.const_data_ptr<int64_t>(); }

  template <typename T>
  Taps<T> view() const {
    return {begin(), weights_.const_data_ptr<T>(), output()};
  }

  // `wrong` is where the device has found an index that is not on the grid; -1: nowhere.
  void refuse_wrong(int64_t wrong, int64_t cells, const char* op, const char* name) const {
    if (wrong >= 0) refuse_tap(first_[wrong].item<int64_t>(), wrong, cells, op, name);
  }

 private:
  Tensor first_, weights_;
};

}  // namespace cuda
}  // namespace rdsnet
