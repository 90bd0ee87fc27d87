#include "assemble.h"

#include <limits>
#include <memory>

namespace rdsnet {
namespace {

// Storage behind ColumnTaps.
template <typename T>
struct ColumnTable {
  std::vector<int32_t> base, last, offset;
  std::vector<T> weight;
  ColumnTaps<T> view;
};

template <typename T>
int used_taps(const TapsView<T>& taps) {
  for (int64_t o = 0; o < taps.output; ++o) {
    if (taps.weights[o * kTaps + 2] != T(0)) return 3;
  }
  return 2;
}

template <typename T>
ColumnTable<T> make_column_table(const TapsView<T>& taps, int cells) {
  ColumnTable<T> table;
  const int64_t blocks = (taps.output + kPixels - 1) / kPixels, columns = blocks * kPixels;
  const int count = used_taps(taps);
  table.base.resize(blocks);
  table.last.resize(blocks);
  bool all_narrow = true;
  table.offset.resize(count * columns);
  table.weight.resize(count * columns);
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t lowest = cells - 1, highest = 0;
    for (int64_t o = b * kPixels; o < (b + 1) * kPixels; ++o) {
      const int64_t source = std::min(o, taps.output - 1);
      for (int k = 0; k < count; ++k) {
        const int32_t cell = int32_t(tap_cell(taps.first[source], k, cells));
        table.offset[k * columns + o] = cell;
        table.weight[k * columns + o] = taps.weights[source * kTaps + k];
        lowest = std::min(lowest, cell);
        highest = std::max(highest, cell);
      }
    }
    table.base[b] = lowest;
    table.last[b] = highest;
    all_narrow = all_narrow && highest - lowest < kPixels;
    for (int k = 0; k < count; ++k) {
      for (int i = 0; i < kPixels; ++i) table.offset[k * columns + b * kPixels + i] -= lowest;
    }
  }
  table.view = {count,   table.base.data(), all_narrow, table.offset.data(), table.weight.data(),
                columns};
  return table;
}

// What an object needs while the sweep passes it.
template <typename T>
struct Progress {
  Window window;
  int block_begin, block_end;  // of output columns
  int next_row;                // of the output
  size_t length;               // expanded row, whole blocks
  std::vector<T> rows;         // the last kTaps expanded grid rows, row r in slot r % kTaps
  std::vector<T> column_maxima;
  std::vector<uint8_t> bits;
  std::vector<Flip> flips;
  size_t num_flips = 0;

  Progress(Window window, int num_blocks)
      : window(window),
        block_begin(window.x1 / kPixels),
        block_end(block_begin + num_blocks),
        next_row(window.y1),
        length(size_t(num_blocks) * kPixels),
        rows(kTaps * length),
        column_maxima(length, -std::numeric_limits<T>::infinity()),
        bits((num_blocks + 7) / 8 * 8, 0) {}

  void make_room() {
    const size_t wanted = num_flips + length + kSpareFlips;
    if (flips.size() < wanted) flips.resize(std::max(wanted, num_flips + num_flips / 2));
  }
};

// Flips, row by row, become run lengths, column by column.
template <typename T>
std::vector<uint32_t> runs_of(Progress<T>& progress, int64_t height, int64_t width,
                              int64_t* area) {
  // The row below the window is background: it ends the runs that reach the bottom.
  progress.make_room();
  for (size_t b = 0; b < progress.bits.size(); ++b) {
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
  const int padded_dims = psi.padded_dims();
  const std::vector<T> delta = pad_deltas(deltas, objects, psi.dims, padded_dims);
  const ColumnTable<T> columns = make_column_table(taps_x, psi.width);
  const int row_taps = used_taps(taps_y);
  std::vector<uint8_t> needed(psi.height, 0);
  for (int64_t o = 0; o < height; ++o) {
    for (int k = 0; k < row_taps; ++k) needed[tap_cell(taps_y.first[o], k, psi.height)] = 1;
  }

  output->runs.assign(objects, std::vector<uint32_t>());
  std::vector<Item> items;
  std::vector<Window> clamped(objects);
  for (int64_t n = 0; n < objects; ++n) {
    const Window window = clamped[n] = clamp_window(windows + 4 * n, height, width);
    if (window_area(window) == 0) {
      output->areas[n] = 0;
      output->runs[n].assign(1, uint32_t(height * width));
      continue;
    }
    const int block_begin = window.x1 / kPixels, block_end = (window.x2 + kPixels - 1) / kPixels;
    const auto first = columns.base.begin(), last = columns.last.begin();
    const int left = *std::min_element(first + block_begin, first + block_end);
    const int right = *std::max_element(last + block_begin, last + block_end);
    items.push_back({int(n), 0, int(taps_y.first[window.y1]),
                     int(tap_cell(taps_y.first[window.y2 - 1], row_taps - 1, psi.height)) + 1,
                     left / kCells, right / kCells + 1});
  }

  const Kernels<T>& run = kernels<T>();
  std::vector<std::unique_ptr<Progress<T>>> progress(objects);
  const auto shares = share(std::move(items), groups);
  parallel(int64_t(shares.size()), [&](int64_t group) {
    std::vector<T> cells(size_t(psi.blocks()) * kCells + kPixels, T(0));

    const auto visit = [&](const Item& item, int y, const T* row) {
      const int n = item.object;
      const Window window = clamped[n];
      if (!progress[n]) {
        const int blocks = (window.x2 + kPixels - 1) / kPixels - window.x1 / kPixels;
        progress[n].reset(new Progress<T>(window, blocks));
      }
      Progress<T>& p = *progress[n];
      run.correlate_row(row, delta.data() + int64_t(n) * padded_dims, padded_dims,
                        item.block_begin, item.block_end, cells.data());
      run.expand_row(cells.data(), item.block_begin * kCells, columns.view, p.block_begin,
                     p.block_end, p.rows.data() + (y % kTaps) * p.length);
      const int left = p.block_begin * kPixels;
      for (; p.next_row < window.y2; ++p.next_row) {
        const int64_t first = taps_y.first[p.next_row];
        if (tap_cell(first, row_taps - 1, psi.height) > y) break;
        const T* rows[kTaps];
        for (int k = 0; k < kTaps; ++k) {
          rows[k] = p.rows.data() + tap_cell(first, k, psi.height) % kTaps * p.length;
        }
        const T* weights = taps_y.weights + p.next_row * kTaps;
        p.make_room();
        const CombinedRow<T> result = run.combine_rows(
            rows[0], rows[1], row_taps == 3 ? rows[2] : nullptr, weights[0], weights[1],
            weights[2], logit_threshold, window.x1 - left, window.x2 - left, p.next_row,
            p.column_maxima.data(), p.bits.data(), p.flips.data() + p.num_flips);
        p.num_flips += result.flips;
        output->row_maxima[n * height + p.next_row] = result.maximum;
      }
    };

    const auto done = [&](const Item& item) {
      const int n = item.object;
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

    sweep<T>(psi, shares[group], needed.data(), visit, done);
  });
}

template void assemble<float>(const PsiView&, const float*, const int64_t*, int64_t,
                              const TapsView<float>&, const TapsView<float>&, float, int,
                              const Parallel&, MaskOutput<float>*);
template void assemble<double>(const PsiView&, const double*, const int64_t*, int64_t,
                               const TapsView<double>&, const TapsView<double>&, double, int,
                               const Parallel&, MaskOutput<double>*);

void encode_runs(const int64_t* runs, int64_t count, std::vector<char>* text) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t value = written_run(runs, i);
    char character;
    bool more = true;
    while (more) {
      more = next_character(&value, &character);
      text->push_back(character);
    }
  }
}

}  // namespace rdsnet
