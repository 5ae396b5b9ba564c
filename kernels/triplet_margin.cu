// triplet_margin:  loss_b = relu(d(a_b, p_b) - d_n + m),   d_n = d(a_b, n_b), or with swap min(d(a_b, n_b), d(p_b, n_b)).
//
// One pass: each row of a, p and n is read once, its loss and its three gradient rows are written once
// (24 B D bytes in f32). The same kernel serves as the backward pass of f16 inputs, of a loss per row, and of
// upstream gradients other than 1: it recomputes the distances of the rows it must read anyway.
//
// A distance that is not finite makes the loss and the three gradient rows of its triplet NaN: inf - inf, or an inf
// in the negative alone, would otherwise pass as an inactive triplet.
#include "paired.cuh"

// The same layout as `Args` in src/triplet_margin/cuda.rs.
struct Args {
    PairedArgs<3> paired;  // a, p, n
    u32 swap;
    u32 padding;           // to the end of 8 bytes: the host's struct has no gaps
};

// The formula of one row. A: the type of arithmetic.
template <class A> struct Triplet {
    const Args& args;

    // The loss of a row, the weight of its gradients (0: inactive), and whether the negative distance is d(p, n).
    struct Hinge {
        A loss, weight;
        bool swapped;
    };
    DEVICE Hinge hinge(A d_ap, A d_an, A d_pn, A upstream) const {
        const bool swapped = args.swap && d_pn < d_an;
        const A t = d_ap - (swapped ? d_pn : d_an) + A(args.paired.margin);
        const bool valid = is_finite(d_ap) && is_finite(d_an) && (!args.swap || is_finite(d_pn));
        if (!valid) return {nan_value<A>(), nan_value<A>(), false};
        return {t > A(0) ? t : A(0), t > A(0) ? upstream * A(args.paired.grad_scale) : A(0), swapped};
    }

    // The loss and the gradients of a row, for a distance over elements x - y + eps.
    // Rows: how rows are read (rows.cuh).
    // Metric: the distance (distance.cuh).
    template <class Rows, class Metric>
    DEVICE A subtractive(const Rows& rows, const Targets<3>& to, A upstream, i64, const Metric& metric) const {
        const Inverse<A, 3> inverse = inverse_norms_if<3>(args.paired.normalize, rows);

        Measured<A> found[3];  // d(a, p), d(a, n), d(p, n)
        distances<3, 3>(rows, metric, args.swap ? 3 : 2, [&](const A(&x)[3], A(&u)[3], A(&v)[3]) {
            u[0] = u[1] = inverse.unit(x, 0);
            v[0] = u[2] = inverse.unit(x, 1);
            v[1] = v[2] = inverse.unit(x, 2);
        }, found);
        const Hinge h = hinge(found[0].d, found[1].d, args.swap ? found[2].d : found[1].d, upstream);
        if (!to.any()) return h.loss;
        if (h.weight == A(0)) {
            fill(rows, to, A(0));
            return h.loss;
        }

        const Measured<A> at[2] = {found[0], h.swapped ? found[2] : found[1]};
        A reaching[2];
        count_reaching<2, 3>(rows, metric, [&](const A(&x)[3], A(&u)[2], A(&v)[2]) {
            const A a = inverse.unit(x, 0), p = inverse.unit(x, 1);
            u[0] = a;
            v[0] = p;
            u[1] = h.swapped ? p : a;
            v[1] = inverse.unit(x, 2);
        }, at, reaching);
        const auto slope_p = metric.slope(at[0], reaching[0]);
        const auto slope_n = metric.slope(at[1], reaching[1]);
        write_gradient(rows, to, args.paired.normalize, inverse, [&](const A(&u)[3], A(&g)[3]) {
            const A to_p = slope_p(u[0], u[1]) * h.weight;
            const A to_n = slope_n(h.swapped ? u[1] : u[0], u[2]) * h.weight;
            g[0] = h.swapped ? to_p : to_p - to_n;
            g[1] = h.swapped ? -to_p - to_n : -to_p;
            g[2] = to_n;
        });
        return h.loss;
    }

    // The loss and the gradients of a row, for d(x, y) = 1 - u_x . u_y with u = x / max(norm, MIN_NORM).
    // Rows: how rows are read (rows.cuh).
    //   grad_x d = -(u_y - (u_x . u_y) u_x) / norm_x;  without the projection if norm_x is below MIN_NORM.
    template <class Rows> DEVICE A cosine(const Rows& rows, const Targets<3>& to, A upstream, i64) const {
        const Inverse<A, 3> inverse = inverse_norms<3>(rows);
        A ap = A(0), an = A(0), pn = A(0);
        rows.sweep([&](const A(&x)[3]) {
            const A a = inverse.unit(x, 0), p = inverse.unit(x, 1), n = inverse.unit(x, 2);
            ap += a * p;
            an += a * n;
            if (args.swap) pn += p * n;
        });
        ap = group_sum<Rows::lanes>(ap);
        an = group_sum<Rows::lanes>(an);
        pn = args.swap ? group_sum<Rows::lanes>(pn) : an;
        const Hinge h = hinge(A(1) - ap, A(1) - an, A(1) - pn, upstream);
        if (!to.any()) return h.loss;
        if (h.weight == A(0)) {
            fill(rows, to, A(0));
            return h.loss;
        }
        // What each row has of its own direction in its gradient: the cosines it takes part in, with their signs.
        const A cn = h.swapped ? pn : an;
        const A own[3] = {inverse.flat[0] ? A(0) : ap - (h.swapped ? A(0) : cn),
                          inverse.flat[1] ? A(0) : ap - (h.swapped ? cn : A(0)), inverse.flat[2] ? A(0) : -cn};
        const A scale[3] = {inverse.scale[0] * h.weight, inverse.scale[1] * h.weight, inverse.scale[2] * h.weight};
        rows.map(to, [&](const A(&x)[3], A(&g)[3]) {
            const A a = inverse.unit(x, 0), p = inverse.unit(x, 1), n = inverse.unit(x, 2);
            g[0] = ((h.swapped ? A(0) : n) - p + own[0] * a) * scale[0];
            g[1] = ((h.swapped ? n : A(0)) - a + own[1] * p) * scale[1];
            g[2] = ((h.swapped ? p : a) + own[2] * n) * scale[2];
        });
        return h.loss;
    }
};

PAIRED_KERNELS(triplet_margin, 3, Triplet)
