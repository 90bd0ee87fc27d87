// Tensors as the CPU kernels take them: checked, converted, as views of raw pointers.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "arguments.h"
#include "cpu/correlate.h"
#include "cpu/taps.h"

namespace rdsnet {

inline void run_parallel(int64_t count, const std::function<void(int64_t)>& task) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

inline Kind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return Kind::kDouble;
    case at::kHalf: return Kind::kHalf;
    case at::kBFloat16: return Kind::kBFloat16;
    default: return Kind::kFloat;
  }
}

inline PsiView view_of(const Tensor& psi, const char* op) {
  check_psi(psi, op);
  return {psi.data_ptr(),   kind_of(psi),     int64_t(psi.element_size()),
          psi.stride(0),    psi.stride(1),    psi.stride(2),
          psi.stride(3),    int(psi.size(0)), int(psi.size(1)),
          int(psi.size(2)), int(psi.size(3))};
}

// As delta_of. A handful of tensor operations costs more than all there is to compute.
inline Tensor delta_on_cpu(const Tensor& phi, const Tensor& psi, at::ScalarType type, const char* op) {
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

inline Tensor checked_index(const Tensor& index, int64_t count, int64_t bound, const char* op,
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

// Taps of one axis, from the cells of the grid to the pixels of the output.
class OwnedTaps {
 public:
  OwnedTaps(const Tensor& first, const Tensor& weights, at::ScalarType type, int64_t cells,
            const char* op, const char* name)
      : first_(contiguous_as(first, at::kLong)), weights_(contiguous_as(weights, type)) {
    check_taps(first_, weights_, op, name);
    for (int64_t o = 0; o < output(); ++o) {
      const int64_t cell = begin()[o];
      if (cell < 0 || cell >= cells) refuse_tap(cell, o, cells, op, name);
    }
  }

  int64_t output() const { return first_.size(0); }
  const int64_t* begin() const { return first_.const_data_ptr<int64_t>(); }

  template <typename T>
  TapsView<T> view() const {
    return {begin(), weights_.const_data_ptr<T>(), output()};
  }

 private:
  Tensor first_, weights_;
};

}  // namespace rdsnet
