//! What the tests of all mined losses share: how a loss is called on every backend, the batches, and their bounds.

pub mod batch;
pub mod bounds;
#[cfg(feature = "emulator")]
mod collapsed;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulator")]
mod emulated;
#[cfg(feature = "cuda")]
pub mod launches;
mod oracles;
mod peers;
#[cfg(feature = "emulator")]
mod ranks;
pub mod recorded;
mod records;
#[cfg(feature = "cuda")]
pub mod refusing;
#[cfg(feature = "emulator")]
mod room;

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use tercet::{Call, Element, Matrix, MinedLoss, PerAnchor, Reduction, Reference, Stats};

use crate::support::backends::{Number, Operation};
#[cfg(feature = "cuda")]
use crate::support::devices::TestDevice;
use crate::support::poison;
use crate::support::property::{Limits, Property, Worst};
use batch::{Batch, Data};

/// One call of the loss L.
#[derive(Clone, Debug)]
pub struct Case<L> {
    pub loss: L,
    pub batch: Batch,
}

/// What a backend returned for a case: `S` is what it says that the loss selected.
pub struct Output<T: Element, S> {
    pub selected: S,
    /// One for each anchor; none for a loss without them.
    pub losses: Vec<T::Scalar>,
    pub stats: Stats,
    /// The reduced loss and the gradients for an upstream of 1; absent for `Reduction::None`.
    pub reduced: Option<(T::Scalar, [Vec<T>; 2])>,
    /// Gradients for the case's upstream, with respect to the anchors and to the reference set.
    pub scaled_grads: [Vec<T>; 2],
}

/// A mined loss as these tests see it.
pub trait Mined: MinedLoss + Copy + Debug + Send + Sync + 'static {
    const STEM: &'static str;
    const SEQUENCE: u8;
    type Selected: Send;

    fn cases(limits: Limits) -> BoxedStrategy<Case<Self>>;
    fn reduction(&self) -> Reduction;
    fn on_cpu<T: Number>(case: &Case<Self>, data: &Data<T>) -> Output<T, Self::Selected>;
    /// How many numbers a device writes of what it has chosen.
    #[cfg(feature = "cuda")]
    fn chosen<T: Element>(data: &Data<T>) -> usize {
        let _ = data;
        0
    }
    /// What these numbers say.
    #[cfg(feature = "cuda")]
    fn selected<T: Number>(case: &Case<Self>, data: &Data<T>, chosen: [Vec<u32>; 2]) -> Self::Selected;
    fn compare<T: Number>(
        case: &Case<Self>,
        data: &Data<T>,
        output: &Output<T, Self::Selected>,
        worst: &mut Worst,
    ) -> TestCaseResult;
}

impl<L: Mined> Operation for L {
    const STEM: &'static str = <L as Mined>::STEM;
    type Case = Case<L>;
    type Data<T: Number> = Data<T>;
    type Output<T: Number> = Output<T, L::Selected>;

    #[cfg(feature = "emulator")]
    fn seed(case: &Case<L>) -> u64 {
        case.batch.seed
    }

    fn on_cpu<T: Number>(case: &Case<L>, data: &Data<T>) -> Output<T, L::Selected> {
        <L as Mined>::on_cpu(case, data)
    }

    #[cfg(feature = "cuda")]
    fn on_device<T: Number, D: TestDevice>(device: &D, case: &Case<L>, data: &Data<T>) -> Output<T, L::Selected> {
        let batch = launches::OnDevice::new(device, &case.batch, data);
        let one = [1.0];
        let per_row = case.loss.reduction() == Reduction::None;
        let upstreams = if per_row { vec![&data.upstream[..]] } else { vec![&data.upstream[..], &one] };
        let mut mined = launches::mine::<T, _, _>(device, &case.loss, &batch, L::chosen(data), &upstreams);
        let wide = |x: f32| T::Scalar::from_f64(f64::from(x));
        let reduced = (!per_row).then(|| (wide(mined.loss), mined.grads.remove(1)));
        Output {
            selected: L::selected(case, data, mined.chosen),
            losses: mined.losses.into_iter().map(wide).collect(),
            stats: mined.stats,
            reduced,
            scaled_grads: mined.grads.remove(0),
        }
    }
}

impl<L: Mined> Property for L {
    const SEQUENCE: u8 = <L as Mined>::SEQUENCE;

    fn cases(limits: Limits) -> BoxedStrategy<Case<L>> {
        <L as Mined>::cases(limits)
    }
    fn data<T: Number>(case: &Case<L>) -> Data<T> {
        Data::new(&case.batch, case.loss.reduction())
    }
    fn compare<T: Number>(
        case: &Case<L>,
        data: &Data<T>,
        output: &Output<T, L::Selected>,
        worst: &mut Worst,
    ) -> TestCaseResult {
        prop_assert!(!output.stats.too_many_pairs, "there was room");
        <L as Mined>::compare(case, data, output, worst)
    }
}

/// Calls of a case on slices.
pub struct OnSlices<'a, L, T> {
    loss: L,
    embeddings: Matrix<'a, T>,
    labels: &'a [i64],
    set: Option<Reference<Matrix<'a, T>, &'a [i64]>>,
}

impl<'a, L: MinedLoss + Copy, T: Number> OnSlices<'a, L, T> {
    pub fn new(loss: L, batch: &Batch, data: &'a Data<T>) -> Self {
        Self { loss, embeddings: data.matrix(batch), labels: &data.labels, set: data.set() }
    }

    /// A call, against the reference set if there is one.
    pub fn call(&self) -> Call<'_, L, Matrix<'a, T>> {
        let call = Call::new(&self.loss, self.embeddings, self.labels);
        match &self.set {
            Some(set) => call.against(set),
            None => call,
        }
    }

    /// The number for each anchor.
    pub fn losses(&self) -> Vec<T::Scalar>
    where
        L: PerAnchor,
    {
        let mut losses = poison(self.labels.len());
        self.call().losses(&mut losses).unwrap();
        losses
    }

    /// Room for the gradient of the anchors, and for that of the reference set: empty if there is none.
    fn grads(&self) -> [Vec<T>; 2] {
        let size = |x: &Matrix<'_, T>| x.rows() * x.dim();
        [poison(size(&self.embeddings)), poison(self.set.as_ref().map_or(0, |set| size(&set.embeddings)))]
    }

    /// The gradients for an upstream. A batch by itself has one.
    pub fn grads_of(&self, upstream: &[f64]) -> [Vec<T>; 2] {
        let upstream = Data::<T>::scalars(upstream);
        let mut grads = self.grads();
        let [grad, of_set] = &mut grads;
        match &self.set {
            None => self.call().grad(&upstream, grad).unwrap(),
            Some(_) => self.call().grads(&upstream, [Some(grad), Some(of_set)]).unwrap(),
        }
        grads
    }

    /// The reduced loss, which is the same with and without gradients, and the gradients for an upstream of 1.
    pub fn reduced(&self) -> (T::Scalar, [Vec<T>; 2]) {
        let mut grads = self.grads();
        let [grad, of_set] = &mut grads;
        let loss = match &self.set {
            None => self.call().loss_and_grad(grad).unwrap(),
            Some(_) => self.call().loss_and_grads([Some(grad), Some(of_set)]).unwrap(),
        };
        assert_eq!(loss, self.call().loss().unwrap(), "with and without gradients");
        assert_eq!(loss, self.call().loss_with_stats().unwrap().0, "with and without statistics");
        (loss, grads)
    }

    pub fn stats(&self) -> Stats {
        self.call().loss_with_stats().unwrap().1
    }
}
