// contrastive:  loss_b = d^2 / 2 if x1_b and x2_b are of the same class, else relu(m - d)^2 / 2,   d = d(x1_b, x2_b).
//
// One pass: each row of x1 and x2 is read once, its loss and its two gradient rows are written once (16 B D bytes in
// f32). The same kernel serves as the backward pass of f16 inputs, of a loss per row, and of upstream gradients
// other than 1.
//
// A distance that is not finite makes the loss and both gradient rows NaN: an infinite one would otherwise pass as a
// pair that is far enough apart.
#include "paired.cuh"

// Which pairs belong together. The same layout as `Same` in src/contrastive/cuda.rs.
struct Same {
    const void* address;  // one number a row, of whatever type
    u64 one;              // the bits of its 1
    u64 magnitude;        // the bits that are all 0 in its 0
    u32 bytes;            // the size of one
    u32 padding;          // to the end of 8 bytes: the host's struct has no gaps
};
// The same layout as `Args` in src/contrastive/cuda.rs.
struct Args {
    PairedArgs<2> paired;  // x1, x2
    Same same;
};

// The formula of one row. A: the type of arithmetic.
template <class A> struct Contrastive {
    const Args& args;

    // The loss of a row, and its gradients: `weight` times those of d^2 / 2 (`same`) or of d; weight 0: none.
    struct Force {
        A loss, weight;
        bool same;
    };
    DEVICE Force force(A d, A half_square, A upstream, i64 row) const {
        const u64 bits = same_bits(row);
        const bool same = bits == args.same.one;
        const bool known = same || (bits & args.same.magnitude) == 0;
        // If `same` is neither 1 nor 0, the loss is NaN: the host cannot look without waiting for the device.
        if (!known || !is_finite(d)) return {nan_value<A>(), nan_value<A>(), false};
        const A weight = upstream * A(args.paired.grad_scale);
        if (same) return {half_square, weight, true};
        const A gap = A(args.paired.margin) - d;
        if (gap > A(0)) return {A(0.5) * gap * gap, -gap * weight, false};
        return {A(0), A(0), false};
    }
    DEVICE u64 same_bits(i64 row) const {
        switch (args.same.bytes) {
            case 1: return static_cast<const u8*>(args.same.address)[row];
            case 2: return static_cast<const u16*>(args.same.address)[row];
            case 4: return static_cast<const u32*>(args.same.address)[row];
            default: return static_cast<const u64*>(args.same.address)[row];
        }
    }

    // The loss and the gradients of a row, for a distance over elements x - y + eps.
    // Rows: how rows are read (rows.cuh).
    // Metric: the distance (distance.cuh).
    template <class Rows, class Metric>
    DEVICE A subtractive(const Rows& rows, const Targets<2>& to, A upstream, i64 row, const Metric& metric) const {
        const Inverse<A, 2> inverse = inverse_norms_if<2>(args.paired.normalize, rows);
        const auto pair = [&](const A(&x)[2], A(&u)[1], A(&v)[1]) {
            u[0] = inverse.unit(x, 0);
            v[0] = inverse.unit(x, 1);
        };
        Measured<A> found[1];
        distances<1, 2>(rows, metric, 1, pair, found);
        const Force f = force(found[0].d, metric.half_square(found[0]), upstream, row);
        if (!to.any()) return f.loss;
        if (f.weight == A(0)) {
            fill(rows, to, A(0));
            return f.loss;
        }
        A reaching[1];
        count_reaching<1, 2>(rows, metric, pair, found, reaching);
        const auto slope =
            f.same ? metric.half_square_slope(found[0], reaching[0]) : metric.slope(found[0], reaching[0]);
        write_gradient(rows, to, args.paired.normalize, inverse, [&](const A(&u)[2], A(&g)[2]) {
            g[0] = slope(u[0], u[1]) * f.weight;
            g[1] = -g[0];
        });
        return f.loss;
    }

    // The loss and the gradients of a row, for d = 1 - u_x . u_y. Rows: how rows are read (rows.cuh).
    // grad_x d = -(u_y - (u_x . u_y) u_x) / norm_x, without the projection if norm_x is below MIN_NORM.
    template <class Rows> DEVICE A cosine(const Rows& rows, const Targets<2>& to, A upstream, i64 row) const {
        const Inverse<A, 2> inverse = inverse_norms<2>(rows);
        A c = A(0);
        rows.sweep([&](const A(&x)[2]) { c += inverse.unit(x, 0) * inverse.unit(x, 1); });
        c = group_sum<Rows::lanes>(c);
        const A d = A(1) - c;
        const Force f = force(d, A(0.5) * d * d, upstream, row);
        if (!to.any()) return f.loss;
        const A weight = f.same ? f.weight * d : f.weight;
        if (weight == A(0)) {
            fill(rows, to, A(0));
            return f.loss;
        }
        const A own[2] = {inverse.flat[0] ? A(0) : c, inverse.flat[1] ? A(0) : c};
        const A scale[2] = {inverse.scale[0] * weight, inverse.scale[1] * weight};
        rows.map(to, [&](const A(&x)[2], A(&g)[2]) {
            const A u = inverse.unit(x, 0), v = inverse.unit(x, 1);
            g[0] = (own[0] * u - v) * scale[0];
            g[1] = (own[1] * v - u) * scale[1];
        });
        return f.loss;
    }
};

PAIRED_KERNELS(contrastive, 2, Contrastive)
