// The operators on CUDA devices: tensors in, raw pointers on. Losses and gradients:
// loss_registration.cpp.
//
// Packed results have a size that the host has to learn before it can allocate them. That is one
// small copy per call that waits for the device (fetch); it also brings the errors that only the
// device can see. Nothing else here waits.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "tensors.h"

namespace rdsnet {
namespace cuda {
namespace {

// Bits of masks whose exact number is not worth a synchronisation, bytes.
constexpr int64_t kSpareBytes = int64_t(64) << 20;

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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> assemble_masks_cuda(
    const Tensor& psi, const Tensor& phi, const Tensor& windows, const Tensor& first_y,
    const Tensor& weights_y, const Tensor& first_x, const Tensor& weights_x, double threshold) {
  const char* const op = "assemble_masks";
  TORCH_CHECK_VALUE(psi.dim() == 3, op, ": psi must have shape (D, h, w), got ", psi.sizes());
  check_floating(psi, op, "psi");
  const DeviceGuard guard(psi.device());
  check_device(phi, psi, op, "phi");
  check_device(windows, psi, op, "windows");
  const auto type = psi.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor delta = delta_of(phi, psi, type, op);
  const int64_t objects = delta.size(0);
  const Tensor corners = checked_windows(windows, objects, op);
  const OwnedTaps taps_y(first_y, weights_y, psi, type, op, "taps_y");
  const OwnedTaps taps_x(first_x, weights_x, psi, type, op, "taps_x");
  const int64_t height = taps_y.output(), width = taps_x.output();
  check_output_size(height, width);

  const OwnedPlan plan(objects, kMaskTileWidth, kMaskTileHeight, corners);
  Checks checks = {};
  checks.rows = taps_y.begin();
  checks.height = height;
  checks.grid_height = psi.size(1);
  checks.columns = taps_x.begin();
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
    assemble<T>(grid_of(psi.unsqueeze(0)), delta.const_data_ptr<T>(), taps_y.view<T>(),
                taps_x.view<T>(), T(logit_of(threshold)), plan.view, masks, current_stream());
    keys_to_probabilities<T>(masks.row_keys, row_maxima.numel(), current_stream());
    keys_to_probabilities<T>(masks.column_keys, column_maxima.numel(), current_stream());
  });
  count_runs(word, plan.view, height, width, column_run, run_offsets.mutable_data_ptr<int64_t>(),
             current_stream());

  const Summary summary = fetch(plan.summary);
  taps_y.refuse_wrong(summary.wrong_row, psi.size(1), op, "taps_y");
  taps_x.refuse_wrong(summary.wrong_column, psi.size(2), op, "taps_x");
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
  m.impl("assemble_masks", assemble_masks_cuda);
  m.impl("encode_runs", encode_runs_cuda);
}

}  // namespace cuda
}  // namespace rdsnet
