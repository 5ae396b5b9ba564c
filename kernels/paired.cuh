// The engine of paired losses: everything but the formula of one row. A loss is a struct over a type of arithmetic A,
//
//   template <class Rows, class Metric>
//   A subtractive(rows, to, upstream, row, metric)     for a distance over elements x - y + eps,
//   template <class Rows>
//   A cosine(rows, to, upstream, row)                  for 1 - u_x . u_y,
//
// which write the gradients of row `row`, times upstream and grad_scale, to `to`, and return its loss. What is not asked
// for (null) is not computed. Each row is read once from memory, and again from the cache if it does not fit registers.
//
// Everywhere below, Rows is HeldRows or StreamedRows (rows.cuh), K the number of matrices, Metric Difference or Power
// (distance.cuh), and A the type of arithmetic.
#pragma once
#include "distance.cuh"
#include "reduce.cuh"
#include "rows.cuh"

#if !defined(TERCET_PAIRED_THREADS)
#error "TERCET_PAIRED_THREADS comes from src/constants.rs"
#endif

// The arguments of every paired loss; the `Args` of a loss hold them as `paired`, and behind them what it alone needs. The same
// layout as `PairedArgs` in src/cuda/paired.rs. `scalar` is f64 for f64 inputs, f32 for all others.
template <int K> struct PairedArgs {
    Matrices<K> input;
    void* grad[K];        // [rows, dim] contiguous, like the inputs; null: not wanted
    void* losses;         // scalar[rows]; null: not wanted
    void* loss;           // scalar: loss_scale * sum of the rows' losses; null: not wanted
    double* partials;     // one number a block, for `loss`
    u32* ticket;          // 0 at launch, for `loss`
    const void* upstream; // scalar[1] (stride 0) or scalar[rows] (stride 1); null: 1
    i64 upstream_stride;
    i64 rows, dim;
    double margin, p, eps;
    double grad_scale;    // times upstream: the weight of each row's gradient
    double loss_scale;
    u32 root, normalize;  // whether Difference takes the root; whether rows are normalised
    u32 idle_if_one;      // do nothing if upstream[0] is 1: the gradients are already there
    u32 padding;          // to the end of 8 bytes: the host's struct has no gaps
};

// 1 / max(norm, MIN_NORM) of each row; `flat` if the norm is below MIN_NORM, so that the map x -> x / norm is plain
// scaling. NaN for a norm that overflowed, which must not turn the row into zeros.
template <class A, int K> struct Inverse {
    A scale[K];
    bool flat[K];

    // The element of row k, normalised; the same bits wherever it is computed, so that equal rows have the distance 0
    // and for p = inf the elements that reach the maximum are found again.
    DEVICE A unit(const A (&x)[K], int k) const { return rounded_product(x[k], scale[k]); }
};

// The Inverse of K rows, by the lanes of the row.
template <int K, class Rows, class A = typename Rows::A> DEVICE Inverse<A, K> inverse_norms(const Rows& rows) {
    A sum[K];
#pragma unroll
    for (int k = 0; k < K; ++k) sum[k] = A(0);
    rows.sweep([&](const A(&x)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) sum[k] += x[k] * x[k];
    });
    Inverse<A, K> inverse;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const A norm = sqrt(group_sum<Rows::lanes>(sum[k]));
        inverse.flat[k] = norm < A(TERCET_MIN_NORM);
        inverse.scale[k] = is_finite(norm) ? A(1) / (inverse.flat[k] ? A(TERCET_MIN_NORM) : norm) : nan_value<A>();
    }
    return inverse;
}

// The Inverse of K rows, or without `normalize` factors that leave the rows as they are.
template <int K, class Rows, class A = typename Rows::A>
DEVICE Inverse<A, K> inverse_norms_if(bool normalize, const Rows& rows) {
    Inverse<A, K> inverse;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        inverse.scale[k] = A(1);
        inverse.flat[k] = true;
    }
    if (normalize) inverse = inverse_norms<K>(rows);
    return inverse;
}

// Visits the elements of P pairs of rows.
// pairs(x, u, v): sets u[i] and v[i], the elements of pair i, from x[k], those of the K rows.
// f(i, u, v): called for each element of each pair.
template <int P, int K, class Rows, class Pairs, class F> DEVICE void sweep_pairs(const Rows& rows, Pairs pairs, F f) {
    using A = typename Rows::A;
    rows.sweep([&](const A(&x)[K]) {
        A u[P], v[P];
        pairs(x, u, v);
#pragma unroll
        for (int i = 0; i < P; ++i) f(i, u[i], v[i]);
    });
}

// Sets found[i] to the distance, squared or Euclidean, of the first `count` of P pairs of rows.
// pairs(x, u, v): sets u[i] and v[i], the elements of pair i, from x[k], those of the K rows.
template <int P, int K, class Rows, class A, class Pairs>
DEVICE void distances(const Rows& rows, const Difference<A>& metric, int count, Pairs pairs, Measured<A> (&found)[P]) {
    A sum[P], scale[P];
#pragma unroll
    for (int i = 0; i < P; ++i) sum[i] = A(0);
    sweep_pairs<P, K>(rows, pairs, [&](int i, A u, A v) {
        if (i < count) sum[i] += metric.term(u, v);
    });
    bool scaled = false;
#pragma unroll
    for (int i = 0; i < P; ++i) {
        sum[i] = group_sum<Rows::lanes>(sum[i]);
        scale[i] = i < count ? metric.scale(sum[i]) : A(1);
        scaled |= scale[i] != A(1);
    }
    // The lanes of a row take the same branch: each has the whole sum.
    if (scaled) {
#pragma unroll
        for (int i = 0; i < P; ++i) sum[i] = A(0);
        sweep_pairs<P, K>(rows, pairs, [&](int i, A u, A v) {
            if (i < count) sum[i] += metric.lifted_term(u, v, scale[i]);
        });
#pragma unroll
        for (int i = 0; i < P; ++i) sum[i] = group_sum<Rows::lanes>(sum[i]);
    }
#pragma unroll
    for (int i = 0; i < P; ++i) found[i] = metric.length(sum[i], scale[i]);
}
// Sets found[i] to the Lp distance of the first `count` of P pairs of rows.
// pairs(x, u, v): sets u[i] and v[i], the elements of pair i, from x[k], those of the K rows.
template <int P, int K, class Rows, class A, class Pairs>
DEVICE void distances(const Rows& rows, const Power<A>& metric, int count, Pairs pairs, Measured<A> (&found)[P]) {
    A sum[P], scale[P];
#pragma unroll
    for (int i = 0; i < P; ++i) scale[i] = A(0);
    if (metric.is_scaled())
        sweep_pairs<P, K>(rows, pairs, [&](int i, A u, A v) {
            const A size = metric.size(u, v);
            scale[i] = size > scale[i] || size != size ? size : scale[i];  // NaN wins
        });
#pragma unroll
    for (int i = 0; i < P; ++i) {
        scale[i] = group_max<Rows::lanes>(scale[i]);
        found[i] = {scale[i], scale[i], scale[i]};
    }
    if (metric.is_maximum()) return;
#pragma unroll
    for (int i = 0; i < P; ++i) {
        sum[i] = A(0);
        if (scale[i] == A(0)) scale[i] = A(1);  // equal rows: not 0 / 0
    }
    sweep_pairs<P, K>(rows, pairs, [&](int i, A u, A v) {
        if (i < count) sum[i] += metric.term(u, v, scale[i]);
    });
#pragma unroll
    for (int i = 0; i < P; ++i) found[i] = metric.length(group_sum<Rows::lanes>(sum[i]), scale[i]);
}

// Sets reaching[i] to how many elements of pair i reach its distance if that is a maximum (p = inf), else to 1.
// pairs(x, u, v): sets u[i] and v[i], the elements of pair i, from x[k], those of the K rows.
template <int P, int K, class Rows, class Metric, class A, class Pairs>
DEVICE void count_reaching(const Rows& rows, const Metric& metric, Pairs pairs, const Measured<A> (&found)[P], A (&reaching)[P]) {
#pragma unroll
    for (int i = 0; i < P; ++i) reaching[i] = A(1);
    if constexpr (Metric::has_maximum)
        if (metric.is_maximum()) {
#pragma unroll
            for (int i = 0; i < P; ++i) reaching[i] = A(0);
            sweep_pairs<P, K>(rows, pairs, [&](int i, A u, A v) {
                reaching[i] += metric.size(u, v) == found[i].d ? A(1) : A(0);
            });
#pragma unroll
            for (int i = 0; i < P; ++i) reaching[i] = group_sum<Rows::lanes>(reaching[i]);
        }
}

// Writes `value` to every element of the K gradient rows.
template <class Rows, int K, class A> DEVICE void fill(const Rows& rows, const Targets<K>& to, A value) {
    rows.map(to, [&](const A(&)[K], A(&g)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) g[k] = value;
    });
}

// Writes the K gradient rows.
// gradient(u, g): sets g[k] from u[k], one element of each row. With `normalize` u is of the normalised rows, and the
// gradient goes on through u = x / norm:  (g - (g . u) u) / norm.
template <class Rows, class A, int K, class F>
DEVICE void write_gradient(const Rows& rows, const Targets<K>& to, bool normalize, const Inverse<A, K>& inverse, F gradient) {
    if (!normalize) {
        rows.map(to, gradient);
        return;
    }
    const auto at = [&](const A(&x)[K], A(&u)[K], A(&g)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) u[k] = inverse.unit(x, k);
        gradient(u, g);
    };
    A along[K];
#pragma unroll
    for (int k = 0; k < K; ++k) along[k] = A(0);
    rows.sweep([&](const A(&x)[K]) {
        A u[K], g[K];
        at(x, u, g);
#pragma unroll
        for (int k = 0; k < K; ++k) along[k] += g[k] * u[k];
    });
#pragma unroll
    for (int k = 0; k < K; ++k) along[k] = inverse.flat[k] ? A(0) : group_sum<Rows::lanes>(along[k]);
    rows.map(to, [&](const A(&x)[K], A(&y)[K]) {
        A u[K], g[K];
        at(x, u, g);
#pragma unroll
        for (int k = 0; k < K; ++k) y[k] = (g[k] - along[k] * u[k]) * inverse.scale[k];
    });
}

enum class Kind { Difference, Cosine, Power };

// The body of every paired kernel, for a distance of the kind KIND; loss_of: a struct as described above.
template <Kind KIND, class Rows, int K, class Loss> DEVICE void paired(const PairedArgs<K>& args, const Loss& loss_of) {
    using A = typename Rows::A;
    const A* upstream = static_cast<const A*>(args.upstream);
    if (args.idle_if_one && upstream[0] == A(1)) return;

    constexpr int LANES = Rows::lanes, AT_ONCE = TERCET_PAIRED_THREADS / LANES;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    double sum = 0;
    // Every lane of the block takes every turn (shuffles and barriers need all of them): past the end it computes the
    // last row again and keeps nothing of it.
    for (i64 first = i64(blockIdx.x) * AT_ONCE; first < args.rows; first += i64(gridDim.x) * AT_ONCE) {
        const bool mine = first + group < args.rows;
        const i64 row = mine ? first + group : args.rows - 1;
        Rows rows;
        rows.open(args.input, row, args.dim, lane);
        const A weight = upstream ? upstream[row * args.upstream_stride] : A(1);
        Targets<K> to;
        to.row = row;
#pragma unroll
        for (int k = 0; k < K; ++k) to.data[k] = mine ? args.grad[k] : nullptr;
        A loss;
        if constexpr (KIND == Kind::Difference)
            loss = loss_of.subtractive(rows, to, weight, row, Difference<A>{args.root != 0, A(args.eps)});
        else if constexpr (KIND == Kind::Power)
            loss = loss_of.subtractive(rows, to, weight, row, Power<A>{A(args.p), A(args.eps)});
        else
            loss = loss_of.cosine(rows, to, weight, row);
        if (mine && lane == 0) {
            if (args.losses) static_cast<A*>(args.losses)[row] = loss;
            sum += double(loss);
        }
    }
    if (!args.loss) return;
    double total;
    if (grid_sum<TERCET_PAIRED_THREADS>(sum, args.partials, args.ticket, total))
        *static_cast<A*>(args.loss) = A(total * args.loss_scale);
}

// PAIRED_KERNELS defines one kernel per distance, dtype and shape of the rows, for `Loss<A>{args}` of K matrices;
// src/cuda/paired.rs chooses among them.
//   l16:   up to 16 x 16 bytes a row, in the registers of 16 lanes     vector: any length, in 16-byte loads
//   l32:   up to 32 x 16 bytes a row, in the registers of a warp       scalar: any length and alignment
//   l32x4: up to 128 x 16 bytes a row, in the registers of a warp
#define PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, shape, ...)                             \
    KERNEL_OF((__VA_ARGS__::blocks), stem##_##distance##_##dtype##_##shape, TERCET_PAIRED_THREADS,  \
              const Args args) {                                                                    \
        paired<kind, __VA_ARGS__>(args.paired, Loss<Arithmetic<T>::type>{args});                    \
    }
#define PAIRED_STREAMED(stem, K, Loss, distance, kind, dtype, T)                                    \
    PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, scalar, StreamedRows<T, K, 1>)              \
    PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, vector, StreamedRows<T, K, 16 / sizeof(T)>)
#define PAIRED_HELD(stem, K, Loss, distance, kind, dtype, T)                                        \
    PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, l16, HeldRows<T, K, 16, 1>)                 \
    PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, l32, HeldRows<T, K, 32, 1>)                 \
    PAIRED_KERNEL(stem, Loss, distance, kind, dtype, T, l32x4, HeldRows<T, K, 32, 4>)
#define PAIRED_ALL_STREAMED(stem, K, Loss, dtype, T)                                                \
    PAIRED_STREAMED(stem, K, Loss, difference, Kind::Difference, dtype, T)                          \
    PAIRED_STREAMED(stem, K, Loss, cosine, Kind::Cosine, dtype, T)                                  \
    PAIRED_KERNEL(stem, Loss, power, Kind::Power, dtype, T, scalar, StreamedRows<T, K, 1>)
#define PAIRED_ALL_HELD(stem, K, Loss, dtype, T)                                                    \
    PAIRED_HELD(stem, K, Loss, difference, Kind::Difference, dtype, T)                              \
    PAIRED_HELD(stem, K, Loss, cosine, Kind::Cosine, dtype, T)
#define PAIRED_KERNELS(stem, K, Loss)                                                               \
    PAIRED_ALL_STREAMED(stem, K, Loss, f64, double)                                                 \
    PAIRED_ALL_STREAMED(stem, K, Loss, f32, float)                                                  \
    PAIRED_ALL_STREAMED(stem, K, Loss, f16, f16)                                                    \
    PAIRED_ALL_STREAMED(stem, K, Loss, bf16, bf16)                                                  \
    PAIRED_ALL_HELD(stem, K, Loss, f32, float)                                                      \
    PAIRED_ALL_HELD(stem, K, Loss, f16, f16)                                                        \
    PAIRED_ALL_HELD(stem, K, Loss, bf16, bf16)
