// Mask based boundary refinement: the most probable pixel for every box edge.
#pragma once

#include <stdint.h>

namespace rdsnet {

// The kernel and the prior of MBRM (rdsnet/modeling/mbrm.py, where the formulas stand).
struct EdgeModel {
  const float* weight;  // (2 radius + 1), for left and top edges
  float bias;
  int64_t radius;
  float gamma, min_sigma;
  float log_cut;          // the prior is 0 where its logarithm is smaller
  double reach;           // sigmas that certainly hold all of the prior
  float empty_threshold;  // a mask whose profile never rises above it is empty
};

// column_maxima (N, width), row_maxima (N, height), boxes and refined (N, 4).
void refine_edges(const float* column_maxima, const float* row_maxima, const float* boxes,
                  int64_t count, int64_t width, int64_t height, const EdgeModel& model,
                  float* refined);

}  // namespace rdsnet
