// One step of a component-wise GRU with its readout, and the reverse pass of both, each as
// one call of XLA's CPU backend. Rows are worked on in tiles that stay in the cache, so that
// of all intermediate values only those leave it that "kept" has room for: a row of it is
// empty, h, or h, z, r and c. The forward pass may write h' in the place of h.
//
//   z = sigmoid(u V_z + h W_z + b_z)       r = sigmoid(u V_r + h W_r + b_r)
//   c = tanh(u V_c + (r h) W_c + b_c)      h' = c + z (h - c)       y = h' w
//
// Matrices come in panels of kPanel columns, so that the innermost loops read memory in
// order. "forward" has, for each panel of the gates z, r, c: the rows of W, of V, and b.
// "reverse" has, for each of the gates and each panel: the rows of W transposed.
// Every gate's columns, and the rows of "reverse", are padded with zeros to whole panels.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "parallel.h"
#include "update.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace optdyn {

struct Shape {
  int64_t rows, units, inputs, padded;
  int64_t depth() const { return units + inputs + 1; }
};

// Working memory of one tile: arrays [size, stride], kept by each thread between calls.
template <typename T>
struct Tile {
  int64_t size, stride;
  T *h, *z, *r, *c, *gated, *d, *dz, *dr, *dc, *dh, *product;

  explicit Tile(const Shape& s) : stride(s.padded) {
    size = std::clamp<int64_t>(kTileValues / s.padded / kRows * kRows, kRows, kLargestTile);
    T** arrays[] = {&h, &z, &r, &c, &gated, &d, &dz, &dr, &dc, &dh, &product};
    const int64_t each = size * stride;
    thread_local std::vector<T> memory;
    memory.resize(std::max<size_t>(memory.size(), each * std::size(arrays) + kLanes<T>));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    T* next = reinterpret_cast<T*>((address + 63) & ~uintptr_t{63});
    for (T** array : arrays) *array = std::exchange(next, next + each);
  }
};

// Rows of `units` values in an array of any stride into a tile, and back.
template <typename T>
void load(const T* from, T* to, int64_t rows, const Shape& s, int64_t from_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    copy(from + i * from_stride, to + i * s.padded, s.units);
    std::fill(to + i * s.padded + s.units, to + (i + 1) * s.padded, T(0));
  }
}

template <typename T>
void store(const T* from, T* to, int64_t rows, const Shape& s, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i)
    copy(from + i * s.padded, to + i * to_stride, s.units);
}

// Calls f(offset) for every vector of a tile's first rows.
template <typename T, typename F>
inline void each_vector(int64_t rows, int64_t stride, F f) {
  for (int64_t i = 0; i < rows * stride; i += kLanes<T>) f(i);
}

// The gates of `rows` components into the tile, whose h is loaded.
template <typename T>
void gates(Tile<T>& t, const T* u, const T* forward, int64_t rows, const Shape& s) {
  const int64_t panels = s.padded / kPanel<T>, panel_size = s.depth() * kPanel<T>;
  auto preactivation = [&](const T* state, T* gate, int64_t first_panel) {
    for (int64_t p = 0; p < panels; ++p) {
      const T* panel = forward + (first_panel + p) * panel_size;
      multiply<T>(rows, state, t.stride, s.units, u, s.inputs, s.inputs, panel,
                  panel + (s.depth() - 1) * kPanel<T>, gate + p * kPanel<T>, t.stride);
    }
  };
  preactivation(t.h, t.z, 0);
  preactivation(t.h, t.r, panels);
  each_vector<T>(rows, t.stride, [&](int64_t i) {
    at(t.z, i) = sigmoid<T>(at(t.z, i));
    at(t.r, i) = sigmoid<T>(at(t.r, i));
    at(t.gated, i) = at(t.r, i) * at(t.h, i);
  });
  preactivation(t.gated, t.c, 2 * panels);
  each_vector<T>(rows, t.stride, [&](int64_t i) { at(t.c, i) = tanh_of<T>(at(t.c, i)); });
}

constexpr int64_t kGatesKept = 4;

// h and the gates that a forward pass kept, in rows of [4, units], back into the tile.
template <typename T>
void recall(Tile<T>& t, const T* kept, int64_t rows, const Shape& s) {
  T* const parts[] = {t.h, t.z, t.r, t.c};
  for (int g = 0; g < kGatesKept; ++g)
    load(kept + g * s.units, parts[g], rows, s, kGatesKept * s.units);
  each_vector<T>(rows, t.stride, [&](int64_t i) { at(t.gated, i) = at(t.r, i) * at(t.h, i); });
}

template <typename T, ffi::DataType D>
ffi::Error forward_step(ffi::ThreadPool pool, int64_t threads, ffi::Buffer<D> h, ffi::Buffer<D> u,
                        ffi::Buffer<D> forward, ffi::Buffer<D> w, ffi::ResultBuffer<D> h_next,
                        ffi::ResultBuffer<D> y, ffi::ResultBuffer<D> kept) {
  const Shape s{h.dimensions()[0], h.dimensions()[1], u.dimensions()[1], w.dimensions()[0]};
  const T *hs = h.typed_data(), *us = u.typed_data(), *m = forward.typed_data();
  const T* readout = w.typed_data();
  T *next = h_next->typed_data(), *ys = y->typed_data();
  T* tape = kept->typed_data();
  const int64_t width = kept->dimensions()[1], parts = width / s.units;
  in_blocks(pool, threads, s.rows, [&](int64_t, int64_t begin, int64_t end) {
    Tile<T> t(s);
    for (int64_t first = begin; first < end; first += t.size) {
      const int64_t rows = std::min(t.size, end - first);
      load(hs + first * s.units, t.h, rows, s, s.units);
      gates(t, us + first * s.inputs, m, rows, s);
      for (int64_t i = 0; i < rows; ++i) {
        Vector<T> sum = {};
        for (int64_t j = i * t.stride; j < (i + 1) * t.stride; j += kLanes<T>) {
          at(t.d, j) = at(t.c, j) + at(t.z, j) * (at(t.h, j) - at(t.c, j));
          sum += at(t.d, j) * at(readout, j - i * t.stride);
        }
        ys[first + i] = total<T>(sum);
      }
      store(t.d, next + first * s.units, rows, s, s.units);
      T* const values[] = {t.h, t.z, t.r, t.c};
      for (int64_t g = 0; g < parts; ++g)
        store(values[g], tape + first * width + g * s.units, rows, s, width);
    }
  });
  return ffi::Error::Success();
}

// Where the sums over components of a reverse pass go: one set for each block of rows.
template <typename T>
struct Sums {
  T *forward, *w;
};

// The cotangents of one tile whose gates and incoming cotangent d are in place.
template <typename T>
void reverse_tile(Tile<T>& t, const T* u, const T* dy, const T* forward, const T* reverse,
                  T* du, Sums<T> sums, int64_t rows, const Shape& s) {
  const int64_t panels = s.padded / kPanel<T>, panel_size = s.depth() * kPanel<T>;
  const int64_t square = s.padded * s.padded;
  auto through = [&](const T* cotangent, const T* matrix, T* to, bool add) {
    for (int64_t p = 0; p < panels; ++p)
      multiply<T>(rows, cotangent, t.stride, s.padded, nullptr, 0, 0,
                  matrix + p * s.padded * kPanel<T>, nullptr, to + p * kPanel<T>, t.stride, add);
  };
  for (int64_t j = 0; j < t.stride; j += kLanes<T>) {
    Vector<T> sum = {};
    for (int64_t i = 0, k = j; i < rows; ++i, k += t.stride)
      sum += dy[i] * (at(t.c, k) + at(t.z, k) * (at(t.h, k) - at(t.c, k)));
    at(sums.w, j) += sum;
  }
  each_vector<T>(rows, t.stride, [&](int64_t i) {
    const Vector<T> z = at(t.z, i), c = at(t.c, i), d = at(t.d, i);
    at(t.dc, i) = d * (T(1) - z) * (T(1) - c * c);
    at(t.dz, i) = d * (at(t.h, i) - c) * z * (T(1) - z);
  });
  through(t.dc, reverse + 2 * square, t.product, false);
  each_vector<T>(rows, t.stride, [&](int64_t i) {
    const Vector<T> r = at(t.r, i), product = at(t.product, i);
    at(t.dr, i) = product * at(t.h, i) * r * (T(1) - r);
    at(t.dh, i) = product * r + at(t.d, i) * at(t.z, i);
  });
  through(t.dz, reverse, t.dh, true);
  through(t.dr, reverse + square, t.dh, true);

  const T* cotangents[] = {t.dz, t.dr, t.dc};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < s.inputs; ++k) {
      Vector<T> sum = {};
      for (int64_t p = 0; p < 3 * panels; ++p) {
        const T* row = forward + p * panel_size + (s.units + k) * kPanel<T>;
        const T* d = cotangents[p / panels] + i * t.stride + p % panels * kPanel<T>;
        for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>) sum += at(d, j) * at(row, j);
      }
      du[i * s.inputs + k] = total<T>(sum);
    }
  for (int64_t p = 0; p < 3 * panels; ++p) {
    const T* d = cotangents[p / panels] + p % panels * kPanel<T>;
    T* to = sums.forward + p * panel_size;
    add_outer<T>(rows, p < 2 * panels ? t.h : t.gated, t.stride, s.units, d, t.stride, to);
    add_outer<T>(rows, u, s.inputs, s.inputs, d, t.stride, to + s.units * kPanel<T>);
    for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>) {
      Vector<T> sum = {};
      for (int64_t i = 0; i < rows; ++i) sum += at(d, i * t.stride + j);
      at(to, (s.depth() - 1) * kPanel<T> + j) += sum;
    }
  }
}

template <typename T, ffi::DataType D>
ffi::Error reverse_step(ffi::ThreadPool pool, int64_t threads, ffi::Buffer<D> dh_next,
                        ffi::Buffer<D> dy, ffi::Buffer<D> kept, ffi::Buffer<D> u,
                        ffi::Buffer<D> forward, ffi::Buffer<D> reverse, ffi::Buffer<D> w,
                        ffi::ResultBuffer<D> dh, ffi::ResultBuffer<D> du,
                        ffi::ResultBuffer<D> d_forward, ffi::ResultBuffer<D> dw) {
  const Shape s{dh_next.dimensions()[0], dh_next.dimensions()[1], u.dimensions()[1],
                w.dimensions()[0]};
  const T *us = u.typed_data(), *dys = dy.typed_data(), *tape = kept.typed_data();
  const T *dhs = dh_next.typed_data(), *m = forward.typed_data(), *readout = w.typed_data();
  const bool gates_kept = kept.dimensions()[1] == kGatesKept * s.units;
  const int64_t size = d_forward->element_count(), blocks = block_count(threads, s.rows);
  T *total_forward = d_forward->typed_data(), *total_w = dw->typed_data();
  std::vector<T> partial((blocks - 1) * (size + s.padded));
  auto sums_of = [&](int64_t block) {
    if (block == 0) return Sums<T>{total_forward, total_w};
    T* base = partial.data() + (block - 1) * (size + s.padded);
    return Sums<T>{base, base + size};
  };
  std::fill(total_forward, total_forward + size, T(0));
  std::fill(total_w, total_w + s.padded, T(0));
  in_blocks(pool, threads, s.rows, [&](int64_t block, int64_t begin, int64_t end) {
    Tile<T> t(s);
    for (int64_t first = begin; first < end; first += t.size) {
      const int64_t rows = std::min(t.size, end - first);
      const T* inputs = us + first * s.inputs;
      if (gates_kept) {
        recall(t, tape + first * kGatesKept * s.units, rows, s);
      } else {
        load(tape + first * s.units, t.h, rows, s, s.units);
        gates(t, inputs, m, rows, s);
      }
      load(dhs + first * s.units, t.d, rows, s, s.units);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < t.stride; j += kLanes<T>)
          at(t.d + i * t.stride, j) += dys[first + i] * at(readout, j);
      reverse_tile(t, inputs, dys + first, m, reverse.typed_data(),
                   du->typed_data() + first * s.inputs, sums_of(block), rows, s);
      store(t.dh, dh->typed_data() + first * s.units, rows, s, s.units);
    }
  });
  for (int64_t block = 1; block < blocks; ++block) {
    const Sums<T> sums = sums_of(block);
    for (int64_t i = 0; i < size; ++i) total_forward[i] += sums.forward[i];
    for (int64_t i = 0; i < s.padded; ++i) total_w[i] += sums.w[i];
  }
  return ffi::Error::Success();
}

// One step of a user's optimizer; h' takes the place of h, which has any number of axes.
template <typename S, ffi::DataType Stored, ffi::DataType Factors>
ffi::Error update_step(ffi::ThreadPool pool, int64_t threads, ffi::Buffer<Stored> h,
                       ffi::Buffer<ffi::DataType::F32> u, ffi::Buffer<Factors> state,
                       ffi::Buffer<ffi::DataType::F32> input, ffi::Buffer<ffi::DataType::F32> w,
                       ffi::ResultBuffer<Stored> h_next,
                       ffi::ResultBuffer<ffi::DataType::F32> y) {
  typedef typename S::Value Value;
  const Update<S> a{h.dimensions().back(), u.dimensions()[1], w.dimensions()[0],
                    reinterpret_cast<const typename S::Factor*>(state.untyped_data()),
                    input.typed_data(), w.typed_data()};
  const int64_t rows = u.dimensions()[0];
  const auto* own = reinterpret_cast<const Value*>(h.untyped_data());
  auto* next = reinterpret_cast<Value*>(h_next->untyped_data());
  if (next != own) std::copy_n(own, rows * a.units, next);
  const float* us = u.typed_data();
  float* ys = y->typed_data();
  in_blocks(pool, threads, rows, [&](int64_t, int64_t begin, int64_t end) {
    update_rows(a, next, us, ys, begin, end);
  });
  return ffi::Error::Success();
}

}  // namespace optdyn

#define OPTDYN_UPDATE(suffix, storage, stored, factors)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(update_##suffix,                                          \
                                (optdyn::update_step<storage, stored, factors>),          \
                                ffi::Ffi::Bind()                                          \
                                    .Ctx<ffi::ThreadPool>()                               \
                                    .Attr<int64_t>("threads")                             \
                                    .Arg<ffi::Buffer<stored>>()                           \
                                    .Arg<ffi::Buffer<ffi::DataType::F32>>()               \
                                    .Arg<ffi::Buffer<factors>>()                          \
                                    .Arg<ffi::Buffer<ffi::DataType::F32>>()               \
                                    .Arg<ffi::Buffer<ffi::DataType::F32>>()               \
                                    .Ret<ffi::Buffer<stored>>()                           \
                                    .Ret<ffi::Buffer<ffi::DataType::F32>>())

OPTDYN_UPDATE(float32, optdyn::Float32, ffi::DataType::F32, ffi::DataType::F32);
OPTDYN_UPDATE(bfloat16, optdyn::BFloat16, ffi::DataType::BF16, ffi::DataType::U32);

#define OPTDYN_STEPS(suffix, scalar, type)                                                \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(forward_##suffix, (optdyn::forward_step<scalar, type>),   \
                                ffi::Ffi::Bind()                                          \
                                    .Ctx<ffi::ThreadPool>()                               \
                                    .Attr<int64_t>("threads")                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>());                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(reverse_##suffix, (optdyn::reverse_step<scalar, type>),   \
                                ffi::Ffi::Bind()                                          \
                                    .Ctx<ffi::ThreadPool>()                               \
                                    .Attr<int64_t>("threads")                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Arg<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>()                             \
                                    .Ret<ffi::Buffer<type>>())

OPTDYN_STEPS(float32, float, ffi::DataType::F32);
OPTDYN_STEPS(float64, double, ffi::DataType::F64);
