// The losses and all gradients on CUDA devices: tensors in, raw pointers on.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace rdsnet {
namespace cuda {
namespace {

// The number of logits is that of the gradient: no need to wait for the plan. A gradient of another
// size than the windows' is an error of the caller that leads to wrong sums, not to wrong memory.
// loss_gradient may be null.
std::tuple<Tensor, Tensor> gradients(const Tensor& logit_gradient, const Tensor* loss_gradient,
                                     const Tensor& psi, const Tensor& phi,
                                     const Tensor& image_index, const Tensor& windows,
                                     const char* op) {
  const DeviceGuard guard(psi.device());
  const GridArguments given(psi, phi, image_index, windows, op);
  check_device(logit_gradient, psi, op, "logit_gradient");
  const int64_t objects = given.objects, dims = psi.size(1);
  const Tensor packed = contiguous_as(logit_gradient, given.type);
  Tensor factors;
  if (loss_gradient) {
    check_device(*loss_gradient, psi, op, "loss_gradient");
    factors = contiguous_as(*loss_gradient, given.type);
    check_elements(factors, objects, op, "loss_gradient");
  }
  const OwnedPlan plan(objects, kGridTileWidth, kSumTileHeight, given.image);
  given.plan(given.checks(), plan.view);
  // Windows of so many pixels have at most this many tiles, whole ones and those that an edge cuts.
  const int64_t across = (psi.size(3) + kGridTileWidth - 1) / kGridTileWidth;
  const int64_t down = (psi.size(2) + kSumTileHeight - 1) / kSumTileHeight;
  const int64_t tiles =
      std::min(objects * across * down,
               packed.numel() / (kGridTileWidth * kSumTileHeight) + objects * (across + down + 1));
  const Tensor partial = numbers({tiles, dims}, given.delta, given.type);
  Tensor psi_gradient = at::empty_like(given.psi), delta_gradient = at::empty_like(given.delta);
  dispatch(given.type, [&](auto zero) {
    using T = decltype(zero);
    const T* const factor = factors.defined() ? factors.const_data_ptr<T>() : nullptr;
    const T* const gradient = packed.const_data_ptr<T>();
    const int64_t* const image = given.image.const_data_ptr<int64_t>();
    cuda::delta_gradient<T>(grid_of(given.psi), image, plan.view, gradient, packed.numel(), factor,
                            partial.mutable_data_ptr<T>(), tiles,
                            delta_gradient.mutable_data_ptr<T>(), current_stream());
    cuda::psi_gradient<T>(grid_of(psi_gradient), given.delta.const_data_ptr<T>(), image, plan.view,
                          gradient, packed.numel(), factor, current_stream());
  });
  return {psi_gradient.to(psi.scalar_type()),
          at::stack({delta_gradient.neg(), delta_gradient}, 1).to(phi.scalar_type())};
}

std::tuple<Tensor, Tensor> correlate_backward_cuda(const Tensor& logit_gradient, const Tensor& psi,
                                                   const Tensor& phi, const Tensor& image_index,
                                                   const Tensor& windows) {
  return gradients(logit_gradient, nullptr, psi, phi, image_index, windows, "correlate_backward");
}

std::tuple<Tensor, Tensor> mask_ohem_loss_backward_cuda(
    const Tensor& logit_gradient, const Tensor& loss_gradient, const Tensor& psi,
    const Tensor& phi, const Tensor& image_index, const Tensor& windows) {
  return gradients(logit_gradient, &loss_gradient, psi, phi, image_index, windows,
                   "mask_ohem_loss_backward");
}

std::tuple<Tensor, Tensor> mask_ohem_loss_cuda(const Tensor& psi, const Tensor& phi,
                                               const Tensor& image_index, const Tensor& windows,
                                               const Tensor& targets, const Tensor& target_index,
                                               std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss";
  const DeviceGuard guard(psi.device());
  const GridArguments given(psi, phi, image_index, windows, op);
  check_targets(targets, psi, op);
  check_device(targets, psi, op, "targets");
  check_device(target_index, psi, op, "target_index");
  const Tensor maps = targets.contiguous();
  const Tensor map_index = index_of_objects(target_index, given.objects, op, "target_index");
  const OwnedPlan plan(given.objects, kGridTileWidth, kGridTileHeight, given.image);
  Checks checks = given.checks();
  checks.target = map_index.const_data_ptr<int64_t>();
  checks.targets = targets.size(0);
  given.plan(checks, plan.view);
  const Summary summary = fetch(plan.summary);
  refuse_wrong_index(summary.wrong_image, given.image, psi.size(0), op, "image_index");
  refuse_wrong_index(summary.wrong_target, map_index, targets.size(0), op, "target_index");
  Tensor loss = numbers({given.objects}, given.delta, given.type);
  Tensor gradient = numbers({summary.total}, given.delta, given.type);
  dispatch(given.type, [&](auto zero) {
    using T = decltype(zero);
    T* const logits = gradient.mutable_data_ptr<T>();
    correlate<T>(grid_of(given.psi), given.delta.const_data_ptr<T>(),
                 given.image.const_data_ptr<int64_t>(), plan.view, logits, current_stream());
    mask_loss<T>(plan.view, static_cast<const uint8_t*>(maps.const_data_ptr()),
                 map_index.const_data_ptr<int64_t>(), int(psi.size(2)), int(psi.size(3)),
                 negatives_per_positive.value_or(-1.0), logits, loss.mutable_data_ptr<T>(),
                 current_stream());
  });
  return {loss, gradient};
}

// A row per image: where its masks are, and their number and size.
Tensor table_of(const std::vector<Tensor>& masks, const Tensor& like) {
  static_assert(sizeof(const uint8_t*) == sizeof(int64_t), "pointers are kept as int64");
  Tensor table = at::empty({int64_t(masks.size()), kImageMasksSize}, at::kLong);
  auto* row = static_cast<ImageMasks*>(table.data_ptr());
  for (const Tensor& own : masks) {
    *row++ = {static_cast<const uint8_t*>(own.const_data_ptr()), own.size(0), own.size(1),
              own.size(2)};
  }
  return table.to(like.device());
}

std::tuple<Tensor, Tensor, Tensor> mask_ohem_loss_at_pixels_cuda(
    const Tensor& psi, const Tensor& phi, const Tensor& image_index, const Tensor& windows,
    at::TensorList masks, const Tensor& object_index, const Tensor& first_y,
    const Tensor& weights_y, const Tensor& first_x, const Tensor& weights_x,
    std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss_at_pixels";
  const DeviceGuard guard(psi.device());
  const GridArguments given(psi, phi, image_index, windows, op);
  const int64_t objects = given.objects;
  const int grid_height = int(psi.size(2)), grid_width = int(psi.size(3));
  check_masks_of_images(masks, psi, op);
  std::vector<Tensor> maps;
  for (const Tensor& own : masks) {
    check_device(own, psi, op, "masks");
    maps.push_back(own.contiguous());
  }
  check_device(object_index, psi, op, "object_index");
  const Tensor map_index = index_of_objects(object_index, objects, op, "object_index");
  const OwnedTaps taps_y(first_y, weights_y, psi, given.type, op, "taps_y");
  const OwnedTaps taps_x(first_x, weights_x, psi, given.type, op, "taps_x");
  const Tensor table = table_of(maps, psi);
  const ObjectMasks truth = {static_cast<const ImageMasks*>(table.const_data_ptr()), psi.size(0),
                             given.image.const_data_ptr<int64_t>(),
                             map_index.const_data_ptr<int64_t>()};

  const Tensor pixel_windows = numbers({objects, 4}, given.image);
  Tensor cell_windows = numbers({objects, 4}, given.image);
  const Tensor right = numbers({objects}, given.image);
  dispatch(given.type, [&](auto zero) {
    using T = decltype(zero);
    place_windows<T>(given.windows.const_data_ptr<int64_t>(), objects, truth, taps_y.view<T>(),
                     taps_x.view<T>(), grid_height, grid_width,
                     pixel_windows.mutable_data_ptr<int64_t>(),
                     cell_windows.mutable_data_ptr<int64_t>(), right.mutable_data_ptr<int64_t>(),
                     current_stream());
  });
  const OwnedPlan pixels(objects, kGridTileWidth, kGridTileHeight, given.image);
  const OwnedPlan cells(objects, kGridTileWidth, kGridTileHeight, given.image);
  Checks checks = given.checks();
  checks.target = right.const_data_ptr<int64_t>();
  checks.targets = 1;
  checks.rows = taps_y.begin();
  checks.height = taps_y.output();
  checks.grid_height = grid_height;
  checks.columns = taps_x.begin();
  checks.width = taps_x.output();
  checks.grid_width = grid_width;
  plan_windows(pixel_windows.const_data_ptr<int64_t>(), taps_y.output(), taps_x.output(), checks,
               pixels.view, current_stream());
  plan_windows(cell_windows.const_data_ptr<int64_t>(), grid_height, grid_width, given.checks(),
               cells.view, current_stream());
  const Summary summary = fetch(pixels.summary);
  refuse_wrong_index(summary.wrong_image, given.image, psi.size(0), op, "image_index");
  if (summary.wrong_target >= 0) {
    const int64_t image = given.image[summary.wrong_target].item<int64_t>();
    refuse_wrong_index(summary.wrong_target, map_index, maps[image].size(0), op, "object_index");
  }
  taps_y.refuse_wrong(summary.wrong_row, grid_height, op, "taps_y");
  taps_x.refuse_wrong(summary.wrong_column, grid_width, op, "taps_x");

  Tensor loss = numbers({objects}, given.delta, given.type);
  Tensor gradient = numbers({fetch(cells.summary).total}, given.delta, given.type);
  const Tensor of_pixels = numbers({summary.total}, given.delta, given.type);
  dispatch(given.type, [&](auto zero) {
    using T = decltype(zero);
    const Taps<T> rows = taps_y.view<T>(), columns = taps_x.view<T>();
    T* const of_cells = gradient.mutable_data_ptr<T>();
    T* const logits = of_pixels.mutable_data_ptr<T>();
    correlate<T>(grid_of(given.psi), given.delta.const_data_ptr<T>(), truth.image, cells.view,
                 of_cells, current_stream());
    expand<T>(of_cells, cells.view, pixels.view, rows, columns, grid_height, grid_width, logits,
              current_stream());
    mask_loss<T>(pixels.view, truth, negatives_per_positive.value_or(-1.0), logits,
                 loss.mutable_data_ptr<T>(), current_stream());
    reduce<T>(logits, pixels.view, cells.view, rows, columns, grid_height, grid_width, of_cells,
              current_stream());
  });
  return {loss, gradient, cell_windows};
}

}  // namespace

TORCH_LIBRARY_IMPL(rdsnet, RDSNET_CUDA_KEY, m) {
  m.impl("correlate_backward", correlate_backward_cuda);
  m.impl("mask_ohem_loss", mask_ohem_loss_cuda);
  m.impl("mask_ohem_loss_at_pixels", mask_ohem_loss_at_pixels_cuda);
  m.impl("mask_ohem_loss_backward", mask_ohem_loss_backward_cuda);
}

}  // namespace cuda
}  // namespace rdsnet
