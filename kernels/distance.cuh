// What a distance d(x, y) is, one element at a time. `term` goes into the row's sum (or maximum), from which the engine makes
// a Measured; `slope` is one element of the gradient with respect to x; with respect to y it is the negative. `half_square` and
// `half_square_slope` are the same of d^2 / 2: for the Euclidean distance without the root, and without a division by d.
#pragma once
#include "platform.cuh"

// Below this L2 norm a row is divided by it instead of by its norm (the eps of torch.nn.functional.normalize).
#if !defined(TERCET_MIN_NORM) || !defined(TERCET_LIFT_F32) || !defined(TERCET_LIFT_F64)
#error "TERCET_MIN_NORM, TERCET_LIFT_F32 and TERCET_LIFT_F64 come from src/constants.rs"
#endif

template <class A> DEVICE A nan_value() { return A(__int_as_float(0x7fffffff)); }
template <class A> DEVICE bool is_finite(A x) { return x - x == A(0); }

// The smallest number of full precision.
template <class A> DEVICE A tiny() { return sizeof(A) == 8 ? A(2.2250738585072014e-308) : A(1.17549435082228751e-38); }
// A power of two: what brings numbers back whose squares leave the numbers.
template <class A> DEVICE A lift() { return sizeof(A) == 8 ? A(TERCET_LIFT_F64) : A(TERCET_LIFT_F32); }

// x^p for x >= 0. The f64 library function is a call that spills registers; exp(p log x) is inlined, and its relative
// error of about |p log x| roundings is far below what f64 users can see.
DEVICE float power(float x, float p) { return pow(x, p); }
DEVICE double power(double x, double p) { return exp(p * log(x)); }

// (x / y)^p for x, y > 0, also where the quotient, but not its power, is too small for a number.
template <class A> DEVICE A ratio_power(A x, A y, A p) {
    const A ratio = x / y;
    const bool apart = fabs(p) < A(1) && ratio < tiny<A>();
    const A result = power(apart ? x : ratio, p);
    return apart ? result * power(y, -p) : result;
}

// The distance of two rows, and what its slope is made of.
template <class A> struct Measured {
    A d;
    A sum;    // of the terms
    A scale;  // what the elements were multiplied by (Difference) or divided by (Power) in them
};

// Squared Euclidean: sum e^2, and Euclidean: sqrt(sum e^2), with e = x - y + eps.
// The gradient of the Euclidean distance, e / d, is taken as 0 at d = 0, and where d is so small that it has not the full
// precision.
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
    // The same of the element times a power of two.
    DEVICE A lifted_term(A x, A y, A scale) const {
        const A e = (x - y + eps) * scale;
        return e * e;
    }
    // What the elements are multiplied by where their squares have left the numbers although the distance does not.
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

// (sum |e|^p)^(1/p), e = x - y + eps, with torch's gradient: sign(e) (|e| / d)^(p-1), 0 where e = 0 or d = 0.
// As m (sum (|e| / m)^p)^(1/p) with m the largest |e|: the powers themselves leave the numbers, p = 100 of elements below
// 0.4 or above 2.4 in f32, where the distance is an ordinary number; and (m / d)^(p-1) = sum^((1-p)/p).
// For p = inf the elements that reach the maximum share the gradient evenly.
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
