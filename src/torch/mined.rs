//! What mined losses on tch tensors share: labels, and statistics that stay on the device.

use tch::{Device, Kind, Tensor};

use super::tensors::{OfKind, as_in_memory, check_embeddings, check_per_row, with_contiguous_rows, with_element};
use crate::{Error, Stats};

/// A loss, and what it found in the batch.
#[derive(Debug)]
pub struct WithStats {
    /// As of `forward`.
    pub loss: Tensor,
    /// Scalars on the loss's device: reading one waits for the device, having them does not.
    pub stats: TensorStats,
}

/// [`Stats`] as scalar tensors.
#[derive(Debug)]
pub struct TensorStats {
    /// i64.
    pub valid: Tensor,
    /// i64.
    pub active: Tensor,
    /// f64.
    pub mean_positive_distance: Tensor,
    /// f64.
    pub mean_negative_distance: Tensor,
}

impl TensorStats {
    /// On the CPU.
    pub(crate) fn of(stats: &Stats) -> Self {
        Self {
            valid: Tensor::from(stats.valid as i64),
            active: Tensor::from(stats.active as i64),
            mean_positive_distance: Tensor::from(stats.mean_positive_distance),
            mean_negative_distance: Tensor::from(stats.mean_negative_distance),
        }
    }

    /// From a device's f64: valid, active, and the sums of both distances.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_sums(sums: &Tensor) -> Result<Self, Error> {
        let count = |i: i64| sums.f_get(i)?.f_to_kind(Kind::Int64);
        let divisor = sums.f_get(0)?.f_clamp_min(1.0)?;
        let mean = |i: i64| sums.f_get(i)?.f_div(&divisor);
        Ok(Self {
            valid: count(0)?,
            active: count(1)?,
            mean_positive_distance: mean(2)?,
            mean_negative_distance: mean(3)?,
        })
    }
}

/// A mined loss on tensors of each device and dtype.
pub(crate) trait Mined {
    /// Its options and shape, checked.
    type Problem;

    fn problem(&self, rows: usize, dim: usize, labels: usize) -> Result<Self::Problem, Error>;

    /// `rows` are the embeddings with contiguous rows.
    fn on_cpu<T: OfKind>(
        problem: Self::Problem,
        embeddings: &Tensor,
        rows: &Tensor,
        labels: &Tensor,
    ) -> Result<WithStats, Error>
    where
        T::Scalar: OfKind;

    #[cfg(feature = "cuda")]
    fn on_cuda<T: OfKind>(
        problem: Self::Problem,
        ordinal: usize,
        embeddings: &Tensor,
        rows: &Tensor,
        labels: &Tensor,
    ) -> Result<WithStats, Error>;
}

/// Checks the arguments and runs the loss where they are.
pub(crate) fn forward<L: Mined>(loss: &L, embeddings: &Tensor, labels: &Tensor) -> Result<WithStats, Error> {
    let (rows, labels) = batch(embeddings, labels)?;
    let problem = loss.problem(rows.size()[0] as usize, rows.size()[1] as usize, labels.numel())?;
    match embeddings.device() {
        Device::Cpu => with_element!(embeddings.kind(), T => L::on_cpu::<T>(problem, embeddings, &rows, &labels)),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => match embeddings.kind() {
            Kind::Half => L::on_cuda::<half::f16>(problem, ordinal, embeddings, &rows, &labels),
            Kind::BFloat16 => L::on_cuda::<half::bf16>(problem, ordinal, embeddings, &rows, &labels),
            _ => L::on_cuda::<f32>(problem, ordinal, embeddings, &rows, &labels),
        },
        device => unreachable!("checked: {device:?}"),
    }
}

/// Rows, and labels where they are looked at, as kernels take them; the tensors must outlive the launches.
#[cfg(feature = "cuda")]
pub(crate) fn input(rows: &Tensor, labels: Option<&Tensor>) -> crate::cuda::batch::Input {
    use crate::torch::launcher::address;
    let labels = labels.map_or(0, address);
    crate::cuda::batch::Input { x: address(rows), stride: super::tensors::row_stride(rows), labels }
}

/// Embeddings with contiguous rows, and their labels as contiguous i64.
fn batch(embeddings: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor), Error> {
    check_embeddings("embeddings", embeddings)?;
    if embeddings.device() != Device::Cpu {
        if cfg!(not(feature = "cuda")) {
            return Err(Error::argument(
                "embeddings",
                "a CPU tensor (built without the cuda feature)",
                "a CUDA tensor",
            ));
        }
        if embeddings.kind() == Kind::Double {
            return Err(Error::argument("embeddings", "dtype f32, f16 or bf16 on a CUDA device", "Double"));
        }
    }
    let integers = ("i64 or i32", (|kind| matches!(kind, Kind::Int64 | Kind::Int)) as fn(Kind) -> bool);
    check_per_row("labels", labels, integers, "embeddings", embeddings)?;
    let labels = as_in_memory(labels)?.f_to_kind(Kind::Int64)?.f_contiguous()?;
    Ok((with_contiguous_rows(embeddings)?, labels))
}

/// The memory of checked labels on the CPU.
pub(crate) fn labels_of(labels: &Tensor) -> &[i64] {
    assert_eq!((labels.kind(), labels.device(), labels.is_contiguous()), (Kind::Int64, Device::Cpu, true));
    match labels.numel() {
        0 => &[],
        // SAFETY: libtorch keeps `numel` i64 in memory while the tensor lives; nobody may write to it meanwhile.
        len => unsafe { std::slice::from_raw_parts(labels.data_ptr().cast::<i64>().cast_const(), len) },
    }
}

/// A scalar, or one number a row, for embeddings like these.
pub(crate) fn empty_output(per_row: bool, like: &Tensor) -> Result<Tensor, Error> {
    let kind = if like.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let shape: &[i64] = if per_row { &like.size()[..1] } else { &[] };
    Ok(Tensor::f_empty(shape, (kind, like.device()))?)
}
