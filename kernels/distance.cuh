// The distances d(x, y) of two rows, as structs that see one element of each row at a time. `term` is what a pair of
// elements adds to the sum that `length` makes a Measured of; `slope` gives the function of two elements that is one
// element of the gradient of d with respect to x (with respect to y it is the negative). `half_square` and
// `half_square_slope` are d^2 / 2 and its gradient: for the Euclidean distance without the root, unless the sum was
// rescaled, and without a division by d.
//
// A, everywhere below: the type of arithmetic, float or double.
#pragma once
#include "platform.cuh"

// A row whose L2 norm is below TERCET_MIN_NORM is divided by that instead (the eps of torch.nn.functional.normalize).
#if !defined(TERCET_MIN_NORM) || !defined(TERCET_LIFT_F32) || !defined(TERCET_LIFT_F64)
#error "TERCET_MIN_NORM, TERCET_LIFT_F32 and TERCET_LIFT_F64 come from src/constants.rs"
#endif

template <class A> DEVICE A nan_value() { return A(__int_as_float(0x7fffffff)); }
template <class A> DEVICE bool is_finite(A x) { return x - x == A(0); }

// The smallest normal number.
template <class A> DEVICE A tiny() { return sizeof(A) == 8 ? A(2.2250738585072014e-308) : A(1.17549435082228751e-38); }
// A power of two. Elements are multiplied or divided by it if their squares under- or overflow.
template <class A> DEVICE A lift() { return sizeof(A) == 8 ? A(TERCET_LIFT_F64) : A(TERCET_LIFT_F32); }

// x^p for x >= 0. The f64 library function is a call that spills registers; exp(p log x) is inlined, and its relative
// error of about |p log x| roundings is far below what f64 users can see.
DEVICE float power(float x, float p) { return pow(x, p); }
DEVICE double power(double x, double p) { return exp(p * log(x)); }

// (x / y)^p for x, y > 0, also if the quotient underflows although its power does not.
template <class A> DEVICE A ratio_power(A x, A y, A p) {
    const A ratio = x / y;
    const bool apart = fabs(p) < A(1) && ratio < tiny<A>();
    const A result = power(apart ? x : ratio, p);
    return apart ? result * power(y, -p) : result;
}

// The distance of two rows, and what its gradient is computed from.
template <class A> struct Measured {
    A d;
    A sum;    // of the terms of all elements; for p = inf the maximum
    A scale;  // what the elements were multiplied by (Difference) or divided by (Power) in the terms
};

// Squared Euclidean: sum e^2, and Euclidean: sqrt(sum e^2), with e = x - y + eps.
// The gradient of the Euclidean distance, e / d, is taken as 0 at d = 0 and for any d below the normal numbers.
template <class A> struct Difference {
    static constexpr bool has_maximum = false;
    bool root;
    A eps;

    struct Slope {
        A eps, factor;
        DEVICE A operator()(A x, A y) const { return (x - y + eps) * factor; }
    };
    DEVICE A term(A x, A y) const {
        const A e = x - y + eps;
        return e * e;
    }
    // The term of the element times `scale`, a power of two.
    DEVICE A lifted_term(A x, A y, A scale) const {
        const A e = (x - y + eps) * scale;
        return e * e;
    }
    // What the elements are to be multiplied by: not 1 if the sum of their squares has under- or overflowed, although
    // the distance may be an ordinary number.
    DEVICE A scale(A sum) const {
        if (!root) return A(1);
        return sum < A(1) / lift<A>() ? lift<A>() : !is_finite(sum) ? A(1) / lift<A>() : A(1);
    }
    DEVICE Measured<A> length(A sum, A scale) const { return {root ? sqrt(sum) / scale : sum, sum, scale}; }
    DEVICE Slope slope(const Measured<A>& at, A) const {
        return {eps, root ? (at.d >= tiny<A>() ? A(1) / at.d : A(0)) : A(2)};
    }
    DEVICE A half_square(const Measured<A>& at) const {
        return A(0.5) * (root && at.scale == A(1) ? at.sum : at.d * at.d);
    }
    DEVICE Slope half_square_slope(const Measured<A>& at, A) const { return {eps, root ? A(1) : A(2) * at.d}; }
};

// Lp: (sum |e|^p)^(1/p) with e = x - y + eps, and torch's gradient: sign(e) (|e| / d)^(p-1), 0 if e = 0 or d = 0.
// Computed as m (sum (|e| / m)^p)^(1/p) with m the largest |e|: the powers themselves under- or overflow although the
// distance is an ordinary number, in f32 at p = 100 for elements below 0.4 or above 2.4; and (m / d)^(p-1) =
// sum^((1-p)/p). For p = inf the elements that reach the maximum share the gradient evenly.
template <class A> struct Power {
    static constexpr bool has_maximum = true;
    A p, eps;

    struct Slope {
        A p, eps, scale, factor;
        DEVICE A operator()(A x, A y) const {
            const A e = x - y + eps, size = fabs(e);
            if (e == A(0)) return A(0);
            const A signed_factor = e > A(0) ? factor : -factor;
            if (!is_finite(p)) return size == scale ? signed_factor : A(0);
            return p == A(1) ? signed_factor : signed_factor * ratio_power(size, scale, p - A(1));
        }
    };
    DEVICE bool is_maximum() const { return !is_finite(p); }
    DEVICE bool is_scaled() const { return p != A(1); }
    DEVICE A size(A x, A y) const { return fabs(x - y + eps); }
    DEVICE A term(A x, A y, A scale) const {
        const A e = size(x, y);
        return p == A(1) || e == A(0) ? e : ratio_power(e, scale, p);
    }
    DEVICE Measured<A> length(A sum, A scale) const {
        return {p == A(1) || sum == A(0) ? sum : scale * power(sum, A(1) / p), sum, scale};
    }
    // The factor of all elements of the gradient. reaching: the number of elements with |e| = d for p = inf, else 1.
    DEVICE A factor(const Measured<A>& at, A reaching) const {
        if (is_maximum()) return A(1) / reaching;
        return p == A(1) || at.sum == A(0) ? A(1) : power(at.sum, (A(1) - p) / p);
    }
    // reaching: the number of elements with |e| = d for p = inf, else 1.
    DEVICE Slope slope(const Measured<A>& at, A reaching) const { return {p, eps, at.scale, factor(at, reaching)}; }
    DEVICE A half_square(const Measured<A>& at) const { return A(0.5) * at.d * at.d; }
    DEVICE Slope half_square_slope(const Measured<A>& at, A reaching) const {
        return {p, eps, at.scale, at.d * factor(at, reaching)};
    }
};
