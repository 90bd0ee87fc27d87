// The operators on CUDA devices: tensors in, raw pointers on.
//
// Packed results have a size that the host has to learn before it can allocate them. That is one
// small copy per call that waits for the device (fetch); it also brings the errors that only the
// device can see. Nothing else here waits.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../arguments.h"
#include "operators.h"

#if !defined(RDSNET_CUDA_KEY)
#define RDSNET_CUDA_KEY CUDA
#endif

namespace rdsnet {
namespace cuda {
namespace {

// Bits of masks whose exact number is not worth a synchronisation, bytes.
constexpr int64_t kSpareBytes = int64_t(64) << 20;

Tensor numbers(at::IntArrayRef shape, const Tensor& like, at::ScalarType type = at::kLong) {
  return at::empty(shape, like.options().dtype(type));
}

void check_device(const Tensor& tensor, const Tensor& psi, const char* op, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == psi.device(), op, ": ", name, " must be on ", psi.device(),
                    ", the device of psi, but is on ", tensor.device());
}

Grid grid_of(const Tensor& psi) {
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
Tensor as_computed(const Tensor& psi, at::ScalarType type) {
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
Summary fetch(const Tensor& summary) {
  const Tensor copy = summary.cpu();
  return *static_cast<const Summary*>(copy.const_data_ptr());
}

void refuse_wrong_index(int64_t object, const Tensor& index, int64_t bound, const char* op,
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

std::tuple<Tensor, Tensor> correlate_cuda(const Tensor& psi, const Tensor& phi,
                                          const Tensor& image_index, const Tensor& windows) {
  const char* const op = "correlate";
  const DeviceGuard guard(psi.device());
  const GridArguments given(psi, phi, image_index, windows, op);
  const OwnedPlan plan(given.objects, kGridTileWidth, kGridTileHeight, given.image);
  given.plan(given.checks(), plan.view);
  const Summary summary = fetch(plan.summary);
  refuse_wrong_index(summary.wrong_image, given.image, psi.size(0), op, "image_index");
  Tensor logits = numbers({summary.total}, given.delta, given.type);
  dispatch(given.type, [&](auto zero) {
    using T = decltype(zero);
    correlate<T>(grid_of(given.psi), given.delta.const_data_ptr<T>(),
                 given.image.const_data_ptr<int64_t>(), plan.view, logits.mutable_data_ptr<T>(),
                 current_stream());
  });
  return {logits, plan.pixel_offsets()};
}

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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> assemble_masks_cuda(
    const Tensor& psi, const Tensor& phi, const Tensor& windows, const Tensor& first_y,
    const Tensor& weights_y, const Tensor& first_x, const Tensor& weights_x, double threshold) {
  const char* const op = "assemble_masks";
  TORCH_CHECK_VALUE(psi.dim() == 3, op, ": psi must have shape (D, h, w), got ", psi.sizes());
  check_floating(psi, op, "psi");
  const DeviceGuard guard(psi.device());
  for (const auto& [tensor, name] :
       {std::pair<const Tensor&, const char*>(phi, "phi"), {windows, "windows"},
        {first_y, "taps_y.first"}, {weights_y, "taps_y.weights"}, {first_x, "taps_x.first"},
        {weights_x, "taps_x.weights"}}) {
    check_device(tensor, psi, op, name);
  }
  const auto type = psi.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor delta = delta_of(phi, psi, type, op);
  const int64_t objects = delta.size(0);
  const Tensor corners = checked_windows(windows, objects, op);
  const Tensor begin_y = contiguous_as(first_y, at::kLong);
  const Tensor begin_x = contiguous_as(first_x, at::kLong);
  check_taps(begin_y, weights_y, "taps_y");
  check_taps(begin_x, weights_x, "taps_x");
  const int64_t height = begin_y.size(0), width = begin_x.size(0);
  check_output_size(height, width);
  const Tensor factors_y = contiguous_as(weights_y, type);
  const Tensor factors_x = contiguous_as(weights_x, type);

  const OwnedPlan plan(objects, kMaskTileWidth, kMaskTileHeight, corners);
  Checks checks = {};
  checks.rows = begin_y.const_data_ptr<int64_t>();
  checks.height = height;
  checks.grid_height = psi.size(1);
  checks.columns = begin_x.const_data_ptr<int64_t>();
  checks.width = width;
  checks.grid_width = psi.size(2);
  plan_windows(corners.const_data_ptr<int64_t>(), height, width, checks, plan.view,
               current_stream());
  int64_t words = objects * width * ((height + 31) / 32);
  if (words * 4 > kSpareBytes) words = fetch(plan.summary).words;
  const Tensor bits = numbers({words}, corners, at::kInt);
  const Tensor column_runs = numbers({objects * width}, corners);

  Tensor areas = at::zeros({objects}, corners.options());
  Tensor row_maxima = at::zeros({objects, height}, delta.options());
  Tensor column_maxima = at::zeros({objects, width}, delta.options());
  Tensor run_offsets = numbers({objects + 1}, corners);
  uint32_t* const word = static_cast<uint32_t*>(bits.data_ptr());
  int64_t* const column_run = column_runs.mutable_data_ptr<int64_t>();
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    using Bits = typename Key<T>::type;
    const MaskBuffers<T> masks = {word, static_cast<Bits*>(row_maxima.data_ptr()),
                                  static_cast<Bits*>(column_maxima.data_ptr()),
                                  areas.mutable_data_ptr<int64_t>()};
    assemble<T>(grid_of(psi.unsqueeze(0)), delta.const_data_ptr<T>(),
                {begin_y.const_data_ptr<int64_t>(), factors_y.const_data_ptr<T>(), height},
                {begin_x.const_data_ptr<int64_t>(), factors_x.const_data_ptr<T>(), width},
                T(logit_of(threshold)), plan.view, masks, current_stream());
    keys_to_probabilities<T>(masks.row_keys, row_maxima.numel(), current_stream());
    keys_to_probabilities<T>(masks.column_keys, column_maxima.numel(), current_stream());
  });
  count_runs(word, plan.view, height, width, column_run, run_offsets.mutable_data_ptr<int64_t>(),
             current_stream());

  const Summary summary = fetch(plan.summary);
  for (const auto& [place, first, cells, name] :
       {std::make_tuple(summary.wrong_row, begin_y, psi.size(1), "taps_y"),
        std::make_tuple(summary.wrong_column, begin_x, psi.size(2), "taps_x")}) {
    if (place >= 0) refuse_tap(first[place].item<int64_t>(), place, cells, name);
  }
  const Tensor edges = numbers({summary.total}, corners);
  Tensor run_lengths = numbers({summary.total}, corners);
  write_runs(word, plan.view, height, width, column_run, run_offsets.const_data_ptr<int64_t>(),
             edges.mutable_data_ptr<int64_t>(), run_lengths.mutable_data_ptr<int64_t>(),
             current_stream());
  const Tensor by_axis = corners.view({objects, 2, 2});
  const Tensor clamped = at::stack({by_axis.select(2, 0).clamp(0, width),
                                    by_axis.select(2, 1).clamp(0, height)}, 2);
  return {clamped.view({objects, 4}), areas, row_maxima, column_maxima, run_lengths, run_offsets};
}

std::tuple<Tensor, Tensor> encode_runs_cuda(const Tensor& run_lengths, const Tensor& run_offsets) {
  const char* const op = "encode_runs";
  const DeviceGuard guard(run_lengths.device());
  TORCH_CHECK_VALUE(run_offsets.device() == run_lengths.device(), op,
                    ": run_offsets must be on the device of run_lengths, ", run_lengths.device());
  const Tensor lengths = contiguous_as(run_lengths, at::kLong);
  const Tensor offsets = contiguous_as(run_offsets, at::kLong);
  const int64_t objects = offsets.numel() - 1, runs = lengths.numel();
  TORCH_CHECK_VALUE(objects >= 0 && (objects > 0 || runs == 0), op,
                    ": run_offsets must go from 0 to the number of run lengths, ", runs);
  const Tensor place = numbers({runs}, lengths);
  const Tensor summary = at::full({kSummarySize}, -1, lengths.options());
  Tensor text_offsets = numbers({objects + 1}, lengths);
  count_characters(lengths.const_data_ptr<int64_t>(), runs, offsets.const_data_ptr<int64_t>(),
                   objects, place.mutable_data_ptr<int64_t>(),
                   text_offsets.mutable_data_ptr<int64_t>(),
                   reinterpret_cast<Summary*>(summary.data_ptr()), current_stream());
  const Summary found = fetch(summary);
  TORCH_CHECK_VALUE(found.wrong_image < 0, op, ": run_offsets must not decrease and go from 0 to ",
                    "the number of run lengths, ", runs, "; object ", found.wrong_image,
                    " breaks this");
  Tensor text = numbers({found.total}, lengths, at::kByte);
  write_characters(lengths.const_data_ptr<int64_t>(), offsets.const_data_ptr<int64_t>(), objects,
                   place.const_data_ptr<int64_t>(), text_offsets.const_data_ptr<int64_t>(),
                   static_cast<char*>(text.data_ptr()), current_stream());
  return {text, text_offsets};
}

}  // namespace

TORCH_LIBRARY_IMPL(rdsnet, RDSNET_CUDA_KEY, m) {
  m.impl("correlate", correlate_cuda);
  m.impl("correlate_backward", correlate_backward_cuda);
  m.impl("mask_ohem_loss", mask_ohem_loss_cuda);
  m.impl("mask_ohem_loss_backward", mask_ohem_loss_backward_cuda);
  m.impl("assemble_masks", assemble_masks_cuda);
  m.impl("encode_runs", encode_runs_cuda);
}

}  // namespace cuda
}  // namespace rdsnet
