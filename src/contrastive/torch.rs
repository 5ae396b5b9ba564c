//! The loss on tch tensors.

use tch::{Kind, Tensor};

use super::cpu::LabelledPairs;
use super::{ContrastiveLoss, NAMES};
use crate::cpu::paired::Pass;
use crate::torch::needs_grad;
use crate::torch::paired::{OnTensors, check_inputs, forward};
use crate::torch::tensors::{OfKind, as_in_memory, bools, check_per_row, largest, slice};
use crate::{Error, paired};

const NAME: &str = "ContrastiveLoss";

impl ContrastiveLoss {
    /// The loss of tch tensors `[B, D]`, part of the autograd graph: a scalar, or `[B]` for `Reduction::None`.
    ///
    /// `x1` and `x2` are of one dtype, f32, f64, f16 or bf16, on the CPU or one CUDA device; the rows may be views with
    /// any strides. `same` is `[B]`, on the same device, and 1 (or true) if the rows belong together, else 0: bool,
    /// an integer or a float. Any other number in it is an error on the CPU; on CUDA nothing waits for the device, and
    /// that pair's loss and gradients are NaN. The result is f64 for f64 and f32 for all others.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::ContrastiveLoss;
    ///
    /// let embedding = || Tensor::randn([8, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let (x1, x2) = (embedding(), embedding());
    /// let same = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5, 6, 7]).eq_tensor(&Tensor::from_slice(&[0i64, 1, 0, 3, 0, 5, 0, 7]));
    /// let loss = ContrastiveLoss::default().forward(&x1, &x2, &same);
    /// loss.backward();
    /// assert_eq!(x1.grad().size(), [8, 128]);
    /// ```
    pub fn forward(&self, x1: &Tensor, x2: &Tensor, same: &Tensor) -> Tensor {
        self.f_forward(x1, x2, same).unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// The loss of tch tensors as [`forward`](Self::forward) gives it, or an error.
    ///
    /// # Errors
    /// If shapes, dtypes or devices differ or are not supported, a tensor has no elements, `same` holds another number
    /// than 0 and 1 (on the CPU) or requires a gradient, an option is out of range, or memory runs out.
    pub fn f_forward(&self, x1: &Tensor, x2: &Tensor, same: &Tensor) -> Result<Tensor, Error> {
        let problem = self.checked(check_inputs(NAMES, [x1, x2])?, largest(x1.kind()))?;
        check_per_row("same", same, ("bool, an integer or a float", takes), NAMES[0], x1)?;
        if needs_grad(same) {
            return Err(Error::argument("same", "a tensor that requires no gradient", "one that does"));
        }
        forward(Contrastive(problem), [x1, x2], &[same])
    }
}

fn takes(kind: Kind) -> bool {
    use Kind::{BFloat16, Bool, Double, Float, Half, Int, Int8, Int16, Int64, Uint8};
    matches!(kind, Bool | Uint8 | Int8 | Int16 | Int | Int64 | Half | BFloat16 | Float | Double)
}

struct Contrastive(paired::PairedProblem);

impl OnTensors<2> for Contrastive {
    const NAME: &'static str = NAME;

    fn problem(&self) -> &paired::PairedProblem {
        &self.0
    }

    fn on_cpu<T: OfKind>(&self, pass: Pass<'_, T, 2>, others: &[&Tensor]) -> Result<T::Scalar, Error> {
        Ok(super::cpu::contrastive(&LabelledPairs { paired: self.0, same: &in_memory(others[0])? }, pass))
    }

    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfKind>(
        &self,
        launcher: &crate::torch::launcher::TorchLauncher,
        pass: &super::cuda::Pass,
        others: &[&Tensor],
    ) -> Result<(), Error> {
        let same = as_in_memory(others[0])?.f_contiguous()?;
        // SAFETY: the caller's contract; `same` is a contiguous tensor of one number a row on this device, and
        // PyTorch's allocator keeps its memory for this stream's work until the stream has done it.
        unsafe { super::cuda::run::<T, _>(launcher, &self.0, pass, on_device(&same)) }
    }
}

/// The values of `same` on the CPU, which `check_per_row` has accepted; an error for a number other than 0 and 1.
fn in_memory(same: &Tensor) -> Result<Vec<bool>, Error> {
    let same = as_in_memory(same)?;
    if same.kind() == Kind::Bool {
        return Ok(bools(&same.f_contiguous()?));
    }
    let numbers = same.f_to_kind(Kind::Double)?.f_contiguous()?;
    let flags = slice::<f64>(&numbers).iter().enumerate().map(|(row, x)| match x {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => Err(Error::argument("same", "0 or 1 for each pair", format!("{other} for pair {row}"))),
    });
    flags.collect()
}

#[cfg(feature = "cuda")]
fn on_device(same: &Tensor) -> super::cuda::Same {
    use super::cuda::Same;
    let address = crate::torch::launcher::address(same);
    match same.kind() {
        Kind::Half => Same::floats::<half::f16>(address),
        Kind::BFloat16 => Same::floats::<half::bf16>(address),
        Kind::Float => Same::floats::<f32>(address),
        Kind::Double => Same::floats::<f64>(address),
        integer => Same::integers(address, integer.elt_size_in_bytes() as u32),
    }
}
