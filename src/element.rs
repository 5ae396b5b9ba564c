//! The number types of embeddings, the types they are computed in, and functions that are compiled once for each of
//! them.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use bytemuck::Pod;
use half::{bf16, f16};

/// A number type of embeddings: `f32`, `f64`, `f16` or `bf16`.
pub trait Element: Pod + Debug + Default + PartialEq + Send + Sync + sealed::Sealed {
    /// The type of arithmetic and of losses: `f64` for `f64`, `f32` for all others.
    type Scalar: Scalar;
    /// The type's name, `"f32"` and so on, as in kernel names.
    const NAME: &'static str;
    /// The number of this type nearest to `x`, ties to even.
    fn from_f64(x: f64) -> Self;
    /// The same number as an f64, exactly.
    fn to_f64(self) -> f64;
    #[doc(hidden)]
    fn widen(from: &[Self], to: &mut [Self::Scalar]);
    #[doc(hidden)]
    fn narrow(from: &[Self::Scalar], to: &mut [Self]);
    /// The slice itself, if its numbers are of the type of arithmetic already.
    #[doc(hidden)]
    fn as_scalars(slice: &[Self]) -> Option<&[Self::Scalar]>;
    #[doc(hidden)]
    fn as_scalars_mut(slice: &mut [Self]) -> Option<&mut [Self::Scalar]>;
    /// The function among `all` for this type.
    #[doc(hidden)]
    fn of<F: ElementFn>(all: &ByElement<F>) -> F::Of<Self>;
}

/// A type of arithmetic: `f32` or `f64`.
pub trait Scalar:
    Element<Scalar = Self>
    + crate::cpu::Arithmetic
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + std::fmt::Display
{
    #[doc(hidden)]
    const ZERO: Self;
    #[doc(hidden)]
    const ONE: Self;
    #[doc(hidden)]
    const NAN: Self;
    #[doc(hidden)]
    const INFINITY: Self;
    /// The largest finite number.
    #[doc(hidden)]
    const MAX: Self;
    /// The distance from 1 to the next number.
    #[doc(hidden)]
    const EPSILON: Self;
    /// The smallest number of full precision: more than a sum loses to terms that are below it.
    #[doc(hidden)]
    const TINY: Self;
    /// The power of two that rescales rows whose squares leave the range; see [`LIFT_F32`](crate::constants::LIFT_F32).
    #[doc(hidden)]
    const LIFT: Self;
    #[doc(hidden)]
    fn sqrt(self) -> Self;
    #[doc(hidden)]
    fn abs(self) -> Self;
    #[doc(hidden)]
    fn powf(self, p: Self) -> Self;
    #[doc(hidden)]
    fn is_finite(self) -> bool;
    #[doc(hidden)]
    fn is_nan(self) -> bool;
    /// The function among `both` for this type of arithmetic.
    #[doc(hidden)]
    fn of_scalar<F: ScalarFn>(both: &ByScalar<F>) -> F::Of<Self>;
}

/// The type of a function that is generic over the type of arithmetic.
pub trait ScalarFn {
    /// The function's type for `A`.
    type Of<A: Scalar>: Copy;
}

/// A generic function for each type of arithmetic. In a `static` of this type it is compiled once, in this crate, and
/// not in every crate that calls it: loops over rows are large, and compiled for each kind of processor.
///
/// ```text
/// struct Sum;
/// impl ScalarFn for Sum { type Of<A: Scalar> = fn(&[A]) -> A; }
/// static SUM: ByScalar<Sum> = ByScalar { f32: sum, f64: sum };     // fn sum<A: Scalar>(x: &[A]) -> A
/// A::of_scalar(&SUM)(x)
/// ```
#[derive(Debug)]
pub struct ByScalar<F: ScalarFn> {
    /// The function for f32.
    pub f32: F::Of<f32>,
    /// The function for f64.
    pub f64: F::Of<f64>,
}

/// The type of a function that is generic over the number type of embeddings.
pub trait ElementFn {
    /// The function's type for `T`.
    type Of<T: Element>: Copy;
}

/// A generic function for each number type of embeddings, compiled once, in this crate, like that of a [`ByScalar`].
#[derive(Debug)]
pub struct ByElement<F: ElementFn> {
    /// The function for f32.
    pub f32: F::Of<f32>,
    /// The function for f64.
    pub f64: F::Of<f64>,
    /// The function for f16.
    pub f16: F::Of<f16>,
    /// The function for bf16.
    pub bf16: F::Of<bf16>,
}

/// The largest number of the type that T is computed in.
pub fn largest<T: Element>() -> f64 {
    T::Scalar::MAX.to_f64()
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

macro_rules! scalar {
    ($t:ident, $name:literal, $lift:ident) => {
        impl Element for $t {
            type Scalar = $t;
            const NAME: &'static str = $name;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn narrow(from: &[Self], to: &mut [Self]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn as_scalars(slice: &[Self]) -> Option<&[Self]> {
                Some(slice)
            }
            #[inline(always)]
            fn as_scalars_mut(slice: &mut [Self]) -> Option<&mut [Self]> {
                Some(slice)
            }
            fn of<F: ElementFn>(all: &ByElement<F>) -> F::Of<Self> {
                all.$t
            }
        }
        impl Scalar for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NAN: Self = $t::NAN;
            const INFINITY: Self = $t::INFINITY;
            const MAX: Self = $t::MAX;
            const EPSILON: Self = $t::EPSILON;
            const TINY: Self = $t::MIN_POSITIVE;
            const LIFT: Self = crate::constants::$lift as $t;
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn powf(self, p: Self) -> Self {
                $t::powf(self, p)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            fn of_scalar<F: ScalarFn>(both: &ByScalar<F>) -> F::Of<Self> {
                both.$t
            }
        }
    };
}
scalar!(f32, "f32", LIFT_F32);
scalar!(f64, "f64", LIFT_F64);

macro_rules! half_element {
    ($t:ident, $name:literal) => {
        impl Element for $t {
            type Scalar = f32;
            const NAME: &'static str = $name;
            fn from_f64(x: f64) -> Self {
                $t::from_f64(x)
            }
            fn to_f64(self) -> f64 {
                $t::to_f64(self)
            }
            #[inline(always)]
            fn widen(from: &[Self], to: &mut [f32]) {
                half::slice::HalfFloatSliceExt::convert_to_f32_slice(from, to);
            }
            #[inline(always)]
            fn narrow(from: &[f32], to: &mut [Self]) {
                half::slice::HalfFloatSliceExt::convert_from_f32_slice(to, from);
            }
            fn as_scalars(_: &[Self]) -> Option<&[f32]> {
                None
            }
            fn as_scalars_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
            fn of<F: ElementFn>(all: &ByElement<F>) -> F::Of<Self> {
                all.$t
            }
        }
    };
}
half_element!(f16, "f16");
half_element!(bf16, "bf16");
