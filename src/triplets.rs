//! Losses that choose one negative for each pair of anchor and positive.

use std::fmt::Debug;

use crate::cpu::against::Against;
use crate::cpu::triplets::{self, Chosen};
use crate::mined::{Loss, Set, Shape};
use crate::{Element, Error, Matrix, Reduction, Scalar, Stats};

/// What such a loss has of its own; see [`Loss`].
pub trait ChoosesNegatives: Copy + Debug {
    const NAME: &'static str;
    type Problem: Copy + Debug + Send + 'static;

    fn check(&self, shape: &Shape) -> Result<Self::Problem, Error>;
    fn reduction(&self) -> Reduction;
    fn reduction_of(problem: &Self::Problem) -> Reduction;
    fn at_step(problem: Self::Problem, step: i64) -> Self::Problem {
        let _ = step;
        problem
    }
    fn choose<T: Element>(
        problem: &Self::Problem,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        reference: Option<&Set<'_, T>>,
    ) -> (Against<T::Scalar>, Chosen<T::Scalar>);
}

/// What the sum of the triplets' losses, and their gradient, is divided by.
fn divisor(reduction: Reduction, triplets: u64) -> f64 {
    match reduction {
        Reduction::Mean => triplets.max(1) as f64,
        Reduction::Sum | Reduction::None => 1.0,
    }
}

impl<L: ChoosesNegatives> Loss for L {
    const NAME: &'static str = L::NAME;
    const READS_AGAIN: bool = true;
    type Problem = L::Problem;
    type Found<A: Scalar> = (Against<A>, Chosen<A>);

    fn check(&self, shape: &Shape) -> Result<Self::Problem, Error> {
        ChoosesNegatives::check(self, shape)
    }

    fn reduction(&self) -> Reduction {
        ChoosesNegatives::reduction(self)
    }

    fn at_step(problem: Self::Problem, step: i64) -> Self::Problem {
        <L as ChoosesNegatives>::at_step(problem, step)
    }

    fn find<T: Element>(
        problem: &Self::Problem,
        embeddings: &Matrix<'_, T>,
        labels: &[i64],
        reference: Option<&Set<'_, T>>,
        _: [bool; 2],
    ) -> Self::Found<T::Scalar> {
        L::choose(problem, embeddings, labels, reference)
    }

    fn loss<A: Scalar>(problem: &Self::Problem, (_, chosen): &Self::Found<A>) -> A {
        A::from_f64(chosen.sum / divisor(L::reduction_of(problem), chosen.stats.valid))
    }

    fn losses<A: Scalar>((_, chosen): &Self::Found<A>) -> &[A] {
        &chosen.losses
    }

    fn stats<A: Scalar>((_, chosen): &Self::Found<A>) -> Stats {
        chosen.stats
    }

    fn gradients<T: Element>(
        problem: &Self::Problem,
        (against, chosen): &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        let reduction = L::reduction_of(problem);
        let divisor = (reduction != Reduction::None).then(|| divisor(reduction, chosen.stats.valid));
        triplets::gradients(against, chosen, divisor, upstream, grads);
    }
}

/// The calls on slices that list the triplets.
macro_rules! select_calls {
    ($loss:ident) => {
        impl $loss {
            /// The triplets themselves.
            ///
            /// # Errors
            /// As [`losses`](Self::losses).
            pub fn select<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
            ) -> Result<Triplets<T::Scalar>, $crate::Error> {
                let call = $crate::mined::Call::<T, Self>::new(self, embeddings, labels, None)?;
                let (against, chosen) = call.find([false; 2]);
                Ok(Triplets::new(&against, &chosen))
            }

            /// Likewise, against a reference set, of which the positives and negatives are.
            ///
            /// # Errors
            /// As [`losses_against`](Self::losses_against).
            pub fn select_against<T: $crate::Element>(
                &self,
                embeddings: $crate::Matrix<'_, T>,
                labels: &[i64],
                reference: &$crate::Reference<$crate::Matrix<'_, T>, &[i64]>,
            ) -> Result<Triplets<T::Scalar>, $crate::Error> {
                let call = $crate::mined::Call::<T, Self>::new(self, embeddings, labels, Some(reference))?;
                let (against, chosen) = call.find([false; 2]);
                Ok(Triplets::new(&against, &chosen))
            }
        }
    };
}
pub(crate) use select_calls;
