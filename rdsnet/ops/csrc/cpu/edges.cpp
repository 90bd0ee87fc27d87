#include "edges.h"

#include <algorithm>
#include <cmath>

namespace rdsnet {
namespace {

constexpr float kFarthest = float(1 << 30);

struct Profile {
  const float* values;
  int64_t length;
};

// The logit of P(M' | X = pixel). direction -1: right, bottom edges.
float likelihood_logit(const Profile& profile, int64_t pixel, int direction,
                       const EdgeModel& model) {
  const int64_t radius = model.radius;
  float sum = 0.f;
  if (pixel >= radius && pixel + radius < profile.length) {
    const float* const values = profile.values + pixel;
    for (int64_t k = -radius; k <= radius; ++k) {
      sum += model.weight[k + radius] * values[direction * k];
    }
    return model.bias + sum;
  }
  for (int64_t k = -radius; k <= radius; ++k) {
    const int64_t at = pixel + direction * k;
    const float value = at >= 0 && at < profile.length ? profile.values[at] : 0.f;
    sum += model.weight[k + radius] * value;
  }
  return model.bias + sum;
}

// Whether any value is larger than threshold.
bool rises_above(const Profile& profile, float threshold) {
  constexpr int64_t kStretch = 64;  // without a branch per pixel
  for (int64_t begin = 0; begin < profile.length; begin += kStretch) {
    const int64_t end = std::min(begin + kStretch, profile.length);
    int above = 0;
    for (int64_t i = begin; i < end; ++i) above |= profile.values[i] > threshold;
    if (above) return true;
  }
  return false;
}

// Up to rounding what PyTorch computes; at most min(z, 0).
float log_sigmoid(float z) { return std::min(z, 0.f) - std::log1p(std::exp(-std::fabs(z))); }

// The pixel of the largest posterior, or -1 where the prior does not reach the image. Of equal
// ones it is the first when coming from outside the object, as argmax has it.
int64_t most_probable(const Profile& profile, float mu, float sigma, float widest, int direction,
                      const EdgeModel& model) {
  if (!(std::fabs(mu) < kFarthest) || !std::isfinite(sigma)) return -1;
  const int64_t reach = int64_t(std::ceil(model.reach * double(std::min(sigma, widest)))) + 1;
  const int64_t centre = int64_t(std::nearbyint(mu));
  int64_t best_pixel = -1;
  float best = -INFINITY;
  // From the regressed edge outwards: the prior falls, and a likelihood is at most 1, so that a
  // side ends where the prior alone is below the best product.
  for (const int side : {-direction, direction}) {
    for (int64_t step = side == direction ? 1 : 0; step <= reach; ++step) {
      const int64_t pixel = centre + side * step;
      const float distance = (float(pixel) - mu) / sigma;
      const float log_prior = -0.5f * (distance * distance);
      // The centre is within half a pixel, but the next one may be as near or nearer.
      if ((log_prior < model.log_cut || log_prior < best) && step > 1) break;
      if (log_prior < model.log_cut || pixel < 0 || pixel >= profile.length) continue;
      const float logit = likelihood_logit(profile, pixel, direction, model);
      if (log_prior + std::min(logit, 0.f) < best) continue;  // spares most of the logarithms
      const float product = log_prior + log_sigmoid(logit);
      const bool outer = direction * (pixel - best_pixel) < 0;
      if (product > best || (product == best && outer)) {
        best = product;
        best_pixel = pixel;
      }
    }
  }
  return best_pixel;
}

}  // namespace

void refine_edges(const float* column_maxima, const float* row_maxima, const float* boxes,
                  int64_t count, int64_t width, int64_t height, const EdgeModel& model,
                  float* refined) {
  // No box is larger than the image.
  const float widest =
      std::max(model.min_sigma, model.gamma * float(std::max(width, height)));
  for (int64_t n = 0; n < count; ++n) {
    const float* const box = boxes + 4 * n;
    float* const out = refined + 4 * n;
    std::copy(box, box + 4, out);
    const Profile profiles[] = {{column_maxima + n * width, width},
                                {row_maxima + n * height, height}};
    if (!rises_above(profiles[0], model.empty_threshold)) continue;
    for (int axis = 0; axis < 2; ++axis) {
      const float low = box[axis], high = box[axis + 2];
      const float sigma = std::max(model.gamma * (high - low), model.min_sigma);
      const int64_t first = most_probable(profiles[axis], low, sigma, widest, 1, model);
      const int64_t last = most_probable(profiles[axis], high - 1, sigma, widest, -1, model);
      const float begin = first < 0 ? low : float(first), end = last < 0 ? high : float(last + 1);
      // Boxes that were reversed, or would be left without extent, stay.
      if (low < high && begin < end) {
        out[axis] = begin;
        out[axis + 2] = end;
      }
    }
  }
}

}  // namespace rdsnet
