// The mask loss: the hardest background pixels by radix selection, cross-entropy, its gradient.
#include "block.h"
#include "operators.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kRadixBits = 11;
constexpr int kBins = 1 << kRadixBits;

// The ground truth of an object at its packed pixels.
struct Target {
  const uint8_t* map;
  Window window;
  int map_width;

  __device__ bool foreground(int64_t i) const {
    const int width = window.x2 - window.x1;
    const int64_t y = window.y1 + i / width, x = window.x1 + i % width;
    return map[y * map_width + x] != 0;
  }
};

// The ground truth on the grid, and which of the maps is that of an object.
struct GridMaps {
  const uint8_t* maps;
  const int64_t* index;
  int height, width;

  // The index of an object without pixels may be wrong.
  __device__ Target of(int64_t n, const Window& window) const {
    const int64_t map = window_area(window) > 0 ? index[n] : 0;
    return {maps + map * height * width, window, width};
  }
};

struct ImageMaps {
  ObjectMasks truth;

  __device__ Target of(int64_t n, const Window& window) const {
    if (window_area(window) == 0) return {nullptr, window, 0};
    const ImageMasks own = truth.masks[truth.image[n]];
    return {own.data + truth.index[n] * own.height * own.width, window, int(own.width)};
  }
};

struct Selection {
  int64_t equal;         // background pixels exactly at the threshold
  int64_t equal_wanted;  // how many of them are kept: the first ones
};

// The wanted-th largest logit of the background, 11 bits of its key at a time: each pass counts
// the pixels that share the leading bits found so far.
template <typename T>
__device__ T select_threshold(const T* z, const Target& target, int64_t count, int64_t wanted,
                              Selection* selection) {
  using Bits = typename Key<T>::type;
  constexpr int kPerThread = kBins / kThreads;
  __shared__ int bins[kBins];
  __shared__ int chosen_bin;
  __shared__ int64_t chosen_inside, chosen_wanted;
  int undecided = 8 * sizeof(T);  // bits
  Bits prefix = 0;
  while (true) {
    const int bits = min(kRadixBits, undecided), shift = undecided - bits;
    const Bits mask = (Bits(1) << bits) - 1;
    const bool first = undecided == 8 * int(sizeof(T));
    for (int b = int(threadIdx.x); b < kBins; b += kThreads) bins[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      // Adding 0 makes -0 and 0 the same number.
      const Bits key = ordered_key(z[i] + T(0));
      if ((first || key >> undecided == prefix) && !target.foreground(i)) {
        atomicAdd(&bins[int((key >> shift) & mask)], 1);
      }
    }
    __syncthreads();
    // From the highest bin down: thread 0 owns the highest kPerThread bins.
    int own = 0;
    for (int k = 0; k < kPerThread; ++k) {
      own += bins[kBins - 1 - (int(threadIdx.x) * kPerThread + k)];
    }
    int64_t total;
    int64_t above = block_scan<kThreads>(int64_t(own), &total);
    if (above < wanted && above + own >= wanted) {
      for (int k = 0; k < kPerThread; ++k) {
        const int bin = kBins - 1 - (int(threadIdx.x) * kPerThread + k);
        if (above + bins[bin] >= wanted) {
          chosen_bin = bin;
          chosen_inside = bins[bin];
          chosen_wanted = wanted - above;
          break;
        }
        above += bins[bin];
      }
    }
    __syncthreads();
    prefix = first ? Bits(chosen_bin) : (prefix << bits) | Bits(chosen_bin);
    wanted = chosen_wanted;
    undecided = shift;
    *selection = {chosen_inside, chosen_wanted};
    __syncthreads();
    if (undecided == 0) return key_to_number<T>(prefix);
  }
}

// A block per object; z, the packed logits, becomes the gradient.
template <typename T, typename Maps>
__global__ void __launch_bounds__(kThreads) loss_of_objects(Plan plan, Maps maps, double mining, T* z_of_all, T* loss) {
  for (int64_t n = blockIdx.x; n < plan.objects; n += gridDim.x) {
    const Window window = plan.window[n];
    const int64_t count = window_area(window);
    const Target target = maps.of(n, window);
    T* const z = z_of_all + plan.pixel[n];

    int64_t own = 0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) own += target.foreground(i);
    const int64_t positives = block_sum<kThreads>(own), negatives = count - positives;
    const int64_t wanted = kept_negatives(positives, negatives, mining);
    T threshold = wanted == negatives ? -T(INFINITY) : T(INFINITY);
    Selection selection = {0, 0};
    if (wanted > 0 && wanted < negatives) {
      threshold = select_threshold(z, target, count, wanted, &selection);
    }

    const bool ties = selection.equal > selection.equal_wanted;
    const T scale = T(1) / T(positives + wanted + 1);
    double sum = 0;
    int64_t equal_before = 0;
    for (int64_t begin = 0; begin < count; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const bool there = i < count;
      const bool foreground = there && target.foreground(i);
      const T logit = there ? z[i] : T(0);
      // Not `>=`: a NaN is kept, so that it shows in the loss.
      bool kept = foreground || !(logit < threshold);
      if (ties) {
        // Of equally hard pixels the first ones are kept.
        const bool equal = there && !foreground && logit == threshold;
        int equal_here;
        const int rank = block_scan<kThreads>(int(equal), &equal_here);
        if (equal && equal_before + rank >= selection.equal_wanted) kept = false;
        equal_before += equal_here;
      }
      if (there) {
        if (kept) sum += double(pixel_loss(logit, foreground));
        z[i] = kept ? scale * pixel_gradient(logit, foreground) : T(0);
      }
    }
    const double total = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) loss[n] = T(total * double(scale));
  }
}

}  // namespace

template <typename T>
void mask_loss(const Plan& plan, const uint8_t* targets, const int64_t* target, int height,
               int width, double mining, T* logits, T* loss, cudaStream_t stream) {
  launch(loss_of_objects<T, GridMaps>, 4 * multiprocessors(), kThreads, stream, plan,
         GridMaps{targets, target, height, width}, mining, logits, loss);
}

template <typename T>
void mask_loss(const Plan& plan, const ObjectMasks& truth, double mining, T* logits, T* loss,
               cudaStream_t stream) {
  launch(loss_of_objects<T, ImageMaps>, 4 * multiprocessors(), kThreads, stream, plan,
         ImageMaps{truth}, mining, logits, loss);
}

#define RDSNET_INSTANTIATE(T)                                                                     \
  template void mask_loss<T>(const Plan&, const uint8_t*, const int64_t*, int, int, double, T*,   \
                             T*, cudaStream_t);                                                   \
  template void mask_loss<T>(const Plan&, const ObjectMasks&, double, T*, T*, cudaStream_t);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace cuda
}  // namespace rdsnet
