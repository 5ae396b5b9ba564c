//! Losses that choose one negative for each pair of anchor and positive.

use std::fmt::Debug;

use crate::cpu::comparison::Comparison;
use crate::cpu::triplets::{self, ChosenTriplets};
use crate::mined::{Loss, Slices};
use crate::problem::{Options, Problem, Sizes};
use crate::{Element, Error, Scalar, Stats};

/// What a loss that chooses one negative for each pair has of its own; the rest of [`Loss`] is the same for all of
/// them.
pub trait ChoosesNegatives: Copy + Debug + Send + Sync + 'static {
    /// The loss's name in error messages and in autograd graphs.
    const NAME: &'static str;
    /// The options that this loss alone has.
    type Extra: Copy + Debug + Send + Sync + 'static;

    fn options(&self) -> Options<Self::Extra>;
    /// Checks of the options that this loss alone has.
    fn check(&self, sizes: &Sizes) -> Result<(), Error> {
        let _ = sizes;
        Ok(())
    }
    /// Chooses the triplets of a batch on the CPU, and computes their losses.
    fn choose<T: Element>(
        problem: &Problem<Self::Extra>,
        comparison: &Comparison<T::Scalar>,
        slices: &Slices<'_, T>,
    ) -> ChosenTriplets<T::Scalar>;
}

impl<L: ChoosesNegatives> Loss for L {
    const NAME: &'static str = L::NAME;
    const READS_AGAIN_ON_DEVICE: bool = true;
    type Extra = L::Extra;
    type Found<A: Scalar> = (Comparison<A>, ChosenTriplets<A>);

    fn options(&self) -> Options<Self::Extra> {
        ChoosesNegatives::options(self)
    }

    fn check(&self, sizes: &Sizes) -> Result<(), Error> {
        ChoosesNegatives::check(self, sizes)
    }

    fn find<T: Element>(
        problem: &Problem<Self::Extra>,
        slices: &Slices<'_, T>,
        _: [bool; 2],
    ) -> Self::Found<T::Scalar> {
        let comparison = Comparison::new(problem, slices);
        let chosen = L::choose(problem, &comparison, slices);
        (comparison, chosen)
    }

    fn sum<A: Scalar>((_, chosen): &Self::Found<A>) -> f64 {
        chosen.sum
    }

    fn losses<A: Scalar>((_, chosen): &Self::Found<A>) -> &[A] {
        &chosen.losses
    }

    fn stats<A: Scalar>((_, chosen): &Self::Found<A>) -> Stats {
        chosen.stats
    }

    fn gradients<T: Element>(
        problem: &Problem<Self::Extra>,
        (comparison, chosen): &Self::Found<T::Scalar>,
        upstream: Option<&[T::Scalar]>,
        grads: [Option<&mut [T]>; 2],
    ) {
        triplets::gradients(problem, comparison, chosen, upstream, grads);
    }
}
