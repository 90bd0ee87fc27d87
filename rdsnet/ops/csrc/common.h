// Index arithmetic and per-element math that the CPU and the CUDA kernels share.
//
// Windows are x1, y1, x2, y2, end exclusive; z is the logit of foreground minus background.
#pragma once

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define RDSNET_INLINE static __host__ __device__ __forceinline__
#else
#define RDSNET_INLINE static inline
#endif

namespace rdsnet {

// Bilinear interpolation, or two of them in a row, looks at no more cells than this per axis.
constexpr int kTaps = 3;

struct Window {
  int x1, y1, x2, y2;
};

RDSNET_INLINE int64_t clamp_index(int64_t value, int64_t limit) {
  return value < 0 ? 0 : (value > limit ? limit : value);
}

// The part of a window that lies on the map; an empty or reversed one becomes 0, 0, 0, 0.
RDSNET_INLINE Window clamp_window(const int64_t* corners, int64_t height, int64_t width) {
  Window window;
  window.x1 = int(clamp_index(corners[0], width));
  window.y1 = int(clamp_index(corners[1], height));
  window.x2 = int(clamp_index(corners[2], width));
  window.y2 = int(clamp_index(corners[3], height));
  if (window.x2 <= window.x1 || window.y2 <= window.y1) {
    window.x1 = window.y1 = window.x2 = window.y2 = 0;
  }
  return window;
}

RDSNET_INLINE int64_t window_area(Window window) {
  return int64_t(window.x2 - window.x1) * (window.y2 - window.y1);
}

// The grid cell of tap k: the last cell stands for those beyond it.
RDSNET_INLINE int64_t tap_cell(int64_t first, int k, int64_t cells) {
  return first + k < cells ? first + k : cells - 1;
}

// The object that item `place` of a packed sequence belongs to: the last one that begins at or
// before it. offset (objects + 1) never decreases, and 0 <= place < offset[objects].
RDSNET_INLINE int64_t owner_of(int64_t place, const int64_t* offset, int64_t objects) {
  int64_t low = 0, high = objects;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offset[middle] <= place) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Unsigned integers in the order of the floating point numbers, for radix selection and atomic
// maxima. Key 0 is smaller than that of every number.
template <typename T>
struct Key;

template <>
struct Key<float> {
  using type = uint32_t;
};

template <>
struct Key<double> {
  using type = uint64_t;
};

template <typename T>
RDSNET_INLINE typename Key<T>::type ordered_key(T value) {
  using Bits = typename Key<T>::type;
  union {
    T number;
    Bits bits;
  } pun;
  pun.number = value;
  const Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  return (pun.bits & sign) ? ~pun.bits : (pun.bits | sign);
}

template <typename T>
RDSNET_INLINE T key_to_number(typename Key<T>::type key) {
  using Bits = typename Key<T>::type;
  union {
    T number;
    Bits bits;
  } pun;
  const Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  pun.bits = (key & sign) ? (key ^ sign) : ~key;
  return pun.number;
}

// How many background pixels online hard example mining keeps. mining < 0: all of them.
RDSNET_INLINE int64_t kept_negatives(int64_t positives, int64_t negatives, double mining) {
  if (mining < 0) return negatives;
  const double wanted = double(positives) * mining;
  return wanted < double(negatives) ? int64_t(wanted) : negatives;
}

// Both from e = exp(-|z|), which cannot overflow.
template <typename T>
RDSNET_INLINE T sigmoid_of(T z, T e) {
  return (z >= T(0) ? T(1) : e) / (T(1) + e);
}

template <typename T>
RDSNET_INLINE T sigmoid(T z) {
  return sigmoid_of(z, T(exp(-fabs(z))));
}

// Two-class cross-entropy of a pixel: softplus(-z) on foreground, softplus(z) on background.
template <typename T>
RDSNET_INLINE T pixel_loss(T z, bool foreground) {
  const T wrong = foreground ? -z : z;
  return (wrong > T(0) ? wrong : T(0)) + T(log1p(exp(-fabs(z))));
}

// d pixel_loss / dz.
template <typename T>
RDSNET_INLINE T pixel_gradient(T z, bool foreground) {
  return sigmoid(z) - (foreground ? T(1) : T(0));
}

// What COCO's compressed RLE writes for run i of an object: from the fourth run on, the difference
// to the run of the same colour before it.
RDSNET_INLINE int64_t written_run(const int64_t* runs, int64_t i) {
  return i > 2 ? runs[i] - runs[i - 2] : runs[i];
}

// Takes the next character off a written run; returns whether more follow. Five bits a character,
// lowest first; bit 6 says that more follow; the last one's fifth bit is the sign.
RDSNET_INLINE bool next_character(int64_t* value, char* character) {
  const int bits = int(*value & 0x1f);
  *value >>= 5;
  const bool more = (bits & 0x10) ? *value != -1 : *value != 0;
  *character = char(bits + (more ? 0x20 : 0) + 48);
  return more;
}

}  // namespace rdsnet
