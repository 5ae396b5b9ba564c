// What a distance d(x, y) is, one element at a time. `term` goes into the row's sum (or maximum), `value` makes d of
// it, `slope` is one element of the gradient with respect to x; with respect to y it is the negative. `half_square` and
// `half_square_slope` are the same of d^2 / 2: for the Euclidean distance without the root, and without a division by d.
#pragma once
#include "platform.cuh"

// Below this L2 norm a row is divided by it instead of by its norm (the eps of torch.nn.functional.normalize).
#ifndef TERCET_MIN_NORM
#error "TERCET_MIN_NORM comes from src/constants.rs"
#endif

template <class A> DEVICE A nan_value() { return A(__int_as_float(0x7fffffff)); }
template <class A> DEVICE bool is_finite(A x) { return x - x == A(0); }

// x^p for x >= 0. The f64 library function is a call that spills registers; exp(p log x) is inlined, and its relative
// error of about |p log x| roundings is far below what f64 users can see.
DEVICE float power(float x, float p) { return pow(x, p); }
DEVICE double power(double x, double p) { return exp(p * log(x)); }

// Squared Euclidean: sum e^2, and Euclidean: sqrt(sum e^2), with e = x - y + eps.
// The gradient of the Euclidean distance, e / d, is taken as 0 at d = 0.
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
    DEVICE A value(A sum) const { return root ? sqrt(sum) : sum; }
    DEVICE Slope slope(A d, A) const { return {eps, root ? (d > A(0) ? A(1) / d : A(0)) : A(2)}; }
    DEVICE A half_square(A sum, A d) const { return A(0.5) * (root ? sum : d * d); }
    DEVICE Slope half_square_slope(A d, A) const { return {eps, root ? A(1) : A(2) * d}; }
};

// (sum |e|^p)^(1/p), e = x - y + eps, with torch's gradient: sign(e) (|e| / d)^(p-1), 0 where e = 0 or d = 0.
// For p = inf the elements that reach the maximum share the gradient evenly.
template <class A> struct Power {
    static constexpr bool has_maximum = true;
    A p, eps;

    struct Slope {
        A p, eps, d, factor;
        DEVICE A operator()(A x, A y) const {
            const A e = x - y + eps, size = fabs(e);
            if (e == A(0) || d == A(0)) return A(0);
            const A signed_factor = e > A(0) ? factor : -factor;
            if (!is_finite(p)) return size == d ? signed_factor : A(0);
            return p == A(1) ? signed_factor : signed_factor * power(size / d, p - A(1));
        }
    };
    DEVICE bool is_maximum() const { return !is_finite(p); }
    DEVICE A term(A x, A y) const {
        const A size = fabs(x - y + eps);
        return is_maximum() || p == A(1) ? size : power(size, p);
    }
    DEVICE A value(A sum) const { return is_maximum() || p == A(1) ? sum : power(sum, A(1) / p); }
    // reaching: the number of elements with |e| = d for p = inf, else 1.
    DEVICE Slope slope(A d, A reaching) const { return {p, eps, d, A(1) / reaching}; }
    DEVICE A half_square(A, A d) const { return A(0.5) * d * d; }
    DEVICE Slope half_square_slope(A d, A reaching) const { return {p, eps, d, d / reaching}; }
};
