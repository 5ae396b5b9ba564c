// triplet_margin:  loss_b = relu(d(a_b, p_b) - d_n + m),   d_n = d(a_b, n_b), or with swap min(d(a_b, n_b), d(p_b, n_b)).
//
// One pass: each row of a, p and n is read once, its loss and its three gradient rows are written once
// (24 B D bytes in f32). What is not asked for (null) is not computed; the same kernel serves as the backward pass
// of 16-bit inputs and of upstream gradients other than 1, where it recomputes the distances of the rows it must read
// anyway.
//
// A distance that is not finite makes the loss and the three gradient rows of its triplet NaN: inf - inf, or an inf
// in the negative alone, would otherwise pass as an inactive triplet.
#include "distance.cuh"
#include "reduce.cuh"
#include "rows.cuh"

#if !defined(TERCET_PAIRED_THREADS)
#error "TERCET_PAIRED_THREADS comes from src/constants.rs"
#endif

// The same layout as `Args` in src/triplet_margin/cuda.rs. `scalar` is f64 for f64 inputs, f32 for all others.
struct Args {
    Matrices<3> in;       // a, p, n
    void* grad[3];        // [rows, dim] contiguous, like the inputs; null: not wanted
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
    u32 root, normalize, swap;
    u32 idle_if_one;      // do nothing if upstream[0] is 1: the gradients are already there
};
static_assert(sizeof(Args) == 192, "Args must match src/triplet_margin/cuda.rs");

// How a row's loss moves its gradients: the weight (0: inactive), and which pair is the negative one.
template <class A> struct Hinge {
    A loss, weight;
    bool swapped;
};

template <class A> DEVICE Hinge<A> hinge(A d_ap, A d_an, A d_pn, A upstream, const Args& args) {
    const bool swapped = args.swap && d_pn < d_an;
    const A t = d_ap - (swapped ? d_pn : d_an) + A(args.margin);
    const bool valid = is_finite(d_ap) && is_finite(d_an) && (!args.swap || is_finite(d_pn));
    if (!valid) return {nan_value<A>(), nan_value<A>(), false};
    return {t > A(0) ? t : A(0), t > A(0) ? upstream * A(args.grad_scale) : A(0), swapped};
}

// 1 / max(norm, MIN_NORM) of each row; `flat` where the minimum took over, and the map x -> x / norm is plain scaling.
// A norm that overflowed must not turn the row into zeros.
template <class A> struct Inverse {
    A scale[3];
    bool flat[3];
};
template <class Rows, class A> DEVICE Inverse<A> inverse_norms(const Rows& rows) {
    A sum[3] = {A(0), A(0), A(0)};
    rows.sweep([&](const A(&x)[3]) {
#pragma unroll
        for (int k = 0; k < 3; ++k) sum[k] += x[k] * x[k];
    });
    Inverse<A> inverse;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        const A norm = sqrt(group_sum<Rows::lanes>(sum[k]));
        inverse.flat[k] = norm < A(TERCET_MIN_NORM);
        inverse.scale[k] = is_finite(norm) ? A(1) / (inverse.flat[k] ? A(TERCET_MIN_NORM) : norm) : nan_value<A>();
    }
    return inverse;
}

// d(x, y) summed (or, for p = inf, maximised) over elements x - y + eps.
template <class Metric> struct Subtractive {
    template <class Rows, class A>
    static DEVICE A run(const Rows& rows, const Targets<3>& to, A upstream, const Args& args, const Metric& metric) {
        Inverse<A> inverse = {{A(1), A(1), A(1)}, {true, true, true}};
        if (args.normalize) inverse = inverse_norms<Rows, A>(rows);
        const auto unit = [&](const A(&x)[3], int k) { return x[k] * inverse.scale[k]; };

        A ap = A(0), an = A(0), pn = A(0);
        const auto gather = [&](A& sum, A term) {
            if constexpr (Metric::has_maximum)
                if (metric.is_maximum()) {
                    sum = term > sum || term != term ? term : sum;  // NaN wins
                    return;
                }
            sum += term;
        };
        rows.sweep([&](const A(&x)[3]) {
            const A a = unit(x, 0), p = unit(x, 1), n = unit(x, 2);
            gather(ap, metric.term(a, p));
            gather(an, metric.term(a, n));
            if (args.swap) gather(pn, metric.term(p, n));
        });
        const auto over_lanes = [&](A x) {
            if constexpr (Metric::has_maximum)
                if (metric.is_maximum()) return group_max<Rows::lanes>(x);
            return group_sum<Rows::lanes>(x);
        };
        const A d_ap = metric.value(over_lanes(ap)), d_an = metric.value(over_lanes(an));
        const A d_pn = args.swap ? metric.value(over_lanes(pn)) : d_an;
        const Hinge<A> h = hinge(d_ap, d_an, d_pn, upstream, args);
        if (!to.any()) return h.loss;
        if (h.weight == A(0)) {
            rows.map(to, [](const A(&)[3], A(&g)[3]) { g[0] = g[1] = g[2] = A(0); });
            return h.loss;
        }

        const A d_n = h.swapped ? d_pn : d_an;
        A reaching_p = A(1), reaching_n = A(1);
        if constexpr (Metric::has_maximum)
            if (metric.is_maximum()) {
                reaching_p = reaching_n = A(0);
                rows.sweep([&](const A(&x)[3]) {
                    const A a = unit(x, 0), p = unit(x, 1), n = unit(x, 2);
                    reaching_p += metric.term(a, p) == d_ap ? A(1) : A(0);
                    reaching_n += metric.term(h.swapped ? p : a, n) == d_n ? A(1) : A(0);
                });
                reaching_p = group_sum<Rows::lanes>(reaching_p);
                reaching_n = group_sum<Rows::lanes>(reaching_n);
            }
        const auto slope_p = metric.slope(d_ap, reaching_p);
        const auto slope_n = metric.slope(d_n, reaching_n);
        // Gradients with respect to the (normalised) rows.
        const auto gradient = [&](const A(&u)[3], A(&g)[3]) {
            const A to_p = slope_p(u[0], u[1]) * h.weight;
            const A to_n = slope_n(h.swapped ? u[1] : u[0], u[2]) * h.weight;
            g[0] = h.swapped ? to_p : to_p - to_n;
            g[1] = h.swapped ? -to_p - to_n : -to_p;
            g[2] = to_n;
        };
        if (!args.normalize) {
            rows.map(to, gradient);
            return h.loss;
        }
        // Through u = x / norm:  (g - (g . u) u) / norm.
        A along[3] = {A(0), A(0), A(0)};
        rows.sweep([&](const A(&x)[3]) {
            const A u[3] = {unit(x, 0), unit(x, 1), unit(x, 2)};
            A g[3];
            gradient(u, g);
#pragma unroll
            for (int k = 0; k < 3; ++k) along[k] += g[k] * u[k];
        });
#pragma unroll
        for (int k = 0; k < 3; ++k) along[k] = inverse.flat[k] ? A(0) : group_sum<Rows::lanes>(along[k]);
        rows.map(to, [&](const A(&x)[3], A(&y)[3]) {
            const A u[3] = {unit(x, 0), unit(x, 1), unit(x, 2)};
            A g[3];
            gradient(u, g);
#pragma unroll
            for (int k = 0; k < 3; ++k) y[k] = (g[k] - along[k] * u[k]) * inverse.scale[k];
        });
        return h.loss;
    }
};

// d(x, y) = 1 - u_x . u_y with u = x / max(norm, MIN_NORM).
//   grad_x d = -(u_y - (u_x . u_y) u_x) / norm_x;  without the projection where the minimum took over.
template <class Rows, class A> 
DEVICE A cosine(const Rows& rows, const Targets<3>& to, A upstream, const Args& args) {
    const Inverse<A> inverse = inverse_norms<Rows, A>(rows);
    A ap = A(0), an = A(0), pn = A(0);
    rows.sweep([&](const A(&x)[3]) {
        const A a = x[0] * inverse.scale[0], p = x[1] * inverse.scale[1], n = x[2] * inverse.scale[2];
        ap += a * p;
        an += a * n;
        if (args.swap) pn += p * n;
    });
    ap = group_sum<Rows::lanes>(ap);
    an = group_sum<Rows::lanes>(an);
    pn = args.swap ? group_sum<Rows::lanes>(pn) : an;
    const Hinge<A> h = hinge(A(1) - ap, A(1) - an, A(1) - pn, upstream, args);
    if (!to.any()) return h.loss;
    if (h.weight == A(0)) {
        rows.map(to, [](const A(&)[3], A(&g)[3]) { g[0] = g[1] = g[2] = A(0); });
        return h.loss;
    }
    // Each row's share of its own direction: the sum of the cosines it takes part in, with their signs.
    const A cn = h.swapped ? pn : an;
    const A own[3] = {inverse.flat[0] ? A(0) : ap - (h.swapped ? A(0) : cn),
                      inverse.flat[1] ? A(0) : ap - (h.swapped ? cn : A(0)), inverse.flat[2] ? A(0) : -cn};
    const A scale[3] = {inverse.scale[0] * h.weight, inverse.scale[1] * h.weight, inverse.scale[2] * h.weight};
    rows.map(to, [&](const A(&x)[3], A(&g)[3]) {
        const A a = x[0] * inverse.scale[0], p = x[1] * inverse.scale[1], n = x[2] * inverse.scale[2];
        g[0] = ((h.swapped ? A(0) : n) - p + own[0] * a) * scale[0];
        g[1] = ((h.swapped ? n : A(0)) - a + own[1] * p) * scale[1];
        g[2] = ((h.swapped ? p : a) + own[2] * n) * scale[2];
    });
    return h.loss;
}

enum class Kind { Difference, Cosine, Power };

template <Kind KIND, class Rows, class A> DEVICE void triplet_margin(const Args& args) {
    const A* upstream = static_cast<const A*>(args.upstream);
    if (args.idle_if_one && upstream[0] == A(1)) return;

    constexpr int LANES = Rows::lanes, AT_ONCE = TERCET_PAIRED_THREADS / LANES;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    double sum = 0;
    // Every lane of the block takes every turn (shuffles and barriers need all of them): past the end, the last row
    // is looked at again and nothing of it is kept.
    for (i64 first = i64(blockIdx.x) * AT_ONCE; first < args.rows; first += i64(gridDim.x) * AT_ONCE) {
        const bool mine = first + group < args.rows;
        const i64 row = mine ? first + group : args.rows - 1;
        Rows rows;
        rows.open(args.in, row, args.dim, lane);
        const A weight = upstream ? upstream[row * args.upstream_stride] : A(1);
        const Targets<3> to = {{mine ? args.grad[0] : nullptr, mine ? args.grad[1] : nullptr, mine ? args.grad[2] : nullptr}, row};
        A loss;
        if constexpr (KIND == Kind::Difference)
            loss = Subtractive<Difference<A>>::run(rows, to, weight, args, Difference<A>{args.root != 0, A(args.eps)});
        else if constexpr (KIND == Kind::Power)
            loss = Subtractive<Power<A>>::run(rows, to, weight, args, Power<A>{A(args.p), A(args.eps)});
        else
            loss = cosine(rows, to, weight, args);
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

// One kernel per distance, dtype and shape of the rows; src/triplet_margin/cuda.rs chooses.
//   l8:    up to 8 x 16 bytes a row, 8 lanes to a row       held:   rows in registers
//   l32:   up to 32 x 16 bytes, a warp to a row             vector: any length, 16-byte loads
//   l32x4: up to 128 x 16 bytes, a warp to a row            scalar: any length and alignment
#define KERNELS_OF_ROWS(distance, kind, dtype, T, shape, ...)                                                       \
    KERNEL(triplet_margin_##distance##_##dtype##_##shape, TERCET_PAIRED_THREADS, const Args args) {                 \
        using Rows = __VA_ARGS__;                                                                                   \
        triplet_margin<kind, Rows, Arithmetic<T>::type>(args);                                                      \
    }
#define STREAMED(distance, kind, dtype, T)                                                                          \
    KERNELS_OF_ROWS(distance, kind, dtype, T, scalar, StreamedRows<T, 3, 1>)                                        \
    KERNELS_OF_ROWS(distance, kind, dtype, T, vector, StreamedRows<T, 3, 16 / sizeof(T)>)
#define HELD(distance, kind, dtype, T)                                                                              \
    KERNELS_OF_ROWS(distance, kind, dtype, T, l8, HeldRows<T, 3, 8, 1>)                                             \
    KERNELS_OF_ROWS(distance, kind, dtype, T, l32, HeldRows<T, 3, 32, 1>)                                           \
    KERNELS_OF_ROWS(distance, kind, dtype, T, l32x4, HeldRows<T, 3, 32, 4>)

#define ALL(dtype, T)                                                                                               \
    STREAMED(difference, Kind::Difference, dtype, T)                                                                \
    STREAMED(cosine, Kind::Cosine, dtype, T)                                                                        \
    KERNELS_OF_ROWS(power, Kind::Power, dtype, T, scalar, StreamedRows<T, 3, 1>)

ALL(f64, double)
ALL(f32, float)
ALL(f16, f16)
ALL(bf16, bf16)
HELD(difference, Kind::Difference, f32, float)
HELD(difference, Kind::Difference, f16, f16)
HELD(difference, Kind::Difference, bf16, bf16)
HELD(cosine, Kind::Cosine, f32, float)
HELD(cosine, Kind::Cosine, f16, f16)
HELD(cosine, Kind::Cosine, bf16, bf16)
