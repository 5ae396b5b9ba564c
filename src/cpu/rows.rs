//! One row of each of three matrices, looked at together: the counterpart of kernels/rows.cuh.
//!
//! Everything here is inlined into a function that [`pulp::Arch`] compiles for the processor it finds; sums run over
//! [`LANES`] running sums, which the compiler keeps in vector registers, always added up in the same order.

use crate::{Element, Scalar, cpu::store};

/// Running sums per sum.
const LANES: usize = 16;

/// Elements of a row whose gradients are computed at once, in the first-level cache.
const STEP: usize = 64;

/// Row `b` of three matrices.
pub(crate) struct Rows<'a, A> {
    pub x: [&'a [A]; 3],
}

/// Where the gradients of the row go.
pub(crate) struct Targets<'a, T> {
    pub to: [Option<&'a mut [T]>; 3],
    /// Past the cache.
    pub stream: bool,
}

impl<T> Targets<'_, T> {
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.to.iter().any(Option::is_some)
    }
}

impl<A: Scalar> Rows<'_, A> {
    /// The sums over the row of the K numbers that `f` makes of each triple of elements.
    #[inline(always)]
    pub fn sums<const K: usize>(&self, f: impl Fn([A; 3]) -> [A; K]) -> [A; K] {
        let mut sums = [[A::ZERO; LANES]; K];
        let [a, p, n] = self.x;
        let whole = a.len() - a.len() % LANES;
        let triples =
            a[..whole].chunks_exact(LANES).zip(p[..whole].chunks_exact(LANES)).zip(n[..whole].chunks_exact(LANES));
        for ((a, p), n) in triples {
            for lane in 0..LANES {
                let terms = f([a[lane], p[lane], n[lane]]);
                for k in 0..K {
                    sums[k][lane] += terms[k];
                }
            }
        }
        for (lane, ((&a, &p), &n)) in a[whole..].iter().zip(&p[whole..]).zip(&n[whole..]).enumerate() {
            let terms = f([a, p, n]);
            for k in 0..K {
                sums[k][lane] += terms[k];
            }
        }
        sums.map(|mut lanes| {
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    lanes[lane] = lanes[lane] + lanes[lane + width];
                }
                width /= 2;
            }
            lanes[0]
        })
    }

    /// The maxima over the row, likewise, of numbers that are 0 or more. NaN wins.
    #[inline(always)]
    pub fn maxima<const K: usize>(&self, f: impl Fn([A; 3]) -> [A; K]) -> [A; K] {
        let mut maxima = [A::ZERO; K];
        for ((&a, &p), &n) in self.x[0].iter().zip(self.x[1]).zip(self.x[2]) {
            let terms = f([a, p, n]);
            for k in 0..K {
                let term = terms[k];
                #[allow(clippy::eq_op, reason = "NaN")]
                if term > maxima[k] || term != term {
                    maxima[k] = term;
                }
            }
        }
        maxima
    }

    /// Writes the three numbers that `f` makes of each triple of elements to the targets.
    #[inline(always)]
    pub fn map<T: Element<Scalar = A>>(&self, targets: &mut Targets<'_, T>, f: impl Fn([A; 3]) -> [A; 3]) {
        let [a, p, n] = self.x;
        let mut from = 0;
        while from < a.len() {
            let len = STEP.min(a.len() - from);
            let (a, p, n) = (&a[from..from + len], &p[from..from + len], &n[from..from + len]);
            let mut g = [[A::ZERO; STEP]; 3];
            for i in 0..len {
                let y = f([a[i], p[i], n[i]]);
                g[0][i] = y[0];
                g[1][i] = y[1];
                g[2][i] = y[2];
            }
            for (to, g) in targets.to.iter_mut().zip(&g) {
                if let Some(to) = to {
                    put(&g[..len], &mut to[from..from + len], targets.stream);
                }
            }
            from += len;
        }
    }
}

/// Rounds and stores a step of one gradient row.
#[inline(always)]
fn put<T: Element>(from: &[T::Scalar], to: &mut [T], stream: bool) {
    match (T::as_scalars_mut(to), stream) {
        (Some(to), true) => store::stream(from, to),
        (Some(to), false) => to.copy_from_slice(from),
        (None, _) => {
            let mut rounded = [T::default(); STEP];
            let rounded = &mut rounded[..from.len()];
            T::narrow(from, rounded);
            if stream { store::stream(rounded, to) } else { to.copy_from_slice(rounded) }
        }
    }
}
