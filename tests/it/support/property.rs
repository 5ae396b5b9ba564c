//! The property test that every operation takes on every backend: dtype x distance x option against the f64 oracle, with
//! bounds that follow from the arithmetic. An operation says in `<stem>/property.rs` what its cases are and how exact its
//! results must be.

use std::cell::RefCell;
use std::marker::PhantomData;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::backends::{Backend, EachDtype, Number, Operation, each_dtype};
use super::cases;

/// What a backend limits random cases to.
#[derive(Clone, Copy)]
pub struct Limits {
    /// The largest number of rows.
    pub rows: usize,
    /// Whether products may have less than full precision, as they may on devices alone.
    pub any_precision: bool,
}

/// An operation with the cases and bounds of its property test.
pub trait Property: Operation {
    /// Which random cases are drawn without `TERCET_SEED`.
    const SEQUENCE: u8;

    fn cases(limits: Limits) -> BoxedStrategy<Self::Case>;
    fn data<T: Number>(case: &Self::Case) -> Self::Data<T>;
    /// Whether the results have bounds; other cases are not counted.
    fn has_bounds<T: Number>(case: &Self::Case, data: &Self::Data<T>) -> bool {
        let _ = (case, data);
        true
    }
    /// Fails if a result is farther from the oracle than its bound.
    fn compare<T: Number>(
        case: &Self::Case,
        data: &Self::Data<T>,
        output: &Self::Output<T>,
        worst: &mut Worst,
    ) -> TestCaseResult;
}

/// The largest ratio of an error to its bound, and the number of cases.
#[derive(Default)]
pub struct Worst {
    cases: usize,
    ratio: f64,
}

impl Worst {
    /// Fails if `actual` is NaN or differs from `expected` by more than `bound`.
    pub fn check(&mut self, what: impl Fn() -> String, actual: f64, expected: f64, bound: f64) -> TestCaseResult {
        let err = (actual - expected).abs();
        self.ratio = self.ratio.max(err / bound);
        prop_assert!(err <= bound, "{}: {actual} for {expected}, error {err:e}, bound {bound:e}", what());
        Ok(())
    }

    /// The largest ratio of an error to its bound so far.
    #[cfg(feature = "emulator")]
    pub fn ratio(&self) -> f64 {
        self.ratio
    }
}

/// Tries `count` cases for each dtype.
pub fn agrees_with_the_oracle<P: Property, B: Backend>(backend: &B, count: u32) {
    struct Cases<'a, P, B> {
        backend: &'a B,
        count: u32,
        property: PhantomData<P>,
    }
    impl<P: Property, B: Backend> EachDtype for Cases<'_, P, B> {
        type Result = ();
        fn of<T: Number>(&self) {
            let worst = RefCell::new(Worst::default());
            let what = format!("{} on {} {}", P::STEM, B::NAME, T::NAME);
            let limits = Limits { rows: B::LARGEST, any_precision: B::IS_DEVICE };
            cases::check(&what, P::SEQUENCE, self.count, &P::cases(limits), &|case| {
                let data = P::data::<T>(&case);
                prop_assume!(P::has_bounds(&case, &data));
                let output = self.backend.run::<P, T>(&case, &data);
                let mut worst = worst.borrow_mut();
                worst.cases += 1;
                P::compare(&case, &data, &output, &mut worst)
            });
            let Worst { cases, ratio } = worst.into_inner();
            println!("{what}: {cases} cases, worst error / bound {ratio:.3}");
        }
    }
    each_dtype::<P, B, _>(&Cases { backend, count, property: PhantomData::<P> });
}

/// The tests of an operation's property, on each backend with so many cases for each dtype. A CUDA device takes as many as
/// the CPU.
macro_rules! property_tests {
    ($operation:ty, cpu: $cpu:literal, emulator: $emulator:literal, detector: $detector:literal) => {
        #[test]
        fn cpu_agrees_with_the_oracle() {
            use crate::support::{backends::Cpu, property::agrees_with_the_oracle};
            agrees_with_the_oracle::<$operation, _>(&Cpu, $cpu);
        }

        #[cfg(feature = "cuda")]
        #[test]
        fn cuda_agrees_with_the_oracle() {
            use crate::support::{backends::Operation, cuda::Cuda, property::agrees_with_the_oracle};
            if let Some(cuda) =
                Cuda::first(&format!("{}: cuda_agrees_with_the_oracle", <$operation as Operation>::STEM))
            {
                agrees_with_the_oracle::<$operation, _>(&cuda, $cpu);
            }
        }

        #[cfg(feature = "emulator")]
        #[test]
        fn the_emulator_agrees_with_the_oracle() {
            use crate::support::{emulated::Emulated, property::agrees_with_the_oracle};
            Emulated::<false>::takes::<$operation>(|emulator| {
                agrees_with_the_oracle::<$operation, _>(emulator, $emulator);
            });
        }

        #[cfg(feature = "emulator")]
        #[test]
        fn the_detector_agrees_with_the_oracle() {
            use crate::support::{emulated::Emulated, property::agrees_with_the_oracle};
            Emulated::<true>::takes::<$operation>(|emulator| {
                agrees_with_the_oracle::<$operation, _>(emulator, $detector);
            });
        }
    };
}
pub(crate) use property_tests;
