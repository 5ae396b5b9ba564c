//! `tercet::pairwise_distance`: the distances between all rows of two matrices.
//!
//! Its second result is what the backward pass takes beside the matrices and the distances; on a CUDA device it is empty.

use tercet::internal::{PairwiseUpstream, pairwise_gradients, pairwise_near_bytes, pairwise_pass};
use tercet::{Error, PairwiseDistance};

use crate::mined::wants;
use crate::operator::{Operator, Stack, nothing};
use crate::options::Options;
use crate::tensor::{Dtype, InTensors, OfDtype, Tensor, check_device, check_embeddings, with_element, wrong};

/// Both matrices, checked and with contiguous rows.
fn checked(x: &Tensor, y: &Tensor) -> Result<[Tensor; 2], Error> {
    check_embeddings("x", x, false)?;
    check_embeddings("y", y, false)?;
    if y.dtype() != x.dtype() {
        return Err(wrong("y", format!("dtype {}, as x", x.dtype().name()), y.dtype().name()));
    }
    check_device("y", y, "x", x)?;
    Ok([x.with_contiguous_rows()?, y.with_contiguous_rows()?])
}

#[cfg(feature = "cuda")]
fn on_device(rows: &[Tensor; 2]) -> ([[usize; 2]; 2], [tercet::internal::Input; 2]) {
    let shapes = rows.each_ref().map(|rows| [rows.size(0), rows.size(1)]);
    let input = |rows: &Tensor| tercet::internal::Input { x: rows.address(), stride: rows.row_stride(), labels: 0 };
    (shapes, rows.each_ref().map(input))
}

/// Runs `$body` for a dtype that the kernels have.
#[cfg(feature = "cuda")]
macro_rules! with_element_of_kernels {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            Dtype::Float16 => {
                type $T = half::f16;
                $body
            }
            Dtype::Bfloat16 => {
                type $T = half::bf16;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

pub struct Forward {
    x: Tensor,
    y: Tensor,
    op: PairwiseDistance,
}

impl Operator for Forward {
    fn name() -> String {
        "pairwise_distance".into()
    }

    fn schema() -> String {
        format!("(Tensor x, Tensor y, {}) -> (Tensor, Tensor)", PairwiseDistance::schema())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let (x, y) = (stack.tensor(), stack.tensor());
        Ok(Self { x, y, op: PairwiseDistance::take(stack)? })
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let rows = checked(&self.x, &self.y)?;
        let sizes = [rows[0].size(0), rows[1].size(0)];
        let (dtype, device) = (rows[0].dtype(), rows[0].device());
        let mut to = Tensor::empty(&sizes, dtype.of_losses(), device)?;
        match device.is_cpu() {
            true => {
                let mut near = Tensor::empty(&[pairwise_near_bytes(sizes)], Dtype::Uint8, device)?;
                with_element!(dtype, T => distances_on_cpu::<T>(&self.op, &rows, &mut to, &mut near))?;
                Ok(vec![to, near])
            }
            #[cfg(feature = "cuda")]
            false => {
                let (shapes, inputs) = on_device(&rows);
                let launcher = crate::launcher::PyTorchLauncher::current(device)?;
                let op = (&self.op, self.op.precision.into());
                with_element_of_kernels!(dtype, T => {
                    // SAFETY: checked tensors of T on this device, and a contiguous result of their sizes. PyTorch's allocator
                    // keeps memory for this stream's work until the stream has done it.
                    unsafe {
                        tercet::internal::pairwise_distance::<T, _>(op, &launcher, shapes, &inputs, to.address())?
                    }
                });
                Ok(vec![to, nothing(Dtype::Uint8, &rows[0])?])
            }
            #[cfg(not(feature = "cuda"))]
            false => Err(wrong("x", "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
    }
}

fn distances_on_cpu<T: OfDtype>(
    op: &PairwiseDistance,
    rows: &[Tensor; 2],
    to: &mut Tensor,
    near: &mut Tensor,
) -> Result<(), Error> {
    pairwise_pass::<T>(op, [rows[0].matrix()?, rows[1].matrix()?], to.slice_mut(), near.slice_mut())
}

pub struct Backward {
    upstream: Tensor,
    x: Tensor,
    y: Tensor,
    distances: Tensor,
    near: Tensor,
    wants: [bool; 2],
    op: PairwiseDistance,
}

impl Operator for Backward {
    fn name() -> String {
        "pairwise_distance_backward".into()
    }

    fn schema() -> String {
        let tensors = "Tensor upstream, Tensor x, Tensor y, Tensor distances, Tensor near, int wants";
        format!("({tensors}, {}) -> (Tensor, Tensor)", PairwiseDistance::schema())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let [upstream, x, y, distances, near] = std::array::from_fn(|_| stack.tensor());
        let wants = wants(stack.int());
        Ok(Self { upstream, x, y, distances, near, wants, op: PairwiseDistance::take(stack)? })
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let rows = checked(&self.x, &self.y)?;
        let (dtype, device) = (rows[0].dtype(), rows[0].device());
        let sizes = rows.each_ref().map(|rows| rows.size(0) as i64);
        for (name, matrix) in [("upstream", &self.upstream), ("distances", &self.distances)] {
            if matrix.dtype() != dtype.of_losses() || matrix.sizes() != sizes {
                let expected = format!("shape {sizes:?} and dtype {}", dtype.of_losses().name());
                return Err(wrong(name, expected, format!("{:?} and {}", matrix.sizes(), matrix.dtype().name())));
            }
            check_device(name, matrix, "x", &rows[0])?;
        }
        let mut grads = [None, None];
        for ((grad, wanted), rows) in grads.iter_mut().zip(self.wants).zip(&rows) {
            if wanted {
                *grad = Some(Tensor::empty(&[rows.size(0), rows.size(1)], dtype, device)?);
            }
        }
        match device.is_cpu() {
            true => with_element!(dtype, T => self.on_cpu::<T>(&rows, &mut grads))?,
            #[cfg(feature = "cuda")]
            false => {
                let (shapes, inputs) = on_device(&rows);
                let upstream = self.upstream.contiguous()?;
                let to = grads.each_ref().map(|grad| grad.as_ref().map_or(0, Tensor::address));
                let launcher = crate::launcher::PyTorchLauncher::current(device)?;
                let op = (&self.op, self.op.precision.into());
                with_element_of_kernels!(dtype, T => {
                    // SAFETY: as in the forward pass; the upstream gradient is contiguous and of the result's sizes.
                    unsafe {
                        tercet::internal::pairwise_distance_backward::<T, _>(
                            op, &launcher, shapes, &inputs, upstream.address(), to,
                        )?
                    }
                });
            }
            #[cfg(not(feature = "cuda"))]
            false => return Err(wrong("x", "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
        grads.into_iter().map(|grad| grad.map_or_else(|| nothing(dtype, &rows[0]), Ok)).collect()
    }
}

impl Backward {
    fn on_cpu<T: OfDtype>(&self, rows: &[Tensor; 2], grads: &mut [Option<Tensor>; 2]) -> Result<(), Error> {
        if self.near.dtype() != u8::DTYPE || self.near.sizes().len() != 1 {
            return Err(wrong("near", "what the forward pass gave", "another tensor"));
        }
        let (distances, near) = (self.distances.contiguous()?, self.near.contiguous()?);
        // The upstream gradient of a sum is one number, expanded.
        let in_rows = self.upstream.strides()[1] == 1 || self.upstream.strides() == [0, 0];
        let upstream = if in_rows { None } else { Some(self.upstream.contiguous()?) };
        let (numbers, steps) = upstream.as_ref().unwrap_or(&self.upstream).strided::<T::Scalar>();
        let upstream = PairwiseUpstream { numbers, steps, distances: distances.slice(), near: near.slice() };
        let to = grads.each_mut().map(|grad| grad.as_mut().map(Tensor::slice_mut::<T>));
        pairwise_gradients::<T>(&self.op, [rows[0].matrix()?, rows[1].matrix()?], upstream, to)
    }
}
