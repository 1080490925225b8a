// The learned update as a user runs it: the GRU step and its readout, nothing stored, with the
// state in float32 or in bfloat16. Written in the place of the state, one pass over memory.
//
// With a state in bfloat16 the factors of its products, W and r h among them, are bfloat16 too;
// they come in pairs, of which processors that can multiply two at once. Sums are float32.
//
// Two ways through the same sums. By rows (more than kFewUnits units): a vector holds units of
// one component. By lanes: a vector holds one unit of 16 components, so that none is padding.
// "state" has, for each panel of `width` columns of the gates z, r, c: the rows of W, or pairs
// of them. "input" has the rows of V, and b. `width` is kPanel by rows, kFew by lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace optdyn {

typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t kWide = kLanes<float>, kColumns = kPanel<float>;
constexpr int64_t kFew = 4, kGroups = 4;  // a block by lanes: units, vectors of components
constexpr int64_t kFewUnits = 16, kLaneRows = kGroups * kWide;

inline Vector<float> as_floats(Words words) {
  Vector<float> floats;
  std::memcpy(&floats, &words, sizeof floats);
  return floats;
}

inline Words as_words(Vector<float> floats) {
  Words words;
  std::memcpy(&words, &floats, sizeof words);
  return words;
}

// p / q to two units in the last place, without the divider.
inline Vector<float> quotient(Vector<float> p, Vector<float> q) {
#ifdef __AVX512F__
  const Vector<float> r = (Vector<float>)_mm512_rcp14_ps((__m512)q);
  return p * (r * (2.0f - q * r));
#else
  return p / q;
#endif
}

inline Vector<float> bounded(Vector<float> x, float bound) {
#ifdef __AVX512F__
  const __m512 low = _mm512_max_ps(_mm512_set1_ps(-bound), (__m512)x);
  return (Vector<float>)_mm512_min_ps(_mm512_set1_ps(bound), low);  // NaN stays NaN
#else
  x = x > bound ? Vector<float>{} + bound : x;
  return x < -bound ? Vector<float>{} - bound : x;
#endif
}

// How a state is stored: what of it one product takes (`Factor`), and how it is read and written.
struct Float32 {
  typedef float Value;
  typedef float Factor;
  static constexpr int64_t kPerFactor = 1;

  static Vector<float> widened(const float* from) { return at(from, 0); }
  static void narrow(Vector<float> x, float* to) { at(to, 0) = x; }
  static Vector<float> multiplied(Vector<float> sum, float factor, const float* to) {
    return sum + factor * at(to, 0);
  }
  static Vector<float> tanh(Vector<float> x) {
    const Fraction fraction = tanh_fraction(bounded(x, 7.90531110763549805f));
    return quotient(fraction.p, fraction.q);
  }
};

struct BFloat16 {
  typedef uint16_t Value;
  typedef uint32_t Factor;
  static constexpr int64_t kPerFactor = 2;

  static Vector<float> low(Words pairs) { return as_floats(pairs << 16); }
  static Vector<float> high(Words pairs) { return as_floats(pairs & 0xffff0000u); }

  // Rounded to nearest, ties to even, in the low half of each word; NaN stays NaN.
  static Words rounded(Vector<float> x) {
#ifdef __AVX512BF16__
    return (Words)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    const Words bits = as_words(x);
    const Words nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : nearest;
#endif
  }
  static Vector<float> widened(const uint16_t* from) {
#ifdef __AVX512F__
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    Words words;
    for (int64_t i = 0; i < kWide; ++i) words[i] = uint32_t{from[i]} << 16;
    return as_floats(words);
#endif
  }
  static void narrow(Vector<float> x, uint16_t* to) {
#ifdef __AVX512BF16__
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
#else
    const Words words = rounded(x);
    for (int64_t i = 0; i < kWide; ++i) to[i] = words[i];
#endif
  }
  static Vector<float> multiplied(Vector<float> sum, Words pairs, Words by) {
#ifdef __AVX512BF16__
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)by);
#else
    return sum + low(pairs) * low(by) + high(pairs) * high(by);
#endif
  }
  static Vector<float> multiplied(Vector<float> sum, uint32_t pair, const uint32_t* by) {
    return multiplied(sum, Words{} + pair, *reinterpret_cast<const Words*>(by));
  }
  // Within 1.5e-6, far less than a state in bfloat16 can tell.
  static Vector<float> tanh(Vector<float> x) {
    x = bounded(x, 7.5f);
    const Vector<float> s = x * x;
    Vector<float> p = s * 3.662982029692157e-06f + 0.0022187208804004986f;
    p = s * p + 0.12235892098679658f;
    p = s * p + 0.9999929148793594f;
    Vector<float> q = s * 0.00013610431737248746f + 0.02079787346627564f;
    q = s * q + 0.455668863482018f;
    q = s * q + 1.0f;
    return quotient(x * p, q);
  }
};

template <typename S>
inline Vector<float> sigmoid_of(Vector<float> x) {
  return S::tanh(x * 0.5f) * 0.5f + 0.5f;
}

// What one call works on.
template <typename S>
struct Update {
  int64_t units, inputs, padded;
  const typename S::Factor* state;
  const float *input, *w;

  int64_t factors() const { return units / S::kPerFactor; }
  const typename S::Factor* state_panel(int64_t panel, int64_t width) const {
    return state + panel * factors() * width;
  }
  const float* input_panel(int64_t panel, int64_t width) const {
    return input + panel * (inputs + 1) * width;
  }
};

template <typename Factor>
inline Factor factor_at(const void* rows, int64_t index) {
  Factor factor;
  std::memcpy(&factor, static_cast<const char*>(rows) + index * sizeof(Factor), sizeof factor);
  return factor;
}

// Calls then(i, column, sum) for each vector of a panel of preactivations of M rows.
template <typename S, int M, typename F>
inline void row_block(const Update<S>& a, const typename S::Value* h, int64_t stride,
                      const float* u, int64_t panel, F then) {
  const auto* matrix = a.state_panel(panel, kColumns);
  const float* input = a.input_panel(panel, kColumns);
  for (int64_t v = 0; v < 2; v += kVectors) {
    const int64_t column = v * kWide;
    Vector<float> sum[M][kVectors];
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < kVectors; ++j)
        sum[i][j] = at(input, a.inputs * kColumns + column + j * kWide);
    for (int64_t k = 0; k < a.inputs; ++k)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j)
          sum[i][j] += u[i * a.inputs + k] * at(input, k * kColumns + column + j * kWide);
    for (int64_t k = 0; k < a.factors(); ++k)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const auto factor = factor_at<typename S::Factor>(h + i * stride, k);
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j)
          sum[i][j] = S::multiplied(sum[i][j], factor, matrix + k * kColumns + column + j * kWide);
      }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) then(i, column + j * kWide, sum[i][j]);
  }
}

// Working memory of a tile, of at least `count` numbers, which each thread reuses between calls.
inline float* scratch(int64_t count) {
  thread_local std::vector<float> memory;
  memory.resize(std::max<size_t>(memory.size(), count + kWide));
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
}

// Components whose rows of the state, `stride` apart, have whole vectors.
template <typename S>
void by_rows(const Update<S>& a, typename S::Value* h, int64_t stride, const float* u, float* y,
             int64_t rows, float* z, typename S::Value* gated) {
  const int64_t panels = a.padded / kColumns;
  // Calls then(row, unit, preactivation) for each vector of a gate.
  auto gate = [&](int64_t which, const typename S::Value* from, int64_t from_stride, auto then) {
    for (int64_t p = 0; p < panels; ++p)
      in_row_blocks(rows, [&](auto count, int64_t first) {
        row_block<S, decltype(count)::value>(
            a, from + first * from_stride, from_stride, u + first * a.inputs, which * panels + p,
            [&](int64_t i, int64_t column, Vector<float> sum) {
              then(first + i, p * kColumns + column, sum);
            });
      });
  };
  gate(0, h, stride, [&](int64_t row, int64_t unit, Vector<float> sum) {
    at(z, row * a.padded + unit) = sigmoid_of<S>(sum);
  });
  gate(1, h, stride, [&](int64_t row, int64_t unit, Vector<float> sum) {
    const Vector<float> own = S::widened(h + row * stride + unit);
    S::narrow(sigmoid_of<S>(sum) * own, gated + row * a.padded + unit);
  });
  gate(2, gated, a.padded, [&](int64_t row, int64_t unit, Vector<float> sum) {
    const Vector<float> c = S::tanh(sum);
    const Vector<float> own = S::widened(h + row * stride + unit);
    Vector<float>& next = at(z, row * a.padded + unit);
    next = c + next * (own - c);
    S::narrow(next, h + row * stride + unit);
  });
  for (int64_t i = 0; i < rows; ++i) {
    Vector<float> sum = {};
    for (int64_t j = 0; j < a.padded; j += kWide) sum += at(z, i * a.padded + j) * at(a.w, j);
    y[i] = total<float>(sum);
  }
}

// Between rows of `count` words and lanes: lanes[k][i] = rows[i][k], kLaneRows components apart.
#ifdef __AVX512F__
// The transpose of the 4 by 4 words in each quarter of four vectors.
inline void transpose_quarters(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// 16 components and 4 of their words.
inline void block_to_lanes(const uint32_t* rows, int64_t count, uint32_t* lanes) {
  auto quarter = [&](int64_t i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * count));
  };
  __m512i v[4];
  for (int64_t i = 0; i < 4; ++i) {
    v[i] = _mm512_castsi128_si512(quarter(i));
    v[i] = _mm512_inserti32x4(v[i], quarter(i + 4), 1);
    v[i] = _mm512_inserti32x4(v[i], quarter(i + 8), 2);
    v[i] = _mm512_inserti32x4(v[i], quarter(i + 12), 3);
  }
  transpose_quarters(v);
  for (int64_t k = 0; k < 4; ++k) _mm512_storeu_si512(lanes + k * kLaneRows, v[k]);
}

inline void block_to_rows(const uint32_t* lanes, int64_t count, uint32_t* rows) {
  __m512i v[4];
  for (int64_t k = 0; k < 4; ++k) v[k] = _mm512_loadu_si512(lanes + k * kLaneRows);
  transpose_quarters(v);
  auto put = [&](int64_t i, __m128i words) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + i * count), words);
  };
  for (int64_t i = 0; i < 4; ++i) {
    put(i, _mm512_castsi512_si128(v[i]));
    put(i + 4, _mm512_extracti32x4_epi32(v[i], 1));
    put(i + 8, _mm512_extracti32x4_epi32(v[i], 2));
    put(i + 12, _mm512_extracti32x4_epi32(v[i], 3));
  }
}
constexpr bool kTransposes = true;
#else
inline void block_to_lanes(const uint32_t*, int64_t, uint32_t*) {}
inline void block_to_rows(const uint32_t*, int64_t, uint32_t*) {}
constexpr bool kTransposes = false;
#endif

inline void to_lanes(const uint32_t* rows, int64_t number, int64_t count, uint32_t* lanes) {
  if (kTransposes && number == kLaneRows && count % 4 == 0) {
    for (int64_t i = 0; i < kLaneRows; i += kWide)
      for (int64_t k = 0; k < count; k += 4)
        block_to_lanes(rows + i * count + k, count, lanes + k * kLaneRows + i);
    return;
  }
  for (int64_t i = 0; i < number; ++i)
    for (int64_t k = 0; k < count; ++k) lanes[k * kLaneRows + i] = rows[i * count + k];
}

inline void to_rows(const uint32_t* lanes, int64_t number, int64_t count, uint32_t* rows) {
  if (kTransposes && number == kLaneRows && count % 4 == 0) {
    for (int64_t i = 0; i < kLaneRows; i += kWide)
      for (int64_t k = 0; k < count; k += 4)
        block_to_rows(lanes + k * kLaneRows + i, count, rows + i * count + k);
    return;
  }
  for (int64_t i = 0; i < number; ++i)
    for (int64_t k = 0; k < count; ++k) rows[i * count + k] = lanes[k * kLaneRows + i];
}

// A vector of a unit's words in 16 components as floats, and back: of pairs, one of two units.
inline Vector<float> unit_of(Float32, const uint32_t* lanes, int64_t unit, int64_t i) {
  return at(reinterpret_cast<const float*>(lanes), unit * kLaneRows + i);
}
inline Vector<float> unit_of(BFloat16, const uint32_t* lanes, int64_t unit, int64_t i) {
  const Words pairs = *reinterpret_cast<const Words*>(lanes + unit / 2 * kLaneRows + i);
  return unit % 2 ? BFloat16::high(pairs) : BFloat16::low(pairs);
}
inline void set_units(Float32, uint32_t* lanes, int64_t unit, int64_t i, const Vector<float>* x) {
  for (int64_t j = 0; j < kFew; ++j)
    at(reinterpret_cast<float*>(lanes), (unit + j) * kLaneRows + i) = x[j];
}
inline void set_units(BFloat16, uint32_t* lanes, int64_t unit, int64_t i, const Vector<float>* x) {
  for (int64_t j = 0; j < kFew; j += 2)
    *reinterpret_cast<Words*>(lanes + (unit + j) / 2 * kLaneRows + i) =
        BFloat16::rounded(x[j]) | (BFloat16::rounded(x[j + 1]) << 16);
}

// A gate's preactivations, kFew units at a time: then(unit, i, sums) for 16 components from i.
template <typename S, typename F>
inline void lane_gate(const Update<S>& a, int64_t which, const uint32_t* lanes, const float* u,
                      F then) {
  for (int64_t unit = 0; unit < a.padded; unit += kFew) {
    const int64_t panel = (which * a.padded + unit) / kFew;
    const auto* matrix = a.state_panel(panel, kFew);
    const float* input = a.input_panel(panel, kFew);
    Vector<float> sum[kGroups][kFew];
    for (int64_t g = 0; g < kGroups; ++g)
      for (int64_t j = 0; j < kFew; ++j)
        sum[g][j] = Vector<float>{} + input[a.inputs * kFew + j];
    for (int64_t k = 0; k < a.inputs; ++k)
#pragma GCC unroll 4
      for (int64_t g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int64_t j = 0; j < kFew; ++j)
          sum[g][j] += input[k * kFew + j] * at(u, k * kLaneRows + g * kWide);
    for (int64_t k = 0; k < a.factors(); ++k)
#pragma GCC unroll 4
      for (int64_t g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int64_t j = 0; j < kFew; ++j)
          sum[g][j] = S::multiplied(
              sum[g][j], matrix[k * kFew + j],
              reinterpret_cast<const typename S::Factor*>(lanes) + k * kLaneRows + g * kWide);
#pragma GCC unroll 4
    for (int64_t g = 0; g < kGroups; ++g) then(unit, g * kWide, sum[g]);
  }
}

// Up to kLaneRows components, of at most kFewUnits units.
template <typename S>
void by_lanes(const Update<S>& a, typename S::Value* h, const float* u, float* y, int64_t rows) {
  alignas(64) uint32_t state[kFewUnits * kLaneRows], gated[kFewUnits * kLaneRows];
  alignas(64) float z[kFewUnits * kLaneRows], total[kLaneRows] = {};
  const int64_t words = a.units / S::kPerFactor;
  std::fill(state + words * kLaneRows, std::end(state), 0);  // what units are padded with
  to_lanes(reinterpret_cast<const uint32_t*>(h), rows, words, state);
  const float* inputs = u;
  if (a.inputs > 1 || rows < kLaneRows) {  // a single input has the layout already
    float* own = scratch(a.inputs * kLaneRows);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < a.inputs; ++k) own[k * kLaneRows + i] = u[i * a.inputs + k];
    inputs = own;
  }
  lane_gate<S>(a, 0, state, inputs, [&](int64_t unit, int64_t i, const Vector<float>* sum) {
    for (int64_t j = 0; j < kFew; ++j) at(z, (unit + j) * kLaneRows + i) = sigmoid_of<S>(sum[j]);
  });
  lane_gate<S>(a, 1, state, inputs, [&](int64_t unit, int64_t i, const Vector<float>* sum) {
    Vector<float> product[kFew];
    for (int64_t j = 0; j < kFew; ++j)
      product[j] = sigmoid_of<S>(sum[j]) * unit_of(S{}, state, unit + j, i);
    set_units(S{}, gated, unit, i, product);
  });
  lane_gate<S>(a, 2, gated, inputs, [&](int64_t unit, int64_t i, const Vector<float>* sum) {
    Vector<float> next[kFew];
    for (int64_t j = 0; j < kFew; ++j) {
      const Vector<float> c = S::tanh(sum[j]), own = unit_of(S{}, state, unit + j, i);
      next[j] = c + at(z, (unit + j) * kLaneRows + i) * (own - c);
      at(total, i) += a.w[unit + j] * next[j];
    }
    set_units(S{}, state, unit, i, next);
  });
  to_rows(state, rows, words, reinterpret_cast<uint32_t*>(h));
  copy(total, y, rows);
}

// All components from `begin` to `end`.
template <typename S>
void update_rows(const Update<S>& a, typename S::Value* h, const float* u, float* y,
                 int64_t begin, int64_t end) {
  typedef typename S::Value Value;
  if (a.units <= kFewUnits) {
    for (int64_t i = begin; i < end; i += kLaneRows)
      by_lanes(a, h + i * a.units, u + i * a.inputs, y + i, std::min(kLaneRows, end - i));
    return;
  }
  const int64_t tile = std::max(kRows, kTileValues / 2 / a.padded / kRows * kRows);
  float* z = scratch(3 * tile * a.padded);
  auto* gated = reinterpret_cast<Value*>(z + tile * a.padded);
  auto* own = gated + tile * a.padded;
  const bool whole = a.units == a.padded;
  for (int64_t i = begin; i < end; i += tile) {
    const int64_t rows = std::min(tile, end - i);
    Value* state = h + i * a.units;
    if (whole) {
      by_rows(a, state, a.units, u + i * a.inputs, y + i, rows, z, gated);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(state + r * a.units, a.units, own + r * a.padded);
      std::fill(own + r * a.padded + a.units, own + (r + 1) * a.padded, Value(0));
    }
    by_rows(a, own, a.padded, u + i * a.inputs, y + i, rows, z, gated);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(own + r * a.padded, a.units, state + r * a.units);
  }
}

}  // namespace optdyn
