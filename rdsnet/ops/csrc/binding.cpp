// The operators on the CPU: tensors in, raw pointers on.
//
// torch/library.h rather than the stable ABI: the latter begins with torch 2.10, and parts of what
// is needed here with 2.11, while the package supports torch 2.6.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "cpu/assemble.h"
#include "cpu/correlate.h"
#include "cpu/edges.h"
#include "cpu/mask_loss.h"
#include "cpu/targets.h"
#include "schemas.h"

namespace rdsnet {
namespace {

void run_parallel(int64_t count, const std::function<void(int64_t)>& task) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

Kind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return Kind::kDouble;
    case at::kHalf: return Kind::kHalf;
    case at::kBFloat16: return Kind::kBFloat16;
    default: return Kind::kFloat;
  }
}

PsiView view_of(const Tensor& psi, const char* op) {
  check_psi(psi, op);
  return {psi.data_ptr(),   kind_of(psi),     int64_t(psi.element_size()),
          psi.stride(0),    psi.stride(1),    psi.stride(2),
          psi.stride(3),    int(psi.size(0)), int(psi.size(1)),
          int(psi.size(2)), int(psi.size(3))};
}

// As delta_of. A handful of tensor operations costs more than all there is to compute.
Tensor delta_on_cpu(const Tensor& phi, const Tensor& psi, at::ScalarType type, const char* op) {
  check_phi(phi, psi, op);
  const Tensor given = contiguous_as(phi, type);
  const int64_t objects = phi.size(0), dims = phi.size(2);
  Tensor delta = at::empty({objects, dims}, given.options());
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    const T* background = given.const_data_ptr<T>();
    T* out = delta.mutable_data_ptr<T>();
    for (int64_t n = 0; n < objects; ++n, background += 2 * dims) {
      for (int64_t d = 0; d < dims; ++d) *out++ = background[dims + d] - background[d];
    }
  });
  return delta;
}

Tensor checked_index(const Tensor& index, int64_t count, int64_t bound, const char* op,
                     const char* name) {
  Tensor checked = index_of_objects(index, count, op, name);
  const int64_t* values = checked.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < count; ++n) {
    if (values[n] < 0 || values[n] >= bound) refuse_index(values[n], n, bound, op, name);
  }
  return checked;
}

// Objects with the tensors that their pointers look into.
struct OwnedObjects {
  Tensor image, offset;
  std::vector<Window> window;
  Objects view;

  OwnedObjects(const Tensor& psi, const Tensor& image_index, const Tensor& windows,
               int64_t count, const char* op) {
    image = checked_index(image_index, count, psi.size(0), op, "image_index");
    const Tensor corners = checked_windows(windows, count, op);
    offset = at::empty({count + 1}, corners.options());
    int64_t* const offsets = offset.mutable_data_ptr<int64_t>();
    offsets[0] = 0;
    for (int64_t n = 0; n < count; ++n) {
      window.push_back(clamp_window(corners.const_data_ptr<int64_t>() + 4 * n, psi.size(2),
                                    psi.size(3)));
      offsets[n + 1] = offsets[n] + window_area(window.back());
    }
    view = {count, image.const_data_ptr<int64_t>(), window.data(), offsets};
  }
  OwnedObjects(const OwnedObjects&) = delete;

  int64_t pixels() const { return view.offset[view.count]; }
};

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
                     maps.push_back({data + place[n] * height * width, height, width, true});
                   }
                   return maps;
                 });
}

std::tuple<Tensor, Tensor> mask_ohem_loss_from_images_cpu(
    const Tensor& psi, const Tensor& phi, const Tensor& image_index, const Tensor& windows,
    at::TensorList masks, const Tensor& object_index,
    std::optional<double> negatives_per_positive) {
  const char* const op = "mask_ohem_loss_from_images";
  std::vector<Tensor> pixels;
  for (const Tensor& own : masks) {
    check_image_masks(own, op);
    pixels.push_back(own.contiguous());
  }
  return loss_of(
      psi, phi, image_index, windows, negatives_per_positive, op, [&](const Objects& objects) {
        TORCH_CHECK_VALUE(int64_t(masks.size()) == psi.size(0), op,
                          ": masks must be a tensor per image, ", psi.size(0), "; got ",
                          masks.size());
        const Tensor index =
            index_of_objects(object_index, objects.count, op, "object_index");
        const int64_t* const place = index.const_data_ptr<int64_t>();
        std::vector<TargetMap> maps;
        for (int64_t n = 0; n < objects.count; ++n) {
          const Tensor& own = pixels[objects.image[n]];
          if (place[n] < 0 || place[n] >= own.size(0)) {
            refuse_index(place[n], n, own.size(0), op, "object_index");
          }
          const int64_t height = own.size(1), width = own.size(2);
          const auto* const data = static_cast<const uint8_t*>(own.const_data_ptr());
          maps.push_back({data + place[n] * height * width, height, width, false});
        }
        return maps;
      });
}

void check_cells(const Tensor& first, int64_t cells, const char* name) {
  const int64_t* values = first.const_data_ptr<int64_t>();
  for (int64_t o = 0; o < first.size(0); ++o) {
    if (values[o] < 0 || values[o] >= cells) refuse_tap(values[o], o, cells, name);
  }
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
  const Tensor begin_y = contiguous_as(first_y, at::kLong);
  const Tensor begin_x = contiguous_as(first_x, at::kLong);
  check_taps(begin_y, weights_y, "taps_y");
  check_taps(begin_x, weights_x, "taps_x");
  check_cells(begin_y, view.height, "taps_y");
  check_cells(begin_x, view.width, "taps_x");
  const int64_t height = begin_y.size(0), width = begin_x.size(0);
  check_output_size(height, width);
  const Tensor factors_y = contiguous_as(weights_y, type);
  const Tensor factors_x = contiguous_as(weights_x, type);

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
                {begin_y.const_data_ptr<int64_t>(), factors_y.const_data_ptr<T>(), height},
                {begin_x.const_data_ptr<int64_t>(), factors_x.const_data_ptr<T>(), width},
                T(logit_of(threshold)), at::get_num_threads(), run_parallel, &output);
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

Tensor mask_targets_cpu(const Tensor& masks, const Tensor& windows, int64_t height,
                        int64_t width) {
  const char* const op = "mask_targets";
  check_image_masks(masks, op);
  const int64_t count = masks.size(0);
  const Tensor corners = checked_windows(windows, count, op), pixels = masks.contiguous();
  std::vector<Window> clamped;
  for (int64_t m = 0; m < count; ++m) {
    clamped.push_back(clamp_window(corners.const_data_ptr<int64_t>() + 4 * m, height, width));
  }
  Tensor targets = at::zeros({count, height, width}, masks.options().dtype(at::kByte));
  mask_targets(static_cast<const uint8_t*>(pixels.const_data_ptr()), count, masks.size(1),
               masks.size(2), clamped.data(), height, width, targets.mutable_data_ptr<uint8_t>());
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
  m.impl("correlate_backward", correlate_backward_cpu);
  m.impl("mask_ohem_loss", mask_ohem_loss_cpu);
  m.impl("mask_ohem_loss_from_images", mask_ohem_loss_from_images_cpu);
  m.impl("mask_ohem_loss_backward", mask_ohem_loss_backward_cpu);
  m.impl("assemble_masks", assemble_masks_cpu);
  m.impl("encode_runs", encode_runs_cpu);
  m.impl("mask_targets", mask_targets_cpu);
  m.impl("refine_edges", refine_edges_cpu);
}

}  // namespace rdsnet
