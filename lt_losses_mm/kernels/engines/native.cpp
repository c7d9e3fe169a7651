// Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
//
// One pass over the logits per direction: loss of each row, sums of each
// column, gradient. Plain C++ without headers of PyTorch, so that it
// compiles fast and for any PyTorch; vectorised by the compiler.
//
// Logits are (images, columns, pixels): rows of a matrix have one pixel, and
// vectors run along its columns; maps have many, and vectors run along them.
// The negative side is computed everywhere, and its value at the label left
// out of all sums; the positive side is one value a row.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

namespace {

enum Formula : int64_t { SHIFTED, SEESAW, DROPPED, BCE, FOCAL, SCALED };

struct Problem {
  const void* logits;
  void* gradient;
  const int64_t* labels;
  const float* first;           // columns: shift, log count, probability of
                                // being dropped, focusing
  const float* second;          // columns: weight of negatives, log count
                                // where the column is the label (Seesaw),
                                // scale (Scaled)
  const float* third;           // columns: weight of positives
  const int64_t* seed;          // two words (Dropped)
  const float* quality;         // rows, target at the label in place of 1
  const float* weight;          // rows, for the column sums
  const float* element_weight;  // as the logits, contiguous
  const float* upstream;        // gradient of the losses of rows, or of all;
                                // without it `expected` is that of all
  float* rows;                  // loss of each row
  float* top;                   // softmax: largest shifted logit of each row,
  float* total;                 // sum of exp(shifted - top),
  float* lse;                   // log of the sum of exp(logit) (Seesaw)
  float* own;                   // rows: derivative at the label, before
                                // upstream; of softmax 1 - p
  float* reduced;               // sum of rows times upstream
  double* sums;                 // columns: gradients of negatives,
  double* positive;             // of positives,
  double* counts;               // and the number of the latter
  int64_t images, columns, pixels;
  int64_t stride, gradient_stride;  // between images
  int64_t ignore, spared;           // labels of rows left out, of rows that
                                    // are not weighted or lose no column
  int64_t formula, type, threads;
  int64_t upstream_step;  // 1, or 0 where one value serves all rows
  float p, q, log_eps;    // Seesaw
  float expected;
};

// ------------------------------------------------------------------- numbers
inline float from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

inline uint32_t to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(BFloat16 x) { return from_bits(uint32_t(x.bits) << 16); }

inline float load(Half x) {
  uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  // Scaling by 2^112 moves the exponent's bias and normalises subnormals.
  float f = from_bits(magnitude) * from_bits(0x77800000);
  uint32_t u = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : to_bits(f);
  return from_bits(u | uint32_t(x.bits & 0x8000) << 16);
}

inline void store(float* to, float x) { *to = x; }

inline void store(BFloat16* to, float x) {
  uint32_t u = to_bits(x);
  uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  to->bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

inline void store(Half* to, float x) {
  uint32_t u = to_bits(x), sign = u & 0x80000000;
  u ^= sign;
  // Below 2^-14 an addition shifts the bits to where a subnormal has them.
  uint32_t small = to_bits(from_bits(u) + 0.5f) - 0x3f000000;
  uint32_t normal = (u + 0xc8000fff + ((u >> 13) & 1)) >> 13;
  uint32_t large = u > 0x7f800000 ? 0x7e00 : 0x7c00;
  uint32_t h = u < 0x38800000 ? small : u >= 0x477ff000 ? large : normal;
  to->bits = uint16_t(h | sign >> 16);
}

// e^x to 1 ulp or so; 0 below -87.3, NaN for NaN. x <= 88.
inline float fast_exp(float x) {
  float clamped = x < -87.3f ? -87.3f : x;
  const float magic = 12582912.f;  // 1.5 * 2^23 rounds to integers
  float shifted = clamped * 1.44269504f + magic;
  float n = shifted - magic;
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  y = y * from_bits((to_bits(shifted) + 127) << 23);
  return x < -87.3f ? 0.f : y;
}

// log(1 + e) for e in [0, 1], from u = e / (2 + e): 2 atanh(u), relative error
// below 1e-7 however small e is.
inline float log1p_of(float u) {
  float s = u * u;
  float y = 1.40059769e-1f;
  y = y * s + 1.40009061e-1f;
  y = y * s + 2.00107634e-1f;
  y = y * s + 3.33332092e-1f;
  return 2.f * u * (y * s + 1.f);
}

struct Sigmoid {
  float p;         // of x
  float softplus;  // log(1 + e^x)
  float mirrored;  // log(1 + e^-x)
};

inline Sigmoid sigmoid(float x) {
  float e = fast_exp(x < 0 ? x : -x);
  // One division serves 1 / (1 + e) and e / (2 + e).
  float inverse = 1.f / ((1.f + e) * (2.f + e));
  float far = (2.f + e) * inverse;
  float log1p = log1p_of(e * inverse * (1.f + e));
  float above = x < 0 ? 0.f : x, below = x < 0 ? -x : 0.f;
  return {x < 0 ? e * far : far, above + log1p, below + log1p};
}

struct Negative {
  float loss, slope;
};

template <int F>
inline Negative negative(float z, float first, float second) {
  if (F == BCE) {
    Sigmoid s = sigmoid(z + first);
    return {second * s.softplus, second * s.p};
  }
  Sigmoid s = sigmoid(z);
  float focus = second * fast_exp(-first * s.mirrored);
  return {focus * s.softplus,
          focus * (s.p + first * (1.f - s.p) * s.softplus)};
}

template <int F>
inline Negative positive(float z, float first, float third) {
  // The mirror image of the negative side.
  Negative side = F == BCE ? negative<F>(-z, -first, third)
                           : negative<F>(-z, first, third);
  return {side.loss, -side.slope};
}

// Focal loss with a target q in [0, 1] (Quality Focal Loss).
inline Negative at_quality(float z, float gamma, float weight, float q) {
  Sigmoid s = sigmoid(z);
  float rest = sigmoid(-z).p;
  // p - q without cancellation at 0 and at 1.
  float gap = q < 0.5f ? s.p - q : (1.f - q) - rest;
  float size = fabsf(gap);
  float bce = q * s.mirrored + (1.f - q) * s.softplus;
  float power = powf(size, gamma);
  float sign = gap > 0 ? 1.f : gap < 0 ? -1.f : 0.f;
  return {weight * power * bce,
          weight * (gamma * powf(size, gamma - 1.f) * sign * s.p * rest * bce +
                    power * gap)};
}

// ------------------------------------------------------------------- vectors
// Compilers make better code of loops of a fixed length than of any other.
constexpr int64_t LANES = 32;

template <class F>
inline void each(int64_t size, F f) {
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES)
#pragma omp simd
    for (int64_t l = 0; l < LANES; ++l) f(j + l);
#pragma omp simd
  for (int64_t l = j; l < size; ++l) f(l);
}

template <class F>
inline float sum_of(int64_t size, F f) {
  float lane[LANES] = {};
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES)
#pragma omp simd
    for (int64_t l = 0; l < LANES; ++l) lane[l] += f(j + l);
#pragma omp simd
  for (int64_t l = 0; l < size - j; ++l) lane[l] += f(j + l);
  float sum = 0;
  for (float v : lane) sum += v;
  return sum;
}

// NaN may get lost: who wants the maximum also sums, and finds it there.
template <class F>
inline float largest_of(int64_t size, F f, float start) {
  float lane[LANES];
  std::fill(lane, lane + LANES, start);
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES)
#pragma omp simd
    for (int64_t l = 0; l < LANES; ++l) {
      float v = f(j + l);
      lane[l] = lane[l] > v ? lane[l] : v;
    }
#pragma omp simd
  for (int64_t l = 0; l < size - j; ++l) {
    float v = f(j + l);
    lane[l] = lane[l] > v ? lane[l] : v;
  }
  for (float v : lane) start = start > v ? start : v;
  return start;
}

// ------------------------------------------------------------------ partition
constexpr int64_t ROWS = 64;       // of a block of a matrix
constexpr int64_t TILE = 2048;     // columns of a block of a wide matrix
constexpr int64_t WIDE = 1 << 16;  // columns of which threads share columns
constexpr int64_t PIXELS = 256;    // of a block of a map

inline float upstream_of(const Problem& p, int64_t i) {
  return p.upstream ? p.upstream[i * p.upstream_step] : p.expected;
}

inline bool has_label(const Problem& p, int64_t label) {
  return label != p.ignore && label >= 0 && label < p.columns;
}

// Each thread's own sums, added in a fixed order in the end, so that a run can
// be repeated to the last bit.
struct Sums {
  int64_t size;
  std::vector<std::vector<double>> own;

  Sums(int64_t size, int64_t threads) : size(size), own(threads) {}
  double* mine() {
    std::vector<double>& sums = own[omp_get_thread_num()];
    sums.assign(size, 0.0);
    return sums.data();
  }
  template <class To>
  void add_to(To* to) const {
    for (const std::vector<double>& sums : own)
      if (!sums.empty())
        for (int64_t j = 0; j < size; ++j) to[j] = To(to[j] + sums[j]);
  }
};

// Calls block(row, end, column, end, sums of columns, losses of rows) for a
// matrix, the latter two beginning at 0 where the block does.
template <class Block>
void over_matrix(const Problem& p, Block block) {
  int64_t rows = p.images, columns = p.columns;
  bool wide = columns > WIDE;
  int64_t width = wide ? TILE : columns;
  Sums sums(p.sums && !wide ? columns : 0, p.threads);
  Sums losses(p.rows && wide ? rows : 0, p.threads);
#pragma omp parallel num_threads(p.threads)
  {
    double* own_sums = sums.mine();
    double* own_losses = losses.mine();
    std::vector<float> part(width);
    double loss[ROWS];
    int64_t tiles = (columns + width - 1) / width;
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    // Blocks of one tile follow each other, and stay with one thread if wide.
#pragma omp for schedule(static)
    for (int64_t outer = 0; outer < (wide ? tiles : blocks); ++outer)
      for (int64_t inner = 0; inner < (wide ? blocks : 1); ++inner) {
        int64_t row = (wide ? inner : outer) * ROWS;
        int64_t column = wide ? outer * width : 0;
        int64_t row_end = std::min(row + ROWS, rows);
        int64_t column_end = std::min(column + width, columns);
        if (p.sums) std::fill(part.begin(), part.end(), 0.f);
        std::fill(loss, loss + ROWS, 0.0);
        block(row, row_end, column, column_end, part.data(), loss);
        if (p.sums) {
          double* to = wide ? p.sums : own_sums;
          for (int64_t j = column; j < column_end; ++j)
            to[j] += part[j - column];
        }
        if (p.rows)
          for (int64_t i = row; i < row_end; ++i) {
            if (wide)
              own_losses[i] += loss[i - row];
            else
              p.rows[i] = float(loss[i - row]);
          }
      }
  }
  if (p.sums && !wide) sums.add_to(p.sums);
  if (p.rows && wide) {
    std::fill(p.rows, p.rows + rows, 0.f);
    losses.add_to(p.rows);
  }
}

// Calls block(image, pixel, number of pixels, sums of columns) for maps.
template <class Block>
void over_maps(const Problem& p, Block block) {
  int64_t blocks = (p.pixels + PIXELS - 1) / PIXELS;
  Sums sums(p.sums ? p.columns : 0, p.threads);
#pragma omp parallel num_threads(p.threads)
  {
    double* own = sums.mine();
#pragma omp for schedule(static)
    for (int64_t b = 0; b < p.images * blocks; ++b) {
      int64_t begin = b % blocks * PIXELS;
      block(b / blocks, begin, std::min(PIXELS, p.pixels - begin), own);
    }
  }
  if (p.sums) sums.add_to(p.sums);
}

// Adds what the labels' own columns get, row after row.
void add_positives(const Problem& p) {
  if (!p.sums) return;
  for (int64_t i = 0; i < p.images * p.pixels; ++i) {
    int64_t label = p.labels[i];
    if (!has_label(p, label)) continue;
    double weight = p.weight ? p.weight[i] : 1.;
    if (p.element_weight)
      weight *= p.element_weight[(i / p.pixels * p.columns + label) *
                                     p.pixels +
                                 i % p.pixels];
    // With a weight per element, `own` is weighted already.
    double factor = p.element_weight ? (p.weight ? p.weight[i] : 1.) : weight;
    double size = factor * fabsf(p.own[i]);
    p.positive[label] += p.element_weight && weight * factor < 0 ? -size : size;
    p.counts[label] += weight > 0;
  }
}

template <class Row>
void over_rows(const Problem& p, Row row) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t i = 0; i < p.images; ++i) row(i);
}

// ---------------------------------------------------------------------- draws
// formulas/draw.py says what is computed here, and why so.
inline uint32_t rounds(uint32_t x, uint32_t key) {
  x ^= x >> 15;
  x = x * 0x2c1b3c6d + key;
  x ^= x >> 12;
  return x * 0x297a2d39;
}

inline uint32_t mixed(uint32_t x) {
  x = rounds(x, 0);
  return x ^ x >> 15;
}

// Words of the seed and of the columns; nothing for formulas without a draw.
struct Draw {
  uint32_t low = 0, high = 0;
  std::vector<uint32_t> columns;

  explicit Draw(const Problem& p) {
    if (p.formula != DROPPED) return;
    low = mixed(uint32_t(p.seed[0]));
    high = mixed(low ^ uint32_t(p.seed[1]));
    columns.resize(p.columns);
    for (int64_t j = 0; j < p.columns; ++j) columns[j] = mixed(uint32_t(j));
  }
};

// ------------------------------------------------------------------- softmax
// What a logit becomes in a row of one label.
template <int F>
struct Shift {
  float p, q, log_count, lse, floor;

  inline float operator()(float z, float first, int64_t) const {
    if (F == SHIFTED) return z + first;
    float rarer = first - log_count;
    float higher = z - lse - floor;
    return z + p * (rarer < 0 ? rarer : 0.f) +
           q * (higher > 0 ? higher : 0.f);
  }
};

template <>
struct Shift<SCALED> {
  const float* scale;

  inline float operator()(float z, float first, int64_t j) const {
    return z * scale[j] + first;
  }
};

// Derivative of what the softmax is taken of.
template <int F>
inline float scale_of(const float* second, int64_t j) {
  if constexpr (F == SCALED) return second[j];
  return 1.f;
}

template <>
struct Shift<DROPPED> {
  const uint32_t* columns;
  uint32_t first, second;  // words of the row
  uint32_t label;          // word of its label's column: no other has it
  float least;             // added to draws: 1 where nothing is dropped

  inline float operator()(float z, float probability, int64_t j) const {
    uint32_t bits = rounds(first ^ columns[j], second) >> 8;
    bool dropped = float(int32_t(bits)) * 0x1p-24f + least < probability;
    return dropped & (columns[j] != label) ? -INFINITY : z;
  }
};

// Of row i. Seesaw compares scores with the label's: lse is that of the plain
// logits.
template <int F>
inline Shift<F> shift_of(const Problem& p, const Draw& draw, int64_t i,
                         int64_t label, float z_label, float lse) {
  if constexpr (F == DROPPED) {
    uint32_t first = mixed(draw.low + uint32_t(i));
    return {draw.columns.data(), first, mixed(first ^ draw.high),
            draw.columns[label], p.labels[i] == p.spared ? 1.f : 0.f};
  } else if constexpr (F == SCALED) {
    return {p.second};
  } else {
    if (F == SHIFTED) return {};
    float score = z_label - lse;
    return {p.p, p.q, p.second[label], lse,
            score > p.log_eps ? score : p.log_eps};
  }
}

// ONCE: what x gives is kept from the first use to the second. Captured by
// value, so that no store can be taken for a change of it.
template <bool ONCE = false, class T, class X>
void reduce_row(const T* z, int64_t columns, X x, float* top, float* total) {
  float m = -INFINITY, sum = 0, once[ONCE ? TILE : 1];
  for (int64_t begin = 0; begin < columns; begin += TILE) {
    int64_t size = std::min(TILE, columns - begin);
    const T* tile = z + begin;
    if (ONCE)
      each(size, [&once, x, tile, begin](int64_t j) {
        once[j] = x(load(tile[j]), begin + j);
      });
    auto value = [&](int64_t j) {
      return ONCE ? once[j] : x(load(tile[j]), begin + j);
    };
    float largest = largest_of(size, value, m);
    if (largest > m) {
      sum *= fast_exp(m - largest);
      m = largest;
    }
    // All -inf: nothing to subtract.
    float base = m == -INFINITY ? 0.f : m;
    sum += sum_of(size,
                  [&](int64_t j) { return fast_exp(value(j) - base); });
  }
  *top = m;
  *total = sum;
}

// The same for a row that stays in a cache: its exponentials are kept.
template <bool ONCE, class T, class X>
float keep_row(const T* z, int64_t columns, X x, float* top, float* kept) {
  if (ONCE)
    each(columns, [=](int64_t j) { kept[j] = x(load(z[j]), j); });
  auto value = [=](int64_t j) { return ONCE ? kept[j] : x(load(z[j]), j); };
  *top = largest_of(columns, value, -INFINITY);
  float base = *top == -INFINITY ? 0.f : *top;
  return sum_of(columns, [=](int64_t j) {
    return kept[j] = fast_exp(value(j) - base);
  });
}

template <int F, class T>
void softmax_forward_matrix(const Problem& p) {
  const T* logits = static_cast<const T*>(p.logits);
  const float* first = p.first;
  const Draw draw(p);
  // Where the gradient of fp32 is wanted at once, the exponentials wait in it.
  auto kept_of = [&](int64_t i) {
    return static_cast<float*>(p.gradient) + i * p.gradient_stride;
  };
  auto normalise = [&](int64_t i) {
    const T* z = logits + i * p.stride;
    int64_t label = p.labels[i];
    p.rows[i] = p.top[i] = p.lse[i] = p.own[i] = 0;
    p.total[i] = 1;
    if (!has_label(p, label)) return;
    if (F == SEESAW) {
      reduce_row(
          z, p.columns, [](float v, int64_t) { return v; }, p.top + i,
          p.total + i);
      p.lse[i] = p.top[i] + logf(p.total[i]);
    }
    Shift<F> x = shift_of<F>(p, draw, i, label, load(z[label]), p.lse[i]);
    auto shifted = [x, first](float v, int64_t j) {
      return x(v, first[j], j);
    };
    if (p.gradient)
      p.total[i] =
          keep_row<F == DROPPED>(z, p.columns, shifted, p.top + i, kept_of(i));
    else
      reduce_row<F == DROPPED>(z, p.columns, shifted, p.top + i, p.total + i);
    p.rows[i] = (p.top[i] - x(load(z[label]), first[label], label)) +
                logf(p.total[i]);
    if (p.sums) p.own[i] = -expm1f(-p.rows[i]);
  };
  auto finish = [&](int64_t i) {
    if (!p.gradient) return;
    float* g = kept_of(i);
    int64_t label = p.labels[i];
    float upstream = upstream_of(p, i);
    if (!has_label(p, label) || upstream == 0) {
      memset(g, 0, sizeof(float) * p.columns);
      return;
    }
    float factor = upstream / p.total[i];
    const float* second = p.second;
    each(p.columns, [=](int64_t j) {
      g[j] = factor * g[j] * scale_of<F>(second, j);
    });
    g[label] -= upstream * scale_of<F>(second, label);
  };
  bool wide = p.columns > WIDE;  // never with a gradient
  if (wide || !p.sums)
    over_rows(p, [&](int64_t i) {
      normalise(i);
      finish(i);
    });
  if (!p.sums) return;
  Problem q = p;
  q.rows = nullptr;  // they are known
  over_matrix(q, [&](int64_t row, int64_t row_end, int64_t begin, int64_t end,
                     float* sums, double*) {
    for (int64_t i = row; i < row_end; ++i) {
      if (!wide) normalise(i);
      int64_t label = p.labels[i];
      float weight = p.weight ? p.weight[i] : 1.f;
      if (!has_label(p, label) || weight == 0) {
        finish(i);
        continue;
      }
      const T* z = logits + i * p.stride;
      Shift<F> x = shift_of<F>(p, draw, i, label, load(z[label]), p.lse[i]);
      float top = p.top[i], factor = weight / p.total[i];
      bool inside = begin <= label && label < end;
      float before = inside ? sums[label - begin] : 0;
      if (p.gradient) {
        const float* kept = kept_of(i);
        each(end - begin, [=](int64_t j) { sums[j] += factor * kept[j]; });
      } else {
        each(end - begin, [&](int64_t j) {
          float v = x(load(z[begin + j]), first[begin + j], begin + j);
          sums[j] += factor * fast_exp(v - top);
        });
      }
      if (inside) sums[label - begin] = before;
      finish(i);
    }
  });
}

template <int F, class T>
void softmax_backward_matrix(const Problem& p) {
  const Draw draw(p);
  over_rows(p, [&](int64_t i) {
    const T* z = static_cast<const T*>(p.logits) + i * p.stride;
    T* g = static_cast<T*>(p.gradient) + i * p.gradient_stride;
    int64_t label = p.labels[i];
    float upstream = upstream_of(p, i);
    if (!has_label(p, label) || upstream == 0) {
      memset(static_cast<void*>(g), 0, sizeof(T) * p.columns);
      return;
    }
    float top = p.top[i], factor = upstream / p.total[i];
    Shift<F> x = shift_of<F>(p, draw, i, label, load(z[label]), p.lse[i]);
    float own =
        factor * fast_exp(x(load(z[label]), p.first[label], label) - top);
    const float *first = p.first, *second = p.second;
    each(p.columns, [&](int64_t j) {
      store(g + j, factor * fast_exp(x(load(z[j]), first[j], j) - top) *
                       scale_of<F>(second, j));
    });
    store(g + label, (own - upstream) * scale_of<F>(second, label));
  });
}

// Those of the pixels of a block, as vectors want them. Of pixels without a
// label column 0 stands in.
template <int F, class T>
struct Shifts {
  float p, q, log_count[PIXELS], lse[PIXELS], floor[PIXELS];

  Shifts(const Problem& problem, const Draw& draw, const T* z, int64_t at,
         int64_t size)
      : p(problem.p), q(problem.q) {
    if (F == SHIFTED) return;
    for (int64_t b = 0; b < size; ++b) {
      int64_t label = problem.labels[at + b];
      if (!has_label(problem, label)) label = 0;
      Shift<F> x = shift_of<F>(problem, draw, at + b, label,
                               load(z[label * problem.pixels + b]),
                               problem.lse[at + b]);
      log_count[b] = x.log_count;
      lse[b] = x.lse;
      floor[b] = x.floor;
    }
  }
  // By value, so that no store can be taken for a change of it.
  struct View {
    float p, q;
    const float *log_count, *lse, *floor;

    inline float operator()(float z, float first, int64_t b,
                            int64_t c) const {
      if (F == SHIFTED) return z + first;
      return Shift<F>{p, q, log_count[b], lse[b], floor[b]}(z, first, c);
    }
  };
  View view() const { return {p, q, log_count, lse, floor}; }
};

template <class T>
struct Shifts<SCALED, T> {
  const float* scale;

  Shifts(const Problem& problem, const Draw&, const T*, int64_t, int64_t)
      : scale(problem.second) {}
  struct View {
    const float* scale;

    inline float operator()(float z, float first, int64_t,
                            int64_t c) const {
      return z * scale[c] + first;
    }
  };
  View view() const { return {scale}; }
};

template <class T>
struct Shifts<DROPPED, T> {
  const uint32_t* columns;
  uint32_t first[PIXELS], second[PIXELS], label[PIXELS];
  float least[PIXELS];

  Shifts(const Problem& problem, const Draw& draw, const T*, int64_t at,
         int64_t size)
      : columns(draw.columns.data()) {
    for (int64_t b = 0; b < size; ++b) {
      int64_t own = problem.labels[at + b];
      if (!has_label(problem, own)) own = 0;
      Shift<DROPPED> x = shift_of<DROPPED>(problem, draw, at + b, own, 0, 0);
      first[b] = x.first;
      second[b] = x.second;
      label[b] = x.label;
      least[b] = x.least;
    }
  }
  struct View {
    const uint32_t *columns, *first, *second, *label;
    const float* least;

    inline float operator()(float z, float probability, int64_t b,
                            int64_t c) const {
      return Shift<DROPPED>{columns, first[b], second[b], label[b],
                            least[b]}(z, probability, c);
    }
  };
  View view() const { return {columns, first, second, label, least}; }
};

// Largest value of each pixel, and the sum of the exponentials.
template <class T, class X>
void reduce_maps(const Problem& p, const T* z, int64_t size, X x, float* top,
                 float* total) {
  std::fill(top, top + size, -INFINITY);
  std::fill(total, total + size, 0.f);
  for (int64_t c = 0; c < p.columns; ++c) {
    const T* row = z + c * p.pixels;
    float first = p.first[c];
    each(size, [=](int64_t b) {
      float v = x(load(row[b]), first, b, c);
      top[b] = top[b] > v ? top[b] : v;
    });
  }
  for (int64_t c = 0; c < p.columns; ++c) {
    const T* row = z + c * p.pixels;
    float first = p.first[c];
    each(size, [=](int64_t b) {
      float base = top[b] == -INFINITY ? 0.f : top[b];
      total[b] += fast_exp(x(load(row[b]), first, b, c) - base);
    });
  }
}

template <int F, class T>
void softmax_forward_maps(const Problem& p) {
  const Draw draw(p);
  over_maps(p, [&](int64_t n, int64_t pixel, int64_t size, double* sums) {
    const T* z = static_cast<const T*>(p.logits) + n * p.stride + pixel;
    int64_t at = n * p.pixels + pixel;
    float top[PIXELS], total[PIXELS];
    std::fill(p.lse + at, p.lse + at + size, 0.f);
    if (F == SEESAW) {
      auto plain = [](float v, float, int64_t, int64_t) { return v; };
      reduce_maps(p, z, size, plain, top, total);
      for (int64_t b = 0; b < size; ++b)
        p.lse[at + b] = top[b] + logf(total[b]);
    }
    Shifts<F, T> shifts(p, draw, z, at, size);
    auto x = shifts.view();
    reduce_maps(p, z, size, x, top, total);
    float factor[PIXELS];
    int32_t own[PIXELS];
    for (int64_t b = 0; b < size; ++b) {
      int64_t label = p.labels[at + b];
      bool counts = has_label(p, label);
      own[b] = counts ? int32_t(label) : -1;
      p.top[at + b] = top[b];
      p.total[at + b] = total[b];
      p.rows[at + b] =
          counts ? top[b] -
                       x(load(z[label * p.pixels + b]), p.first[label], b,
                         label) +
                       logf(total[b])
                 : 0.f;
      p.own[at + b] = -expm1f(-p.rows[at + b]);
      float weight = p.weight ? p.weight[at + b] : 1.f;
      factor[b] = counts && weight != 0 ? weight / total[b] : 0.f;
    }
    if (!p.sums) return;
    for (int64_t c = 0; c < p.columns; ++c) {
      const T* row = z + c * p.pixels;
      float first = p.first[c];
      int32_t column = int32_t(c);
      sums[c] += sum_of(size, [&](int64_t b) {
        float share =
            factor[b] * fast_exp(x(load(row[b]), first, b, c) - top[b]);
        return own[b] == column || factor[b] == 0 ? 0.f : share;
      });
    }
  });
}

template <int F, class T>
void softmax_backward_maps(const Problem& p) {
  const Draw draw(p);
  over_maps(p, [&](int64_t n, int64_t pixel, int64_t size, double*) {
    const T* z = static_cast<const T*>(p.logits) + n * p.stride + pixel;
    T* g = static_cast<T*>(p.gradient) + n * p.gradient_stride + pixel;
    int64_t at = n * p.pixels + pixel;
    Shifts<F, T> shifts(p, draw, z, at, size);
    auto x = shifts.view();
    float factor[PIXELS], own[PIXELS];
    for (int64_t b = 0; b < size; ++b) {
      int64_t label = p.labels[at + b];
      bool counts = has_label(p, label) && upstream_of(p, at + b) != 0;
      factor[b] = counts ? upstream_of(p, at + b) / p.total[at + b] : 0.f;
      if (counts)
        own[b] = factor[b] * fast_exp(x(load(z[label * p.pixels + b]),
                                        p.first[label], b, label) -
                                      p.top[at + b]);
    }
    const float* top = p.top + at;
    for (int64_t c = 0; c < p.columns; ++c) {
      const T* row = z + c * p.pixels;
      T* to = g + c * p.pixels;
      float first = p.first[c], scale = scale_of<F>(p.second, c);
      each(size, [&](int64_t b) {
        float share =
            factor[b] * fast_exp(x(load(row[b]), first, b, c) - top[b]);
        store(to + b, factor[b] == 0 ? 0.f : share * scale);
      });
    }
    for (int64_t b = 0; b < size; ++b)
      if (factor[b] != 0) {
        int64_t label = p.labels[at + b];
        store(g + label * p.pixels + b,
              (own[b] - upstream_of(p, at + b)) * scale_of<F>(p.second, label));
      }
  });
}

// ------------------------------------------------------------------- sigmoids
// Parameters of the columns, and those of rows that are spared.
struct Columns {
  const float *first, *second;
};

struct Parameters {
  std::vector<float> zeros, ones;
  Columns usual, spared;

  explicit Parameters(const Problem& p) : usual{p.first, p.second} {
    if (p.spared < 0) return;
    zeros.assign(p.columns, 0.f);
    ones.assign(p.columns, 1.f);
    spared = {zeros.data(), ones.data()};
  }
  const Columns& of(const Problem& p, int64_t label) const {
    return p.spared >= 0 && label == p.spared ? spared : usual;
  }
};

// Adds the positive side to the losses of rows.
template <int F, class T>
void add_own(const Problem& p) {
  int64_t rows = p.images * p.pixels;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    int64_t label = p.labels[i];
    p.own[i] = 0;
    if (!has_label(p, label)) continue;
    int64_t image = i / p.pixels, pixel = i % p.pixels;
    int64_t at = label * p.pixels + pixel;
    float z = load(static_cast<const T*>(p.logits)[image * p.stride + at]);
    float first = p.first[label], third = p.third[label];
    Negative side = F == FOCAL && p.quality
                        ? at_quality(z, first, third, p.quality[i])
                        : positive<F>(z, first, third);
    float factor =
        p.element_weight
            ? p.element_weight[image * p.columns * p.pixels + at]
            : 1.f;
    p.rows[i] += factor * side.loss;
    p.own[i] = factor * side.slope;
    if (p.gradient && upstream_of(p, i) != 0)
      static_cast<float*>(p.gradient)[image * p.gradient_stride + at] =
          upstream_of(p, i) * p.own[i];
  }
}

template <int F, class T>
void sigmoid_forward_matrix(const Problem& p) {
  Parameters parameters(p);
  over_matrix(p, [&](int64_t row, int64_t row_end, int64_t begin, int64_t end,
                     float* sums, double* losses) {
    float loss[TILE], slope[TILE];
    for (int64_t i = row; i < row_end; ++i) {
      int64_t label = p.labels[i];
      float upstream = p.gradient ? upstream_of(p, i) : 0.f;
      float* gradient =
          static_cast<float*>(p.gradient) + i * p.gradient_stride;
      if (p.gradient && (label == p.ignore || upstream == 0))
        memset(gradient + begin, 0, sizeof(float) * (end - begin));
      if (label == p.ignore) continue;
      const Columns& of = parameters.of(p, label);
      float weight = p.weight ? p.weight[i] : 1.f;
      for (int64_t tile = begin; tile < end; tile += TILE) {
        int64_t width = std::min(TILE, end - tile);
        const T* z =
            static_cast<const T*>(p.logits) + i * p.stride + tile;
        const float *first = of.first + tile, *second = of.second + tile;
        const float* factor =
            p.element_weight ? p.element_weight + i * p.columns + tile
                             : nullptr;
        // Only map here: a row's sum and a column's want the label left out.
        if (p.sums || p.gradient) {
          each(width, [&](int64_t j) {
            Negative side = negative<F>(load(z[j]), first[j], second[j]);
            loss[j] = side.loss;
            slope[j] = side.slope;
          });
        } else {
          each(width, [&](int64_t j) {
            loss[j] = negative<F>(load(z[j]), first[j], second[j]).loss;
          });
        }
        if (factor) each(width, [&](int64_t j) { loss[j] *= factor[j]; });
        if (factor && (p.sums || p.gradient))
          each(width, [&](int64_t j) { slope[j] *= factor[j]; });
        if (upstream != 0) {
          float* to = gradient + tile;
          each(width, [&](int64_t j) { to[j] = upstream * slope[j]; });
        }
        if (tile <= label && label < tile + width)
          loss[label - tile] = slope[label - tile] = 0;
        losses[i - row] += sum_of(width, [&](int64_t j) { return loss[j]; });
        if (!p.sums || weight == 0) continue;
        float* to = sums + (tile - begin);
        each(width, [&](int64_t j) { to[j] += weight * slope[j]; });
      }
    }
  });
}

template <int F, class T>
void sigmoid_backward_matrix(const Problem& p) {
  Parameters parameters(p);
  over_rows(p, [&](int64_t i) {
    const T* z = static_cast<const T*>(p.logits) + i * p.stride;
    T* g = static_cast<T*>(p.gradient) + i * p.gradient_stride;
    float upstream = upstream_of(p, i);
    if (p.labels[i] == p.ignore || upstream == 0) {
      memset(static_cast<void*>(g), 0, sizeof(T) * p.columns);
      return;
    }
    const Columns& of = parameters.of(p, p.labels[i]);
    const float *first = of.first, *second = of.second;
    if (p.element_weight) {
      const float* factor = p.element_weight + i * p.columns;
      each(p.columns, [&](int64_t j) {
        Negative side = negative<F>(load(z[j]), first[j], second[j]);
        store(g + j, upstream * factor[j] * side.slope);
      });
    } else {
      each(p.columns, [&](int64_t j) {
        Negative side = negative<F>(load(z[j]), first[j], second[j]);
        store(g + j, upstream * side.slope);
      });
    }
    if (has_label(p, p.labels[i])) store(g + p.labels[i], upstream * p.own[i]);
  });
}

template <int F, class T>
void sigmoid_forward_maps(const Problem& p) {
  over_maps(p, [&](int64_t n, int64_t pixel, int64_t size, double* sums) {
    const T* z = static_cast<const T*>(p.logits) + n * p.stride + pixel;
    int64_t at = n * p.pixels + pixel;
    float losses[PIXELS] = {}, weight[PIXELS];
    int32_t own[PIXELS], spared[PIXELS];
    for (int64_t b = 0; b < size; ++b) {
      int64_t label = p.labels[at + b];
      spared[b] = p.spared >= 0 && label == p.spared;
      own[b] = int32_t(has_label(p, label) ? label : -1);
      weight[b] = label == p.ignore ? 0 : p.weight ? p.weight[at + b] : 1.f;
    }
    for (int64_t c = 0; c < p.columns; ++c) {
      const T* row = z + c * p.pixels;
      const float* factor =
          p.element_weight ? p.element_weight +
                                 (n * p.columns + c) * p.pixels + pixel
                           : nullptr;
      float first = p.first[c], second = p.second[c];
      // As for a matrix: map, leave the label out, reduce.
      float loss[PIXELS], slope[PIXELS];
      each(size, [&](int64_t b) {
        Negative side = negative<F>(load(row[b]), spared[b] ? 0.f : first,
                                    spared[b] ? 1.f : second);
        loss[b] = side.loss;
        slope[b] = side.slope;
      });
      if (factor)
        for (int64_t b = 0; b < size; ++b) {
          loss[b] *= factor[b];
          slope[b] *= factor[b];
        }
      int32_t column = int32_t(c);
      each(size, [&](int64_t b) {
        losses[b] += own[b] == column ? 0.f : loss[b];
      });
      if (p.sums)
        sums[c] += sum_of(size, [&](int64_t b) {
          float share = weight[b] * slope[b];
          return own[b] == column || weight[b] == 0.f ? 0.f : share;
        });
    }
    for (int64_t b = 0; b < size; ++b)
      p.rows[at + b] = p.labels[at + b] == p.ignore ? 0.f : losses[b];
  });
}

template <int F, class T>
void sigmoid_backward_maps(const Problem& p) {
  over_maps(p, [&](int64_t n, int64_t pixel, int64_t size, double*) {
    const T* z = static_cast<const T*>(p.logits) + n * p.stride + pixel;
    T* g = static_cast<T*>(p.gradient) + n * p.gradient_stride + pixel;
    int64_t at = n * p.pixels + pixel;
    float upstream[PIXELS];
    int32_t spared[PIXELS];
    for (int64_t b = 0; b < size; ++b) {
      int64_t label = p.labels[at + b];
      upstream[b] = label == p.ignore ? 0.f : upstream_of(p, at + b);
      spared[b] = p.spared >= 0 && label == p.spared;
    }
    for (int64_t c = 0; c < p.columns; ++c) {
      const T* row = z + c * p.pixels;
      T* to = g + c * p.pixels;
      const float* factor =
          p.element_weight ? p.element_weight +
                                 (n * p.columns + c) * p.pixels + pixel
                           : nullptr;
      float first = p.first[c], second = p.second[c], slope[PIXELS];
      each(size, [&](int64_t b) {
        Negative side = negative<F>(load(row[b]), spared[b] ? 0.f : first,
                                    spared[b] ? 1.f : second);
        slope[b] = upstream[b] * side.slope;
      });
      if (factor)
        for (int64_t b = 0; b < size; ++b) slope[b] *= factor[b];
      each(size, [&](int64_t b) {
        store(to + b, upstream[b] == 0 ? 0.f : slope[b]);
      });
    }
    for (int64_t b = 0; b < size; ++b)
      if (has_label(p, p.labels[at + b]) && upstream[b] != 0)
        store(g + p.labels[at + b] * p.pixels + b,
              upstream[b] * p.own[at + b]);
  });
}

// ------------------------------------------------------------------- dispatch
template <int F, class T>
void run(const Problem& p, bool forward) {
  bool matrix = p.pixels == 1;
  if constexpr (F == SHIFTED || F == SEESAW || F == DROPPED || F == SCALED) {
    if (!forward)
      return matrix ? softmax_backward_matrix<F, T>(p)
                    : softmax_backward_maps<F, T>(p);
    matrix ? softmax_forward_matrix<F, T>(p) : softmax_forward_maps<F, T>(p);
  } else {
    if (!forward)
      return matrix ? sigmoid_backward_matrix<F, T>(p)
                    : sigmoid_backward_maps<F, T>(p);
    matrix ? sigmoid_forward_matrix<F, T>(p) : sigmoid_forward_maps<F, T>(p);
    add_own<F, T>(p);
  }
  add_positives(p);
  if (!p.reduced) return;
  double sum = 0;
  for (int64_t i = 0; i < p.images; ++i)
    sum += double(p.rows[i]) * upstream_of(p, i);
  *p.reduced = float(sum);
}

template <class T>
void run(const Problem& p, bool forward) {
  switch (p.formula) {
    case SHIFTED: return run<SHIFTED, T>(p, forward);
    case SEESAW: return run<SEESAW, T>(p, forward);
    case DROPPED: return run<DROPPED, T>(p, forward);
    case BCE: return run<BCE, T>(p, forward);
    case FOCAL: return run<FOCAL, T>(p, forward);
    case SCALED: return run<SCALED, T>(p, forward);
  }
}

// A fresh gradient of 200 MB costs 50,000 page faults, more time than its
// arithmetic; in pages of 2 MB it costs a hundred. Where the system has none
// the request has no effect. It stays with the range: who gets that memory
// next has large pages, too.
void ask_for_huge_pages(const Problem& p) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(1) << 21;
  uintptr_t begin = reinterpret_cast<uintptr_t>(p.gradient);
  uintptr_t end = begin + p.images * p.gradient_stride * (p.type ? 2 : 4);
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (p.gradient != p.logits && begin < end)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p;
#endif
}

}  // namespace

extern "C" void lt_losses_run(const Problem* problem, int32_t forward) {
  if (problem->gradient) ask_for_huge_pages(*problem);
  switch (problem->type) {
    case 0: return run<float>(*problem, forward);
    case 1: return run<Half>(*problem, forward);
    case 2: return run<BFloat16>(*problem, forward);
  }
}
