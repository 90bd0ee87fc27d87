#include "mask_loss.h"

#include <limits>

namespace rdsnet {

template <typename T>
void mask_loss(const PsiView& psi, const T* deltas, const Objects& objects, const TargetMap* maps,
               double mining, int groups, const Parallel& parallel, T* loss, T* logit_gradient) {
  std::fill(loss, loss + objects.count, T(0));
  const std::vector<int64_t> offset = block_offsets(objects);
  const int padded_dims = psi.padded_dims();
  const std::vector<T> delta = pad_deltas(deltas, objects.count, psi.dims, padded_dims);
  const Kernels<T>& run = kernels<T>();
  const auto shares = share(window_items(objects), groups);
  parallel(int64_t(shares.size()), [&](int64_t group) {
    TargetReader truth;
    std::vector<typename SignedKey<T>::type> keys;
    const auto visit = [&](const Item& item, int y, const T* row) {
      const int64_t place = offset[item.object] + int64_t(y - item.row_begin) *
                                                      (item.block_end - item.block_begin);
      run.correlate_row(row, delta.data() + int64_t(item.object) * padded_dims, padded_dims,
                        item.block_begin, item.block_end, logit_gradient + place * kCells);
    };
    // An object's logits are complete: they become the gradient.
    const auto finish = [&](const Item& item) {
      const int n = item.object;
      const Window window = objects.window[n];
      const int64_t blocks = offset[n + 1] - offset[n];
      T* const z = logit_gradient + offset[n] * kCells;
      const int64_t positives = truth.read(maps[n], window, item);
      const int64_t negatives = window_area(window) - positives;
      const int64_t wanted = kept_negatives(positives, negatives, mining);
      BlockTargets* const targets = truth.targets.data();
      T threshold = std::numeric_limits<T>::infinity();
      if (wanted == negatives) {
        threshold = -threshold;
      } else if (wanted > 0) {
        if (int64_t(keys.size()) < blocks * kCells) keys.resize(blocks * kCells);
        run.background_keys(z, targets, blocks, keys.data());
        threshold = hardest<T>(keys.data(), targets, blocks, wanted);
      }
      const T scale = T(1) / T(positives + wanted + 1);
      const double sum = run.loss_and_gradient(z, targets, blocks, threshold, scale);
      loss[n] = T(sum * double(scale));
    };
    sweep<T>(psi, shares[group], nullptr, visit, finish);
  });
}

#define RDSNET_INSTANTIATE(T)                                                                  \
  template void mask_loss<T>(const PsiView&, const T*, const Objects&, const TargetMap*,      \
                             double, int, const Parallel&, T*, T*);
RDSNET_INSTANTIATE(float)
RDSNET_INSTANTIATE(double)

}  // namespace rdsnet
