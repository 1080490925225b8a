// Vectors of 64 bytes, the functions of one, and the products of small matrices.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

namespace optdyn {

#ifdef __AVX512F__
constexpr int64_t kRows = 12, kVectors = 2;  // 24 of 32 registers hold sums
#else
constexpr int64_t kRows = 6, kVectors = 1;  // a vector is two registers, of 16
#endif
constexpr int64_t kTileValues = 3072;
constexpr int64_t kLargestTile = 96;

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(64), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(64), aligned(8), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int64_t kLanes = 64 / sizeof(T);
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;

template <typename T>
inline Vector<T>& at(T* array, int64_t offset) {
  return *reinterpret_cast<Vector<T>*>(array + offset);
}
template <typename T>
inline const Vector<T>& at(const T* array, int64_t offset) {
  return *reinterpret_cast<const Vector<T>*>(array + offset);
}

// In halves: a chain of additions would wait for each of them.
template <typename T>
inline T total(Vector<T> v) {
#pragma GCC unroll 4
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int64_t i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// `count` values, for few of which a call of the library's function would take longer.
template <typename T>
inline void copy(const T* from, T* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) at(to, i) = at(from, i);
  for (; i < count; ++i) to[i] = from[i];
}

template <typename T>
inline Vector<T> tanh_of(Vector<T> x);

template <>
inline Vector<double> tanh_of<double>(Vector<double> x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

struct Fraction {
  Vector<float> p, q;
};

// tanh of |x| up to 7.90531110763549805 as p / q, within a few units in the last place.
inline Fraction tanh_fraction(Vector<float> x) {
  const Vector<float> s = x * x;
  Vector<float> p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = s * p + -8.60467152213735e-11f;
  p = s * p + 5.12229709037114e-08f;
  p = s * p + 1.48572235717979e-05f;
  p = s * p + 6.37261928875436e-04f;
  p = s * p + 4.89352455891786e-03f;
  Vector<float> q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = s * q + 2.26843463243900e-03f;
  q = s * q + 4.89352518554385e-03f;
  return {x * p, q};
}

template <>
inline Vector<float> tanh_of<float>(Vector<float> x) {
  // NaN stays NaN.
  const Vector<float> bound = Vector<float>{} + 7.90531110763549805f;
  x = x > bound ? bound : x;
  x = x < -bound ? -bound : x;
  const Fraction tanh = tanh_fraction(x);
  return tanh.p / tanh.q;
}

template <typename T>
inline Vector<T> sigmoid(Vector<T> x) {
  return tanh_of<T>(x * T(0.5)) * T(0.5) + T(0.5);
}

// M rows of `to` = start + A B + A2 B2, on V vectors of a panel; B2 follows B in `panel`.
template <typename T, int M, int V>
inline void multiply_block(const T* A, int64_t lda, int64_t depth, const T* A2, int64_t lda2,
                           int64_t depth2, const T* panel, const T* start, T* to, int64_t ldt,
                           bool add) {
  Vector<T> sum[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) {
      if (add) {
        sum[i][v] = at(to, i * ldt + v * kLanes<T>);
      } else if (start != nullptr) {
        sum[i][v] = at(start, v * kLanes<T>);
      } else {
        sum[i][v] = Vector<T>{};
      }
    }
  auto accumulate = [&](const T* rows, int64_t stride, int64_t count, const T* b) {
    for (int64_t k = 0; k < count; ++k, b += kPanel<T>)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[i][v] += rows[i * stride + k] * at(b, v * kLanes<T>);
  };
  accumulate(A, lda, depth, panel);
  accumulate(A2, lda2, depth2, panel + depth * kPanel<T>);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) at(to, i * ldt + v * kLanes<T>) = sum[i][v];
}

// Calls f.template operator()<M>(first) for blocks of kRows, 4 and 1 rows that make up `rows`.
template <typename F>
inline void in_row_blocks(int64_t rows, F f) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) f(std::integral_constant<int, kRows>{}, i);
  for (; i + 4 <= rows; i += 4) f(std::integral_constant<int, 4>{}, i);
  for (; i < rows; ++i) f(std::integral_constant<int, 1>{}, i);
}

// One panel of `to` [rows, ldt] = start (or itself) + A [rows, depth] B + A2 [rows, depth2] B2.
template <typename T>
inline void multiply(int64_t rows, const T* A, int64_t lda, int64_t depth, const T* A2,
                     int64_t lda2, int64_t depth2, const T* panel, const T* start, T* to,
                     int64_t ldt, bool add = false) {
  in_row_blocks(rows, [&](auto count, int64_t i) {
    for (int64_t v = 0; v < 2; v += kVectors) {
      const int64_t column = v * kLanes<T>;
      multiply_block<T, decltype(count)::value, kVectors>(
          A + i * lda, lda, depth, A2 + i * lda2, lda2, depth2, panel + column,
          start == nullptr ? nullptr : start + column, to + i * ldt + column, ldt, add);
    }
  });
}

// One panel: to [depth, kPanel] += the sum over rows of A [rows, depth] (outer) D [rows, kPanel].
template <typename T>
inline void add_outer(int64_t rows, const T* A, int64_t lda, int64_t depth, const T* D,
                      int64_t ldd, T* to) {
  in_row_blocks(depth, [&](auto count, int64_t k) {
    constexpr int M = decltype(count)::value;
    for (int64_t v = 0; v < 2; v += kVectors) {
      T* block = to + k * kPanel<T> + v * kLanes<T>;
      Vector<T> sum[M][kVectors];
      for (int i = 0; i < M; ++i)
        for (int j = 0; j < kVectors; ++j) sum[i][j] = at(block, i * kPanel<T> + j * kLanes<T>);
      for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
          for (int j = 0; j < kVectors; ++j)
            sum[i][j] += A[row * lda + k + i] * at(D, row * ldd + (v + j) * kLanes<T>);
      for (int i = 0; i < M; ++i)
        for (int j = 0; j < kVectors; ++j) at(block, i * kPanel<T> + j * kLanes<T>) = sum[i][j];
    }
  });
}

}  // namespace optdyn
