// The losses and all gradients on the CPU: tensors in, raw pointers on.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/mask_loss.h"
#include "cpu/pixel_loss.h"
#include "tensors.h"

namespace rdsnet {
namespace {

// loss_gradient: where it is given, logit_gradient is what the loss left (in whole blocks), and
// counts loss_gradient[n] times for object n.
std::tuple<Tensor, Tensor> gradients(const Tensor& logit_gradient, const Tensor* loss_gradient,
                                     const Tensor& psi, const Tensor& phi,
                                     const Tensor& image_index, const Tensor& windows,
                                     const char* op) {
  const PsiView view = view_of(psi, op);
  const at::ScalarType type = compute_type(psi, phi);
  const Tensor delta = delta_on_cpu(phi, psi, type, op);
  const OwnedObjects objects(psi, image_index, windows, delta.size(0), op);
  const Tensor given = contiguous_as(logit_gradient, type);
  std::vector<int64_t> blocks;
  Tensor factors;
  if (loss_gradient) {
    blocks = block_offsets(objects.view);
    factors = contiguous_as(*loss_gradient, type);
    check_elements(factors, delta.size(0), op, "loss_gradient");
  }
  check_elements(given, loss_gradient ? blocks.back() * kCells : objects.pixels(), op,
                 "logit_gradient");
  Tensor psi_grad = at::empty_like(psi), delta_grad = at::empty_like(delta);
  const PsiView psi_grad_view = view_of(psi_grad, op);
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    correlate_backward<T>(view, psi_grad_view, delta.const_data_ptr<T>(), objects.view,
                          given.const_data_ptr<T>(), loss_gradient ? blocks.data() : nullptr,
                          loss_gradient ? factors.const_data_ptr<T>() : nullptr, run_parallel,
                          delta_grad.mutable_data_ptr<T>());
  });
  return {psi_grad, at::stack({delta_grad.neg(), delta_grad}, 1).to(phi.scalar_type())};
}

std::tuple<Tensor, Tensor> correlate_backward_cpu(const Tensor& logit_gradient, const Tensor& psi,
                                                  const Tensor& phi, const Tensor& image_index,
                                                  const Tensor& windows) {
  return gradients(logit_gradient, nullptr, psi, phi, image_index, windows, "correlate_backward");
}

std::tuple<Tensor, Tensor> mask_ohem_loss_backward_cpu(
    const Tensor& logit_gradient, const Tensor& loss_gradient, const Tensor& psi,
    const Tensor& phi, const Tensor& image_index, const Tensor& windows) {
  return gradients(logit_gradient, &loss_gradient, psi, phi, image_index, windows,
                   "mask_ohem_loss_backward");
}

// maps_of(objects): the ground truth of every object.
template <typename MapsOf>
std::tuple<Tensor, Tensor> loss_of(const Tensor& psi, const Tensor& phi,
                                   const Tensor& image_index, const Tensor& windows,
                                   std::optional<double> negatives_per_positive, const char* op,
                                   const MapsOf& maps_of) {
  const PsiView view = view_of(psi, op);
  const at::ScalarType type = compute_type(psi, phi);
  const Tensor delta = delta_on_cpu(phi, psi, type, op);
  const int64_t count = delta.size(0);
  const OwnedObjects objects(psi, image_index, windows, count, op);
  const std::vector<TargetMap> maps = maps_of(objects.view);
  Tensor loss = at::empty({count}, delta.options());
  Tensor gradient = at::empty({block_offsets(objects.view).back() * kCells}, delta.options());
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    mask_loss<T>(view, delta.const_data_ptr<T>(), objects.view, maps.data(),
                 negatives_per_positive.value_or(-1.0), at::get_num_threads(), run_parallel,
                 loss.mutable_data_ptr<T>(), gradient.mutable_data_ptr<T>());
  });
  return {loss, gradient};
}

std::tuple<Tensor, Tensor> mask_ohem_loss_cpu(const Tensor& psi, const Tensor& phi,
                                              const Tensor& image_index, const Tensor& windows,
                                              const Tensor& targets, const Tensor& target_index,
                                              std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss";
  const Tensor pixels = targets.contiguous();
  return loss_of(psi, phi, image_index, windows, negatives_per_positive, op,
                 [&](const Objects& objects) {
                   check_targets(targets, psi, op);
                   const Tensor index = checked_index(target_index, objects.count,
                                                      targets.size(0), op, "target_index");
                   const int64_t* const place = index.const_data_ptr<int64_t>();
                   const int64_t height = targets.size(1), width = targets.size(2);
                   const auto* const data = static_cast<const uint8_t*>(pixels.const_data_ptr());
                   std::vector<TargetMap> maps;
                   for (int64_t n = 0; n < objects.count; ++n) {
                     maps.push_back({data + place[n] * height * width, height, width, 1});
                   }
                   return maps;
                 });
}

// The ground truth of the objects at the resolution of their images. Owns the copies of masks that
// are not contiguous, into which the maps of the objects point: it has to outlive them.
class ImageMasks {
 public:
  ImageMasks(at::TensorList masks, const Tensor& psi, const char* op) : op_(op) {
    check_masks_of_images(masks, psi, op);
    for (const Tensor& own : masks) pixels_.push_back(own.contiguous());
  }

  // Mask object_index[n] of image[n], for every object.
  std::vector<TargetMap> of_objects(const Tensor& object_index, const int64_t* image,
                                    int64_t count, int stride) const {
    const Tensor index = index_of_objects(object_index, count, op_, "object_index");
    const int64_t* const place = index.const_data_ptr<int64_t>();
    std::vector<TargetMap> maps;
    for (int64_t n = 0; n < count; ++n) {
      const Tensor& own = pixels_[image[n]];
      if (place[n] < 0 || place[n] >= own.size(0)) {
        refuse_index(place[n], n, own.size(0), op_, "object_index");
      }
      const int64_t height = own.size(1), width = own.size(2);
      const auto* const data = static_cast<const uint8_t*>(own.const_data_ptr());
      maps.push_back({data + place[n] * height * width, height, width, stride});
    }
    return maps;
  }

 private:
  const char* op_;
  std::vector<Tensor> pixels_;
};

std::tuple<Tensor, Tensor> mask_ohem_loss_from_images_cpu(
    const Tensor& psi, const Tensor& phi, const Tensor& image_index, const Tensor& windows,
    at::TensorList masks, const Tensor& object_index, int64_t stride,
    std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss_from_images";
  check_stride(stride, op);
  const ImageMasks truth(masks, psi, op);
  return loss_of(psi, phi, image_index, windows, negatives_per_positive, op,
                 [&](const Objects& objects) {
                   return truth.of_objects(object_index, objects.image, objects.count,
                                           int(stride));
                 });
}

void check_order(const OwnedTaps& taps, const char* op, const char* name) {
  const int64_t* const first = taps.begin();
  TORCH_CHECK_VALUE(std::is_sorted(first, first + taps.output()), op, ": ", name,
                    ".first must not decrease");
}

std::tuple<Tensor, Tensor, Tensor> mask_ohem_loss_at_pixels_cpu(
    const Tensor& psi, const Tensor& phi, const Tensor& image_index, const Tensor& windows,
    at::TensorList masks, const Tensor& object_index, const Tensor& first_y,
    const Tensor& weights_y, const Tensor& first_x, const Tensor& weights_x,
    std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss_at_pixels";
  const PsiView view = view_of(psi, op);
  const at::ScalarType type = compute_type(psi, phi);
  const Tensor delta = delta_on_cpu(phi, psi, type, op);
  const int64_t count = delta.size(0);
  const OwnedTaps taps_y(first_y, weights_y, type, view.height, op, "taps_y");
  const OwnedTaps taps_x(first_x, weights_x, type, view.width, op, "taps_x");
  check_order(taps_y, op, "taps_y");
  check_order(taps_x, op, "taps_x");
  const Tensor image = checked_index(image_index, count, psi.size(0), op, "image_index");
  const ImageMasks truth(masks, psi, op);
  const std::vector<TargetMap> maps =
      truth.of_objects(object_index, image.const_data_ptr<int64_t>(), count, 1);
  const Tensor corners = checked_windows(windows, count, op);
  std::vector<Window> pixels;
  for (int64_t n = 0; n < count; ++n) {
    pixels.push_back(clamp_window(corners.const_data_ptr<int64_t>() + 4 * n,
                                  std::min(maps[n].height, taps_y.output()),
                                  std::min(maps[n].width, taps_x.output())));
  }
  Tensor cell_windows = at::empty({count, 4}, corners.options());
  Tensor loss = at::empty({count}, delta.options()), gradient;
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const TapsView<T> rows = taps_y.view<T>(), columns = taps_x.view<T>();
    int64_t* corner = cell_windows.mutable_data_ptr<int64_t>();
    for (const Window& own : cells_of(pixels, rows, columns, view.height, view.width)) {
      for (const int side : {own.x1, own.y1, own.x2, own.y2}) *corner++ = side;
    }
    const OwnedObjects objects(psi, image, cell_windows, count, op);
    gradient = at::empty({block_offsets(objects.view).back() * kCells}, delta.options());
    pixel_loss<T>(view, delta.const_data_ptr<T>(), objects.view, pixels.data(), maps.data(), rows,
                  columns, negatives_per_positive.value_or(-1.0), at::get_num_threads(),
                  run_parallel, loss.mutable_data_ptr<T>(), gradient.mutable_data_ptr<T>());
  });
  return {loss, gradient, cell_windows};
}

}  // namespace

TORCH_LIBRARY_IMPL(rdsnet, CPU, m) {
  m.impl("correlate_backward", correlate_backward_cpu);
  m.impl("mask_ohem_loss", mask_ohem_loss_cpu);
  m.impl("mask_ohem_loss_from_images", mask_ohem_loss_from_images_cpu);
  m.impl("mask_ohem_loss_at_pixels", mask_ohem_loss_at_pixels_cpu);
  m.impl("mask_ohem_loss_backward", mask_ohem_loss_backward_cpu);
}

}  // namespace rdsnet
