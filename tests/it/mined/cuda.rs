//! Calls of mined losses on cudarc slices: they give what the launches beneath them give, and refuse what does not fit.

use half::{bf16, f16};
use tercet::cuda::CudaMatrix;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Own, Reduction, Reference,
};

use super::batch::{Batch, Content, Data, Labelling, OwnRows, Set};
use super::launches::{OnDevice, mine};
use crate::support::cuda::Cuda;
use crate::support::poison;

fn batch(reference: Option<Set>) -> Batch {
    let (content, labelling) = (Content::Uniform { scale: 1.0 }, Labelling::Random { each: 4 });
    Batch { rows: 70, dim: 33, gap: 3, offset: 5, content, labelling, seed: 1, reference }
}

/// Calls on cudarc slices give the same bits as the launches beneath them.
macro_rules! check {
    ($cuda:expr, $loss:expr, $($t:ty),*) => {$({
        let (cuda, loss) = ($cuda, $loss);
        let stream = cuda.stream();
        for reference in [None, Some(Set { rows: 90, own: OwnRows::Rows })] {
            let batch = batch(reference);
            let data = Data::<$t>::new(&batch, Reduction::Mean);
            let upstreams = [&[1.0][..], &data.upstream];
            let expected = mine::<$t, _, _>(cuda, &loss, &OnDevice::new(cuda, &batch, &data), 0, &upstreams);
            assert!(expected.loss > 0.0, "{loss:?}");

            let upload = |x: &[$t]| stream.clone_htod(x).unwrap();
            let (x, labels) = (upload(&data.laid_out), stream.clone_htod(&data.labels).unwrap());
            let rows = || CudaMatrix::strided(x.slice(batch.offset..), batch.rows, batch.dim, batch.dim + batch.gap);
            let rows = || rows().unwrap();
            let sizes = [data.exact.len(), data.reference.as_ref().map_or(1, |other| other.exact.len())];
            let mut grads = sizes.map(|len| upload(&poison(len)));
            let mut scaled = sizes.map(|len| upload(&poison(len)));
            let mut out = stream.clone_htod(&[f32::NAN]).unwrap();
            let upstream = stream.clone_htod(&[data.upstream[0] as f32]).unwrap();
            let ([grad, grad_of_set], [to, to_set]) = (&mut grads, &mut scaled);
            match &data.reference {
                None => {
                    loss.on(rows(), &labels).loss_and_grad(stream, &mut out, grad).unwrap();
                    loss.on(rows(), &labels).grad(stream, &upstream, to).unwrap();
                }
                Some(other) => {
                    let of_set = &other.batch;
                    let (y, their) = (upload(&other.laid_out), stream.clone_htod(&other.labels).unwrap());
                    let Own::Rows(own) = &other.own else { unreachable!("the set above") };
                    let own = stream.clone_htod(own).unwrap();
                    let stride = of_set.dim + of_set.gap;
                    let embeddings = CudaMatrix::strided(y.slice(of_set.offset..), of_set.rows, of_set.dim, stride);
                    let reference = Reference { embeddings: embeddings.unwrap(), labels: &their, own: Own::Rows(&own) };
                    let both = [Some(grad), Some(grad_of_set)];
                    loss.on(rows(), &labels).against(&reference).loss_and_grads(stream, &mut out, both).unwrap();
                    let both = [Some(to), Some(to_set)];
                    loss.on(rows(), &labels).against(&reference).grads(stream, &upstream, both).unwrap();
                }
            }
            assert_eq!(stream.clone_dtoh(&out).unwrap(), [expected.loss], "{loss:?}");
            for (got, expected) in [grads, scaled].iter().zip(&expected.grads) {
                for (got, expected) in got.iter().zip(expected).filter(|(_, expected)| !expected.is_empty()) {
                    assert!(stream.clone_dtoh(got).unwrap() == *expected, "{loss:?}");
                }
            }
        }
    })*};
}

#[test]
fn slices_give_what_launches_give() {
    let Some(cuda) = &Cuda::first("slices_give_what_launches_give") else { return };
    check!(cuda, BatchAllTripletLoss { margin: 1.0, ..Default::default() }, f32, f16, bf16);
    check!(cuda, BatchHardTripletLoss { margin: 5.0, ..Default::default() }, f32, f16, bf16);
    check!(cuda, BatchSemiHardTripletLoss { margin: 5.0, ..Default::default() }, f32, f16, bf16);
    check!(cuda, BatchNegativeTripletLoss { margin: 1.0, ..Default::default() }, f32, f16, bf16);
    check!(cuda, BatchContrastiveLoss { margin: 5.0, ..Default::default() }, f32, f16, bf16);
}

/// Lengths and dtypes are checked before anything is copied or launched.
#[test]
fn wrong_lengths_and_dtypes_are_refused() {
    let Some(cuda) = &Cuda::first("wrong_lengths_and_dtypes_are_refused") else { return };
    let (stream, loss) = (cuda.stream(), BatchHardTripletLoss::default());
    let (x, labels) = (stream.clone_htod(&[0f32; 12]).unwrap(), stream.clone_htod(&[0i64, 0, 1]).unwrap());
    let (mut one, mut two) = (stream.clone_htod(&[0f32]).unwrap(), stream.clone_htod(&[0f32; 2]).unwrap());
    let rows = |dim| CudaMatrix::new(&x, dim).unwrap();
    let text = |result: Result<(), tercet::Error>| result.unwrap_err().to_string();
    let got = text(loss.on(rows(4), &labels).loss(stream, &mut two));
    assert_eq!(got, "loss: expected 1 numbers, got 2");
    let got = text(loss.on(rows(4), &labels).loss_and_grad(stream, &mut one, &mut two));
    assert_eq!(got, "grad: expected 12 numbers, got 2");
    let got = text(loss.on(rows(3), &labels).loss(stream, &mut one));
    assert_eq!(got, "labels: expected 4, one for each embedding, got 3");
    let wide = stream.clone_htod(&[0f64; 12]).unwrap();
    let got = text(loss.on(CudaMatrix::new(&wide, 4).unwrap(), &labels).loss(stream, &mut one));
    assert_eq!(got, "embeddings: expected f32, f16 or bf16 (on the CPU also f64), got f64");
}
