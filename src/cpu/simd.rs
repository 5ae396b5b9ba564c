//! Vectors of the processor at hand: [`pulp`] finds it at run time and compiles the same code for each kind.

use std::ops::{Add, Div, Mul, Neg, Sub};

use bytemuck::Pod;
use pulp::Simd;

/// `f32` or `f64` in vector registers.
pub trait Vectorised: Pod {
    /// 1.
    #[doc(hidden)]
    const UNIT: Self;
    #[doc(hidden)]
    type Register<S: Simd>: Pod;
    #[doc(hidden)]
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Register<S>;
    #[doc(hidden)]
    fn add<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn sub<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn mul<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn neg<S: Simd>(simd: S, x: Self::Register<S>) -> Self::Register<S>;
    /// `x * y + z`, rounded once if the processor can.
    #[doc(hidden)]
    fn mul_add<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>, z: Self::Register<S>)
    -> Self::Register<S>;
    #[doc(hidden)]
    fn sum<S: Simd>(simd: S, x: Self::Register<S>) -> Self;
    #[doc(hidden)]
    fn smallest<S: Simd>(simd: S, x: Self::Register<S>) -> Self;
    #[doc(hidden)]
    fn largest<S: Simd>(simd: S, x: Self::Register<S>) -> Self;
    /// The lesser of each two lanes; with NaN the processors differ.
    #[doc(hidden)]
    fn min<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    /// The greater of each two lanes; with NaN the processors differ.
    #[doc(hidden)]
    fn max<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn abs_of<S: Simd>(simd: S, x: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn sqrt_of<S: Simd>(simd: S, x: Self::Register<S>) -> Self::Register<S>;
    #[doc(hidden)]
    fn div<S: Simd>(simd: S, x: Self::Register<S>, y: Self::Register<S>) -> Self::Register<S>;
    /// `then` in lanes with `x > y`, else `otherwise`.
    #[doc(hidden)]
    fn if_above<S: Simd>(
        simd: S,
        x: Self::Register<S>,
        y: Self::Register<S>,
        then: Self::Register<S>,
        otherwise: Self::Register<S>,
    ) -> Self::Register<S>;
    /// The whole registers of a slice, and the numbers that are left.
    #[doc(hidden)]
    fn registers<S: Simd>(x: &[Self]) -> (&[Self::Register<S>], &[Self]);
    #[doc(hidden)]
    fn registers_mut<S: Simd>(x: &mut [Self]) -> (&mut [Self::Register<S>], &mut [Self]);
    /// A register of fewer numbers than it has lanes, and zeros after them.
    #[doc(hidden)]
    fn load_part<S: Simd>(simd: S, x: &[Self]) -> Self::Register<S>;
    /// Stores the first numbers of a register, as many as `to` has room for.
    #[doc(hidden)]
    fn store_part<S: Simd>(simd: S, to: &mut [Self], x: Self::Register<S>);
}

macro_rules! vectorised {
    ($t:ident, $register:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $neg:ident, $mul_add:ident, $sum:ident,
     $smallest:ident, $largest:ident, $min:ident, $max:ident, $abs:ident, $sqrt:ident, $div:ident, $less_than:ident, $select:ident,
     $registers:ident, $registers_mut:ident, $load_part:ident, $store_part:ident) => {
        impl Vectorised for $t {
            const UNIT: Self = 1.0;
            type Register<S: Simd> = S::$register;
            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$register {
                simd.$splat(x)
            }
            #[inline(always)]
            fn add<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$add(x, y)
            }
            #[inline(always)]
            fn sub<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$sub(x, y)
            }
            #[inline(always)]
            fn mul<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$mul(x, y)
            }
            #[inline(always)]
            fn neg<S: Simd>(simd: S, x: S::$register) -> S::$register {
                simd.$neg(x)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, x: S::$register, y: S::$register, z: S::$register) -> S::$register {
                simd.$mul_add(x, y, z)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, x: S::$register) -> Self {
                simd.$sum(x)
            }
            #[inline(always)]
            fn smallest<S: Simd>(simd: S, x: S::$register) -> Self {
                simd.$smallest(x)
            }
            #[inline(always)]
            fn largest<S: Simd>(simd: S, x: S::$register) -> Self {
                simd.$largest(x)
            }
            #[inline(always)]
            fn min<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$min(x, y)
            }
            #[inline(always)]
            fn max<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$max(x, y)
            }
            #[inline(always)]
            fn abs_of<S: Simd>(simd: S, x: S::$register) -> S::$register {
                simd.$abs(x)
            }
            #[inline(always)]
            fn sqrt_of<S: Simd>(simd: S, x: S::$register) -> S::$register {
                simd.$sqrt(x)
            }
            #[inline(always)]
            fn div<S: Simd>(simd: S, x: S::$register, y: S::$register) -> S::$register {
                simd.$div(x, y)
            }
            #[inline(always)]
            fn if_above<S: Simd>(
                simd: S,
                x: S::$register,
                y: S::$register,
                then: S::$register,
                otherwise: S::$register,
            ) -> S::$register {
                simd.$select(simd.$less_than(y, x), then, otherwise)
            }
            #[inline(always)]
            fn registers<S: Simd>(x: &[Self]) -> (&[S::$register], &[Self]) {
                S::$registers(x)
            }
            #[inline(always)]
            fn registers_mut<S: Simd>(x: &mut [Self]) -> (&mut [S::$register], &mut [Self]) {
                S::$registers_mut(x)
            }
            #[inline(always)]
            fn load_part<S: Simd>(simd: S, x: &[Self]) -> S::$register {
                simd.$load_part(x)
            }
            #[inline(always)]
            fn store_part<S: Simd>(simd: S, to: &mut [Self], x: S::$register) {
                simd.$store_part(to, x);
            }
        }
    };
}
vectorised!(
    f32,
    f32s,
    splat_f32s,
    add_f32s,
    sub_f32s,
    mul_f32s,
    neg_f32s,
    mul_add_e_f32s,
    reduce_sum_f32s,
    reduce_min_f32s,
    reduce_max_f32s,
    min_f32s,
    max_f32s,
    abs_f32s,
    sqrt_f32s,
    div_f32s,
    less_than_f32s,
    select_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s
);
vectorised!(
    f64,
    f64s,
    splat_f64s,
    add_f64s,
    sub_f64s,
    mul_f64s,
    neg_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s,
    reduce_min_f64s,
    reduce_max_f64s,
    min_f64s,
    max_f64s,
    abs_f64s,
    sqrt_f64s,
    div_f64s,
    less_than_f64s,
    select_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s
);

/// A register with operators.
#[derive(Clone, Copy)]
pub(crate) struct V<S: Simd, A: Vectorised> {
    pub simd: S,
    pub register: A::Register<S>,
}

impl<S: Simd, A: Vectorised> V<S, A> {
    /// Numbers in a register.
    pub const LANES: usize = size_of::<A::Register<S>>() / size_of::<A>();

    /// The same number in every lane.
    #[inline(always)]
    pub fn splat(simd: S, x: A) -> Self {
        Self { simd, register: A::splat(simd, x) }
    }

    /// `self * y + z`.
    #[inline(always)]
    pub fn mul_add(self, y: Self, z: Self) -> Self {
        Self { simd: self.simd, register: A::mul_add(self.simd, self.register, y.register, z.register) }
    }

    #[inline(always)]
    pub fn sum(self) -> A {
        A::sum(self.simd, self.register)
    }

    #[inline(always)]
    pub fn smallest(self) -> A {
        A::smallest(self.simd, self.register)
    }

    #[inline(always)]
    pub fn largest(self) -> A {
        A::largest(self.simd, self.register)
    }

    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::min(self.simd, self.register, other.register) }
    }

    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::max(self.simd, self.register, other.register) }
    }

    /// 1 in lanes below those of `limit`, else 0.
    #[inline(always)]
    pub fn if_below(self, limit: Self) -> Self {
        limit.if_above(self, Self::splat(self.simd, A::UNIT), Self::splat(self.simd, A::zeroed()))
    }

    /// `then` in lanes above those of `limit`, else `otherwise`.
    #[inline(always)]
    pub fn if_above(self, limit: Self, then: Self, otherwise: Self) -> Self {
        let (simd, register) = (self.simd, self.register);
        Self { simd, register: A::if_above(simd, register, limit.register, then.register, otherwise.register) }
    }

    #[inline(always)]
    pub fn lanes(&self) -> &[A] {
        bytemuck::cast_slice(bytemuck::bytes_of(&self.register))
    }

    #[inline(always)]
    pub fn lanes_mut(&mut self) -> &mut [A] {
        bytemuck::cast_slice_mut(bytemuck::bytes_of_mut(&mut self.register))
    }

    /// `f` of each pair of lanes: for what has no vector instruction.
    #[inline(always)]
    pub fn zip(mut self, other: Self, f: impl Fn(A, A) -> A) -> Self {
        for (x, &y) in self.lanes_mut().iter_mut().zip(other.lanes()) {
            *x = f(*x, y);
        }
        self
    }

    /// The first `count` lanes, and zeros.
    #[inline(always)]
    pub fn first(mut self, count: usize) -> Self {
        self.lanes_mut()[count..].fill(A::zeroed());
        self
    }
}

impl<S: Simd, A: Vectorised> Add for V<S, A> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::add(self.simd, self.register, other.register) }
    }
}

impl<S: Simd, A: Vectorised> Sub for V<S, A> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::sub(self.simd, self.register, other.register) }
    }
}

impl<S: Simd, A: Vectorised> Div for V<S, A> {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::div(self.simd, self.register, other.register) }
    }
}

impl<S: Simd, A: Vectorised> Mul for V<S, A> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self { simd: self.simd, register: A::mul(self.simd, self.register, other.register) }
    }
}

impl<S: Simd, A: Vectorised> Neg for V<S, A> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self { simd: self.simd, register: A::neg(self.simd, self.register) }
    }
}
