// Windows into tiles: one block clamps them, checks the indices, and adds up what each object needs.
#include "block.h"
#include "operators.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// The lowest place where an index lies outside [0, bound); -1 if there is none. One block.
__device__ int64_t first_wrong(const int64_t* values, int64_t count, int64_t bound) {
  __shared__ unsigned long long lowest;
  const unsigned long long none = ~0ull;
  if (threadIdx.x == 0) lowest = none;
  __syncthreads();
  if (values != nullptr) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      if (values[i] < 0 || values[i] >= bound) {
        atomicMin(&lowest, static_cast<unsigned long long>(i));
        break;
      }
    }
  }
  __syncthreads();
  const int64_t found = lowest == none ? -1 : int64_t(lowest);
  __syncthreads();
  return found;
}

// offset[begin + 1 + thread] for counts of kThreads objects, of which there are `end`.
__device__ void append(int64_t count, int64_t begin, int64_t end, int64_t* running,
                       int64_t* offset) {
  int64_t total;
  const int64_t before = *running + block_scan<kThreads>(count, &total);
  const int64_t n = begin + threadIdx.x;
  if (n < end) offset[n + 1] = before + count;
  *running += total;
}

__global__ void __launch_bounds__(kThreads) make_plan(const int64_t* windows, int64_t height, int64_t width, Checks checks,
                          Plan plan) {
  int64_t pixels = 0, tiles = 0, columns = 0, words = 0;
  for (int64_t begin = 0; begin < plan.objects; begin += kThreads) {
    const int64_t n = begin + threadIdx.x;
    Window window = {0, 0, 0, 0};
    if (n < plan.objects) {
      const auto wrong = [n](const int64_t* index, int64_t bound) {
        return index != nullptr && (index[n] < 0 || index[n] >= bound);
      };
      if (!wrong(checks.image, checks.images) && !wrong(checks.target, checks.targets)) {
        window = clamp_window(windows + 4 * n, height, width);
      }
      plan.window[n] = window;
    }
    const int64_t w = window.x2 - window.x1, h = window.y2 - window.y1;
    const int64_t across = (w + plan.tile_width - 1) / plan.tile_width;
    const int64_t down = (h + plan.tile_height - 1) / plan.tile_height;
    append(w * h, begin, plan.objects, &pixels, plan.pixel);
    append(across * down, begin, plan.objects, &tiles, plan.tile);
    append(w, begin, plan.objects, &columns, plan.column);
    append(w * ((h + 31) / 32), begin, plan.objects, &words, plan.word);
  }
  const int64_t wrong_image = first_wrong(checks.image, plan.objects, checks.images);
  const int64_t wrong_target = first_wrong(checks.target, plan.objects, checks.targets);
  const int64_t wrong_row = first_wrong(checks.rows, checks.height, checks.grid_height);
  const int64_t wrong_column = first_wrong(checks.columns, checks.width, checks.grid_width);
  if (threadIdx.x == 0) {
    plan.pixel[0] = plan.tile[0] = plan.column[0] = plan.word[0] = 0;
    *plan.summary = {pixels, words, wrong_image, wrong_target, wrong_row, wrong_column};
  }
}

__global__ void __launch_bounds__(kThreads) add_up(int64_t* offsets, int64_t objects, int64_t* total) {
  int64_t running = 0;
  for (int64_t begin = 0; begin < objects; begin += kThreads) {
    const int64_t n = begin + threadIdx.x;
    append(n < objects ? offsets[n + 1] : 0, begin, objects, &running, offsets);
  }
  if (threadIdx.x == 0) {
    offsets[0] = 0;
    *total = running;
  }
}

}  // namespace

void plan_windows(const int64_t* windows, int64_t height, int64_t width, const Checks& checks,
                  const Plan& plan, cudaStream_t stream) {
  launch(make_plan, 1, kThreads, stream, windows, height, width, checks, plan);
}

void offsets_from_counts(int64_t* offsets, int64_t objects, int64_t* total, cudaStream_t stream) {
  launch(add_up, 1, kThreads, stream, offsets, objects, total);
}

}  // namespace cuda
}  // namespace rdsnet
