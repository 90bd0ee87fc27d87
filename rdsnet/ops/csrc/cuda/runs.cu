// From bits to COCO's RLE: run lengths column by column, and their compressed text.
#include "block.h"
#include "operators.h"

namespace rdsnet {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Calls visit(position) wherever the mask changes in a column of a window; positions count the
// pixels of the image column by column. A run that reaches the bottom of the image goes on at the
// top of the next column.
template <typename Visit>
__device__ void for_each_change(const uint32_t* words, const Window& window, int column,
                                int64_t height, int64_t width, const Visit& visit) {
  const int rows = window.y2 - window.y1, count = (rows + 31) / 32;
  const uint32_t* const own = words + int64_t(column) * count;
  const int last_bit = (rows - 1) % 32;
  const bool whole = window.y1 == 0 && window.y2 == height;
  const int64_t top = int64_t(window.x1 + column) * height + window.y1;
  uint32_t before = whole && column > 0 ? own[-1] >> last_bit & 1u : 0u;
  for (int k = 0; k < count; ++k) {
    const uint32_t bits = own[k];
    uint32_t changes = bits ^ (bits << 1 | before);
    if (k == count - 1) changes &= 0xffffffffu >> (31 - last_bit);
    before = bits >> 31;
    for (; changes != 0; changes &= changes - 1) visit(top + 32 * k + __ffs(int(changes)) - 1);
  }
  const bool ends_here = !(whole && window.x1 + column + 1 < window.x2);
  if (ends_here && (own[count - 1] >> last_bit & 1u) && top + rows < height * width) {
    visit(top + rows);
  }
}

// A block per object; run_offsets[n + 1] is the number of its runs for now.
__global__ void __launch_bounds__(kThreads) count_changes(const uint32_t* words, Plan plan, int64_t height, int64_t width,
                              int64_t* column_runs, int64_t* run_offsets) {
  for (int64_t n = blockIdx.x; n < plan.objects; n += gridDim.x) {
    const Window window = plan.window[n];
    const int columns = window.x2 - window.x1;
    int64_t running = 0;
    for (int begin = 0; begin < columns; begin += kThreads) {
      const int column = begin + int(threadIdx.x);
      int64_t changes = 0;
      if (column < columns) {
        for_each_change(words + plan.word[n], window, column, height, width,
                        [&](int64_t) { ++changes; });
      }
      int64_t total;
      const int64_t place = running + block_scan<kThreads>(changes, &total);
      if (column < columns) column_runs[plan.column[n] + column] = place;
      running += total;
    }
    if (threadIdx.x == 0) run_offsets[n + 1] = running + 1;
  }
}

__global__ void __launch_bounds__(kThreads) write_lengths(const uint32_t* words, Plan plan, int64_t height, int64_t width,
                              const int64_t* column_runs, const int64_t* run_offsets,
                              int64_t* edges, int64_t* run_lengths) {
  for (int64_t n = blockIdx.x; n < plan.objects; n += gridDim.x) {
    const Window window = plan.window[n];
    int64_t* const own = edges + run_offsets[n];
    for (int column = int(threadIdx.x); column < window.x2 - window.x1; column += kThreads) {
      int64_t place = column_runs[plan.column[n] + column];
      for_each_change(words + plan.word[n], window, column, height, width,
                      [&](int64_t position) { own[place++] = position; });
    }
    __syncthreads();
    const int64_t runs = run_offsets[n + 1] - run_offsets[n];
    for (int64_t i = threadIdx.x; i < runs; i += kThreads) {
      const int64_t begin = i > 0 ? own[i - 1] : 0;
      const int64_t end = i < runs - 1 ? own[i] : height * width;
      run_lengths[run_offsets[n] + i] = end - begin;
    }
  }
}

// Bounds of an object's runs that cannot lead outside the array, whatever the offsets say.
__device__ void safe_bounds(const int64_t* offsets, int64_t n, int64_t count, int64_t* begin,
                            int64_t* end) {
  *begin = clamp_index(offsets[n], count);
  *end = clamp_index(offsets[n + 1], count);
  if (*end < *begin) *end = *begin;
}

// A block per object.
__global__ void __launch_bounds__(kThreads) count_text(const int64_t* runs, int64_t count, const int64_t* run_offsets,
                           int64_t objects, int64_t* place, int64_t* text_offsets,
                           Summary* summary) {
  for (int64_t n = blockIdx.x; n < objects; n += gridDim.x) {
    int64_t first, end;
    safe_bounds(run_offsets, n, count, &first, &end);
    if (threadIdx.x == 0) {
      // The offsets go from 0 to the number of runs and never decrease.
      const bool right = run_offsets[n] >= 0 && run_offsets[n] <= run_offsets[n + 1] &&
                         run_offsets[n + 1] <= count && (n > 0 || run_offsets[n] == 0) &&
                         (n < objects - 1 || run_offsets[n + 1] == count);
      if (!right) summary->wrong_image = n;
    }
    int64_t running = 0;
    for (int64_t begin = first; begin < end; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      int64_t characters = 0;
      if (i < end) {
        int64_t value = written_run(runs + first, i - first);
        char character;
        do ++characters;
        while (next_character(&value, &character));
      }
      int64_t total;
      const int64_t before = running + block_scan<kThreads>(characters, &total);
      if (i < end) place[i] = before;
      running += total;
    }
    if (threadIdx.x == 0) text_offsets[n + 1] = running;
  }
}

__global__ void __launch_bounds__(kThreads) write_text(const int64_t* runs, const int64_t* run_offsets, int64_t objects,
                           const int64_t* place, const int64_t* text_offsets, char* text) {
  for (int64_t n = blockIdx.x; n < objects; n += gridDim.x) {
    const int64_t first = run_offsets[n];
    for (int64_t i = first + threadIdx.x; i < run_offsets[n + 1]; i += kThreads) {
      char* out = text + text_offsets[n] + place[i];
      int64_t value = written_run(runs + first, i - first);
      while (next_character(&value, out)) ++out;
    }
  }
}

}  // namespace

void count_runs(const uint32_t* words, const Plan& plan, int64_t height, int64_t width,
                int64_t* column_runs, int64_t* run_offsets, cudaStream_t stream) {
  launch(count_changes, 4 * multiprocessors(), kThreads, stream, words, plan, height, width,
         column_runs, run_offsets);
  offsets_from_counts(run_offsets, plan.objects, &plan.summary->total, stream);
}

void write_runs(const uint32_t* words, const Plan& plan, int64_t height, int64_t width,
                const int64_t* column_runs, const int64_t* run_offsets, int64_t* edges,
                int64_t* run_lengths, cudaStream_t stream) {
  launch(write_lengths, 4 * multiprocessors(), kThreads, stream, words, plan, height, width,
         column_runs, run_offsets, edges, run_lengths);
}

void count_characters(const int64_t* runs, int64_t count, const int64_t* run_offsets,
                      int64_t objects, int64_t* place, int64_t* text_offsets, Summary* summary,
                      cudaStream_t stream) {
  launch(count_text, 4 * multiprocessors(), kThreads, stream, runs, count, run_offsets, objects,
         place, text_offsets, summary);
  offsets_from_counts(text_offsets, objects, &summary->total, stream);
}

void write_characters(const int64_t* runs, const int64_t* run_offsets, int64_t objects,
                      const int64_t* place, const int64_t* text_offsets, char* text,
                      cudaStream_t stream) {
  launch(write_text, 4 * multiprocessors(), kThreads, stream, runs, run_offsets, objects, place,
         text_offsets, text);
}

}  // namespace cuda
}  // namespace rdsnet
