// The operators on the CPU: tensors in, raw pointers on. Losses and gradients: loss_binding.cpp.
//
// torch/library.h rather than the stable ABI: the latter begins with torch 2.10, and parts of what
// is needed here with 2.11, while the package supports torch 2.6.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <memory>
#include <tuple>
#include <vector>

#include "cpu/assemble.h"
#include "cpu/edges.h"
#include "cpu/targets.h"
#include "schemas.h"
#include "tensors.h"

namespace rdsnet {
namespace {

std::tuple<Tensor, Tensor> correlate_cpu(const Tensor& psi, const Tensor& phi,
                                         const Tensor& image_index, const Tensor& windows) {
  const PsiView view = view_of(psi, "correlate");
  const at::ScalarType type = compute_type(psi, phi);
  const Tensor delta = delta_on_cpu(phi, psi, type, "correlate");
  const OwnedObjects objects(psi, image_index, windows, delta.size(0), "correlate");
  Tensor logits = at::empty({objects.pixels()}, delta.options());
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    correlate<T>(view, delta.const_data_ptr<T>(), objects.view, at::get_num_threads(),
                 run_parallel, logits.mutable_data_ptr<T>());
  });
  return {logits, objects.offset};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> assemble_masks_cpu(
    const Tensor& psi, const Tensor& phi, const Tensor& windows, const Tensor& first_y,
    const Tensor& weights_y, const Tensor& first_x, const Tensor& weights_x, double threshold) {
  const char* const op = "assemble_masks";
  TORCH_CHECK_VALUE(psi.dim() == 3, op, ": psi must have shape (D, h, w), got ", psi.sizes());
  const PsiView view = view_of(psi.unsqueeze(0), op);
  const auto type = psi.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor delta = delta_on_cpu(phi, psi, type, op);
  const int64_t count = delta.size(0);
  const Tensor corners = checked_windows(windows, count, op);
  const OwnedTaps taps_y(first_y, weights_y, type, view.height, op, "taps_y");
  const OwnedTaps taps_x(first_x, weights_x, type, view.width, op, "taps_x");
  const int64_t height = taps_y.output(), width = taps_x.output();
  check_output_size(height, width);

  Tensor clamped = at::empty({count, 4}, corners.options());
  const int64_t* const corner = corners.const_data_ptr<int64_t>();
  int64_t* const on_output = clamped.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < 4 * count; ++i) {
    on_output[i] = clamp_index(corner[i], i % 2 ? height : width);
  }
  Tensor areas = at::empty({count}, corners.options());
  Tensor row_maxima = at::empty({count, height}, delta.options());
  Tensor column_maxima = at::empty({count, width}, delta.options());
  Tensor run_offsets = at::empty({count + 1}, corners.options());
  int64_t* const offsets = run_offsets.mutable_data_ptr<int64_t>();
  Tensor run_lengths;
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    MaskOutput<T> output = {areas.mutable_data_ptr<int64_t>(), row_maxima.mutable_data_ptr<T>(),
                            column_maxima.mutable_data_ptr<T>(), {}};
    assemble<T>(view, delta.const_data_ptr<T>(), corners.const_data_ptr<int64_t>(), count,
                taps_y.view<T>(), taps_x.view<T>(), T(logit_of(threshold)), at::get_num_threads(),
                run_parallel, &output);
    offsets[0] = 0;
    for (int64_t n = 0; n < count; ++n) {
      offsets[n + 1] = offsets[n] + int64_t(output.runs[n].size());
    }
    run_lengths = at::empty({offsets[count]}, corners.options());
    int64_t* const lengths = run_lengths.mutable_data_ptr<int64_t>();
    for (int64_t n = 0; n < count; ++n) {
      std::copy(output.runs[n].begin(), output.runs[n].end(), lengths + offsets[n]);
    }
  });
  return {clamped, areas, row_maxima, column_maxima, run_lengths, run_offsets};
}

std::tuple<Tensor, Tensor> encode_runs_cpu(const Tensor& run_lengths, const Tensor& run_offsets) {
  const Tensor lengths = contiguous_as(run_lengths, at::kLong);
  const Tensor offsets = contiguous_as(run_offsets, at::kLong);
  const int64_t* const values = lengths.const_data_ptr<int64_t>();
  const int64_t* const bounds = offsets.const_data_ptr<int64_t>();
  const int64_t count = offsets.numel() - 1;
  TORCH_CHECK_VALUE(count >= 0 && bounds[0] == 0 && bounds[count] == lengths.numel(),
                    "encode_runs: run_offsets must go from 0 to the number of run lengths, ",
                    lengths.numel());
  for (int64_t n = 0; n < count; ++n) {
    TORCH_CHECK_VALUE(bounds[n] <= bounds[n + 1], "encode_runs: run_offsets must not decrease");
  }
  Tensor text_offsets = at::empty({count + 1}, offsets.options());
  int64_t* const text_bounds = text_offsets.mutable_data_ptr<int64_t>();
  text_bounds[0] = 0;
  const std::unique_ptr<char[]> text(new char[lengths.numel() * kLongestCode]);
  char* end = text.get();
  for (int64_t n = 0; n < count; ++n) {
    end = encode_runs(values + bounds[n], bounds[n + 1] - bounds[n], end);
    text_bounds[n + 1] = end - text.get();
  }
  Tensor characters = at::empty({text_bounds[count]}, offsets.options().dtype(at::kByte));
  std::copy(text.get(), end, characters.mutable_data_ptr<uint8_t>());
  return {characters, text_offsets};
}

Tensor mask_targets_cpu(const Tensor& masks, const Tensor& windows, int64_t stride,
                        int64_t height, int64_t width) {
  const char* const op = "mask_targets";
  check_image_masks(masks, op);
  check_stride(stride, op);
  const int64_t count = masks.size(0);
  const Tensor corners = checked_windows(windows, count, op), pixels = masks.contiguous();
  std::vector<Window> clamped;
  for (int64_t m = 0; m < count; ++m) {
    clamped.push_back(clamp_window(corners.const_data_ptr<int64_t>() + 4 * m, height, width));
  }
  Tensor targets = at::zeros({count, height, width}, masks.options().dtype(at::kByte));
  mask_targets(static_cast<const uint8_t*>(pixels.const_data_ptr()), count, masks.size(1),
               masks.size(2), int(stride), clamped.data(), height, width,
               targets.mutable_data_ptr<uint8_t>());
  return targets;
}

Tensor refine_edges_cpu(const Tensor& column_maxima, const Tensor& row_maxima,
                        const Tensor& boxes, const Tensor& weight, const Tensor& bias,
                        double gamma, double min_sigma, double log_cut, double reach,
                        double empty_threshold) {
  const char* const op = "refine_edges";
  const int64_t count = boxes.size(0);
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4 && column_maxima.dim() == 2 &&
                        row_maxima.dim() == 2 && column_maxima.size(0) == count &&
                        row_maxima.size(0) == count && weight.numel() % 2 == 1 &&
                        bias.numel() == 1,
                    op, ": column_maxima (N, W), row_maxima (N, H) and boxes (N, 4) must be of the "
                    "same objects, got ", column_maxima.sizes(), ", ", row_maxima.sizes(), " and ",
                    boxes.sizes());
  const Tensor columns = contiguous_as(column_maxima, at::kFloat);
  const Tensor rows = contiguous_as(row_maxima, at::kFloat);
  const Tensor regressed = contiguous_as(boxes, at::kFloat);
  const Tensor kernel = contiguous_as(weight, at::kFloat);
  Tensor refined = at::empty_like(regressed);
  const Tensor offset = contiguous_as(bias, at::kFloat);
  const EdgeModel model = {kernel.const_data_ptr<float>(), *offset.const_data_ptr<float>(),
                           kernel.numel() / 2,             float(gamma),
                           float(min_sigma),               float(log_cut),
                           reach,                          float(empty_threshold)};
  refine_edges(columns.const_data_ptr<float>(), rows.const_data_ptr<float>(),
               regressed.const_data_ptr<float>(), count, columns.size(1), rows.size(1), model,
               refined.mutable_data_ptr<float>());
  return refined;
}

}  // namespace

TORCH_LIBRARY(rdsnet, m) {
  define_operators(m);
}

TORCH_LIBRARY_IMPL(rdsnet, CPU, m) {
  m.impl("correlate", correlate_cpu);
  m.impl("assemble_masks", assemble_masks_cpu);
  m.impl("encode_runs", encode_runs_cpu);
  m.impl("mask_targets", mask_targets_cpu);
  m.impl("refine_edges", refine_edges_cpu);
}

}  // namespace rdsnet
