// What every operator takes and returns, whatever the device.
#pragma once

#include <torch/library.h>

namespace rdsnet {

inline void define_operators(torch::Library& m) {
  m.def(
      "correlate(Tensor psi, Tensor phi, Tensor image_index, Tensor windows)"
      " -> (Tensor logits, Tensor offsets)");
  m.def(
      "correlate_backward(Tensor logit_gradient, Tensor psi, Tensor phi, Tensor image_index,"
      " Tensor windows) -> (Tensor psi_gradient, Tensor phi_gradient)");
  m.def(
      "mask_ohem_loss(Tensor psi, Tensor phi, Tensor image_index, Tensor windows, Tensor targets,"
      " Tensor target_index, float? negatives_per_positive)"
      " -> (Tensor loss, Tensor logit_gradient)");
  // Ground truth of every image at the image's own resolution, (M, H, W) each: brought to the grid,
  // whose cells are stride x stride pixels, ...
  m.def(
      "mask_ohem_loss_from_images(Tensor psi, Tensor phi, Tensor image_index, Tensor windows,"
      " Tensor[] masks, Tensor object_index, int stride, float? negatives_per_positive)"
      " -> (Tensor loss, Tensor logit_gradient)");
  // ... and as it is: windows are in pixels, cell_windows is what they look at on the grid.
  m.def(
      "mask_ohem_loss_at_pixels(Tensor psi, Tensor phi, Tensor image_index, Tensor windows,"
      " Tensor[] masks, Tensor object_index, Tensor first_y, Tensor weights_y, Tensor first_x,"
      " Tensor weights_x, float? negatives_per_positive)"
      " -> (Tensor loss, Tensor logit_gradient, Tensor cell_windows)");
  // logit_gradient as the three above leave it, in a layout of the device's own.
  m.def(
      "mask_ohem_loss_backward(Tensor logit_gradient, Tensor loss_gradient, Tensor psi,"
      " Tensor phi, Tensor image_index, Tensor windows)"
      " -> (Tensor psi_gradient, Tensor phi_gradient)");
  m.def(
      "assemble_masks(Tensor psi, Tensor phi, Tensor windows, Tensor first_y, Tensor weights_y,"
      " Tensor first_x, Tensor weights_x, float threshold) -> (Tensor clamped_windows, Tensor areas,"
      " Tensor row_maxima, Tensor column_maxima, Tensor run_lengths, Tensor run_offsets)");
  m.def(
      "encode_runs(Tensor run_lengths, Tensor run_offsets)"
      " -> (Tensor characters, Tensor offsets)");
  m.def("mask_targets(Tensor masks, Tensor windows, int stride, int height, int width) -> Tensor");
  m.def(
      "expanded_windows(Tensor boxes, float expand, int[] sizes, Tensor? image_index) -> Tensor");
  m.def("resize_taps(SymInt output, float scale, SymInt grid) -> (Tensor first, Tensor weights)");
  m.def(
      "refine_edges(Tensor column_maxima, Tensor row_maxima, Tensor boxes, Tensor weight,"
      " Tensor bias, float gamma, float min_sigma, float log_cut, float reach,"
      " float empty_threshold) -> Tensor");
}

}  // namespace rdsnet
