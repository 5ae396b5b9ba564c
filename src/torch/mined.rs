//! What mined losses on tch tensors share: labels, and statistics that stay on the device.

use tch::{Device, Kind, Tensor};

use super::tensors::{as_in_memory, check_embeddings, with_contiguous_rows};
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

/// Embeddings with contiguous rows, and their labels as contiguous i64.
pub(crate) fn batch(embeddings: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor), Error> {
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
    if !labels.defined() {
        return Err(Error::argument("labels", "a tensor", "an undefined one"));
    }
    let kind = labels.f_kind()?;
    if !matches!(kind, Kind::Int64 | Kind::Int) {
        return Err(Error::argument("labels", "dtype i64 or i32", format!("{kind:?}")));
    }
    let rows = embeddings.size()[0];
    if labels.size() != [rows] {
        return Err(Error::argument("labels", format!("shape [{rows}]"), format!("{:?}", labels.size())));
    }
    if labels.device() != embeddings.device() {
        return Err(Error::argument(
            "labels",
            format!("the device of embeddings, {:?}", embeddings.device()),
            format!("{:?}", labels.device()),
        ));
    }
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
