#include "assemble.h"

#include <limits>
#include <memory>

namespace rdsnet {
namespace {

// What lies outside a window has probability 0.
template <typename T>
void fill_outside(T* values, int64_t begin, int64_t end, int64_t length) {
  std::fill(values, values + begin, T(0));
  std::fill(values + end, values + length, T(0));
}

// What an object needs while the sweep passes it.
template <typename T>
struct Progress {
  Window window;
  int block_begin, block_end;  // of output columns
  int next_row;                // of the output
  size_t length;               // expanded row, whole blocks
  size_t word_bytes;           // a row of bits, whole words
  std::vector<T> rows;         // the last expanded grid rows, row r in slot r % slots
  std::vector<T> column_maxima;
  std::vector<uint8_t> bits;
  std::unique_ptr<Flip[]> flips;
  size_t num_flips = 0, room = 0;

  Progress(Window window, int slots)
      : window(window),
        block_begin(window.x1 / kPixels),
        block_end((window.x2 + kPixels - 1) / kPixels),
        next_row(window.y1),
        length(size_t(block_end - block_begin) * kPixels),
        word_bytes((length + 63) / 64 * 8),
        rows(slots * length),
        column_maxima(length, -std::numeric_limits<T>::infinity()),
        bits((kMaxRows + 1) * word_bytes, 0) {}

  // For the flips of `rows` rows.
  void make_room(int rows) {
    const size_t wanted = num_flips + rows * length + kSpareFlips;
    if (wanted <= room) return;
    room = std::max(wanted, 2 * num_flips);
    std::unique_ptr<Flip[]> larger(new Flip[room]);  // not a vector, which would fill it first
    std::copy_n(flips.get(), num_flips, larger.get());
    flips = std::move(larger);
  }
};

// Flips, row by row, become run lengths, column by column.
template <typename T>
std::vector<uint32_t> runs_of(Progress<T>& progress, int64_t height, int64_t width,
                              int64_t* area) {
  // The row below the window is background: it ends the runs that reach the bottom.
  progress.make_room(1);
  for (size_t b = 0; b < progress.word_bytes; ++b) {
    for (unsigned bits = progress.bits[b]; bits; bits &= bits - 1) {
      const int x = int(b) * kPixels + __builtin_ctz(bits);
      progress.flips[progress.num_flips++] = {x, progress.window.y2};
    }
  }
  std::vector<uint32_t> place(progress.length + 1, 0);
  for (size_t i = 0; i < progress.num_flips; ++i) ++place[progress.flips[i].x + 1];
  for (size_t x = 1; x < place.size(); ++x) place[x] += place[x - 1];
  std::vector<uint32_t> edges(progress.num_flips);
  const int64_t left = int64_t(progress.block_begin) * kPixels;
  for (size_t i = 0; i < progress.num_flips; ++i) {
    const Flip flip = progress.flips[i];
    edges[place[flip.x]++] = uint32_t((left + flip.x) * height + flip.y);
  }
  std::vector<uint32_t> runs;
  runs.reserve(edges.size() + 1);
  const uint32_t total = uint32_t(height * width);
  uint32_t last = 0;
  *area = 0;
  for (size_t i = 0; i < edges.size(); ++i) {
    // The end of a run at the bottom is the beginning of one at the top of the next column.
    if (i + 1 < edges.size() && edges[i] == edges[i + 1]) {
      ++i;
      continue;
    }
    if (edges[i] == total) break;
    if (runs.size() % 2) *area += edges[i] - last;
    runs.push_back(edges[i] - last);
    last = edges[i];
  }
  if (runs.size() % 2) *area += total - last;
  runs.push_back(total - last);
  return runs;
}

}  // namespace

template <typename T>
void assemble(const PsiView& psi, const T* deltas, const int64_t* windows, int64_t objects,
              const TapsView<T>& taps_y, const TapsView<T>& taps_x, T logit_threshold,
              int groups, const Parallel& parallel, MaskOutput<T>* output) {
  const int64_t height = taps_y.output, width = taps_x.output;
  const std::vector<T> delta = pad_deltas(deltas, objects, psi.dims, psi.padded_dims());
  const ColumnTable<T> columns(taps_x, psi.width);
  const int row_taps = used_taps(taps_y);
  const auto last_cell = [&](int64_t first) {
    return int(tap_cell(first, row_taps - 1, psi.height));
  };
  std::vector<uint8_t> needed(psi.height, 0);
  for (int64_t o = 0; o < height; ++o) {
    for (int k = 0; k < row_taps; ++k) needed[tap_cell(taps_y.first[o], k, psi.height)] = 1;
  }
  // Rows of the output that look at the grid in its order are done as soon as the last row that
  // they look at has come; others when all have.
  const bool in_order = std::is_sorted(taps_y.first, taps_y.first + height);
  const int slots = in_order ? kTaps : psi.height;

  output->runs.assign(objects, std::vector<uint32_t>());
  std::vector<Item> items;
  std::vector<Window> clamped(objects);
  for (int64_t n = 0; n < objects; ++n) {
    const Window window = clamped[n] = clamp_window(windows + 4 * n, height, width);
    fill_outside(output->row_maxima + n * height, window.y1, window.y2, height);
    fill_outside(output->column_maxima + n * width, window.x1, window.x2, width);
    if (window_area(window) == 0) {
      output->areas[n] = 0;
      output->runs[n].assign(1, uint32_t(height * width));
      continue;
    }
    const int block_begin = window.x1 / kPixels, block_end = (window.x2 + kPixels - 1) / kPixels;
    const auto first = columns.base.begin(), last = columns.last.begin();
    const int left = *std::min_element(first + block_begin, first + block_end);
    const int right = *std::max_element(last + block_begin, last + block_end);
    const auto rows =
        std::minmax_element(taps_y.first + window.y1, taps_y.first + window.y2);
    items.push_back({int(n), 0, int(*rows.first), last_cell(*rows.second) + 1, left / kCells,
                     right / kCells + 1});
  }

  const Kernels<T>& run = kernels<T>();
  std::vector<std::unique_ptr<Progress<T>>> progress(objects);
  const auto shares = share(std::move(items), groups);

  // The next rows of an object, as far as they look at nothing beyond row `reached` of the grid.
  const auto combine = [&](int n, int reached) {
    Progress<T>& p = *progress[n];
    const int left = p.block_begin * kPixels;
    while (p.next_row < p.window.y2) {
      const int64_t first = taps_y.first[p.next_row];
      if (last_cell(first) > reached) break;
      OutputRows<T> rows;
      for (int k = 0; k < kTaps; ++k) {
        const int64_t cell = tap_cell(first, k, psi.height);
        rows.grid[k] = k < row_taps ? p.rows.data() + cell % slots * p.length : nullptr;
      }
      rows.weights = taps_y.weights + p.next_row * kTaps;
      rows.first = p.next_row;
      rows.count = 1;
      while (rows.count < kMaxRows && rows.first + rows.count < p.window.y2 &&
             taps_y.first[rows.first + rows.count] == first) {
        ++rows.count;
      }
      rows.skip = p.window.x1 - left;
      rows.end = p.window.x2 - left;
      rows.column_maxima = p.column_maxima.data();
      rows.row_maxima = output->row_maxima + n * height;
      rows.bits = p.bits.data();
      p.make_room(rows.count);
      rows.flips = p.flips.get() + p.num_flips;
      p.num_flips += run.combine_rows(rows, logit_threshold);
      p.next_row += rows.count;
    }
  };

  const auto visit = [&](const Item& item, int y, const T* logits) {
    const int n = item.object;
    if (!progress[n]) progress[n].reset(new Progress<T>(clamped[n], slots));
    Progress<T>& p = *progress[n];
    run.expand_row(logits, item.block_begin * kCells, columns.view, p.block_begin, p.block_end,
                   p.rows.data() + y % slots * p.length);
    if (in_order) combine(n, y);
  };

  const auto done = [&](const Item& item) {
    const int n = item.object;
    if (!in_order) combine(n, psi.height - 1);
    Progress<T>& p = *progress[n];
    const Window window = p.window;
    run.sigmoid_row(output->row_maxima + n * height + window.y1, window.y2 - window.y1);
    T* maxima = output->column_maxima + n * width + window.x1;
    std::copy_n(p.column_maxima.data() + (window.x1 - p.block_begin * kPixels),
                window.x2 - window.x1, maxima);
    run.sigmoid_row(maxima, window.x2 - window.x1);
    output->runs[n] = runs_of(p, height, width, output->areas + n);
    progress[n].reset();
  };

  parallel(int64_t(shares.size()), [&](int64_t group) {
    sweep_logits<T>(psi, delta.data(), shares[group], needed.data(), visit, done);
  });
}

template void assemble<float>(const PsiView&, const float*, const int64_t*, int64_t,
                              const TapsView<float>&, const TapsView<float>&, float, int,
                              const Parallel&, MaskOutput<float>*);
template void assemble<double>(const PsiView&, const double*, const int64_t*, int64_t,
                               const TapsView<double>&, const TapsView<double>&, double, int,
                               const Parallel&, MaskOutput<double>*);

char* encode_runs(const int64_t* runs, int64_t count, char* text) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = written_run(runs, i);
    bool more = true;
    while (more) more = next_character(&value, text++);
  }
  return text;
}

}  // namespace rdsnet
