//! Losses of pre-formed pairs and triplets: `tercet::triplet_margin` and `tercet::contrastive`.
//!
//! A forward pass with a mean or a sum also makes the gradients that are wanted, for an upstream gradient of 1, except of
//! float16 rows: a gradient scaler trains these, so that the upstream gradient is never 1, and the factor of the mean would
//! be flushed to 0. Where there are none `.._backward` makes them, in a pass of its own.

use tercet::internal::{SlicePass, contrastive_pass, triplet_margin_pass};
use tercet::{ContrastiveLoss, Error, Reduction, TripletMarginLoss};

use crate::mined::{checked_upstream, wants};
use crate::operator::{Operator, Stack, nothing};
use crate::options::Options;
use crate::tensor::{
    Dtype, InTensors, OfDtype, Tensor, check_dtype_and_device, check_embeddings, check_per_row, doubles, with_element,
    wrong,
};

/// A paired loss of K matrices, with its options.
pub trait Loss<const K: usize>: Options {
    const STEM: &'static str;
    const NAMES: [&'static str; K];
    /// The tensor that comes with the matrices.
    const OTHER: Option<&'static str>;

    fn reduction(&self) -> Reduction;
    /// Checks the other tensor, before anything is read.
    fn check(&self, other: Option<&Tensor>, model: &Tensor) -> Result<(), Error>;
    fn on_cpu<T: OfDtype>(&self, pass: SlicePass<'_, T, K>, other: Option<&Tensor>) -> Result<T::Scalar, Error>;

    /// # Safety
    /// The pass is of device memory of the launcher, of the shape `[rows, dim]`; the other tensor was checked.
    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfDtype>(
        &self,
        launcher: &crate::launcher::PyTorchLauncher,
        shape: [usize; 2],
        pass: &tercet::internal::Pass<K>,
        other: Option<&Tensor>,
    ) -> Result<(), Error>;
}

impl Loss<3> for TripletMarginLoss {
    const STEM: &'static str = "triplet_margin";
    const NAMES: [&'static str; 3] = ["anchor", "positive", "negative"];
    const OTHER: Option<&'static str> = None;

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn check(&self, _: Option<&Tensor>, _: &Tensor) -> Result<(), Error> {
        Ok(())
    }

    fn on_cpu<T: OfDtype>(&self, pass: SlicePass<'_, T, 3>, _: Option<&Tensor>) -> Result<T::Scalar, Error> {
        triplet_margin_pass(self, pass)
    }

    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfDtype>(
        &self,
        launcher: &crate::launcher::PyTorchLauncher,
        shape: [usize; 2],
        pass: &tercet::internal::Pass<3>,
        _: Option<&Tensor>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { tercet::internal::triplet_margin::<T, _>(self, launcher, shape, pass) }
    }
}

impl Loss<2> for ContrastiveLoss {
    const STEM: &'static str = "contrastive";
    const NAMES: [&'static str; 2] = ["x1", "x2"];
    const OTHER: Option<&'static str> = Some("same");

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn check(&self, same: Option<&Tensor>, model: &Tensor) -> Result<(), Error> {
        use Dtype::{Bfloat16, Bool, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Uint8};
        let dtypes = [Bool, Uint8, Int8, Int16, Int32, Int64, Float16, Bfloat16, Float32, Float64];
        let same = same.expect("the schema has it");
        check_per_row("same", same, ("bool, an integer or a float", &dtypes), Self::NAMES[0], model)
    }

    fn on_cpu<T: OfDtype>(&self, pass: SlicePass<'_, T, 2>, same: Option<&Tensor>) -> Result<T::Scalar, Error> {
        let numbers = doubles(same.expect("the schema has it"))?;
        let flags = numbers.slice::<f64>().iter().enumerate().map(|(row, x)| match x {
            0.0 => Ok(false),
            1.0 => Ok(true),
            other => Err(wrong("same", "0 or 1 for each pair", format!("{other} for pair {row}"))),
        });
        contrastive_pass(self, pass, &flags.collect::<Result<Vec<bool>, Error>>()?)
    }

    #[cfg(feature = "cuda")]
    unsafe fn on_cuda<T: OfDtype>(
        &self,
        launcher: &crate::launcher::PyTorchLauncher,
        shape: [usize; 2],
        pass: &tercet::internal::Pass<2>,
        same: Option<&Tensor>,
    ) -> Result<(), Error> {
        use tercet::internal::Same;
        let same = same.expect("the schema has it").contiguous()?;
        let (address, dtype) = (same.address(), same.dtype());
        let flags = match dtype {
            Dtype::Float16 => Same::floats::<half::f16>(address),
            Dtype::Bfloat16 => Same::floats::<half::bf16>(address),
            Dtype::Float32 => Same::floats::<f32>(address),
            Dtype::Float64 => Same::floats::<f64>(address),
            integer => Same::integers(address, integer.bytes() as u32),
        };
        // SAFETY: the caller's contract; `same` is contiguous, one number a row. PyTorch's allocator keeps its memory for this
        // stream's work until the stream has done it.
        unsafe { tercet::internal::contrastive::<T, _>(self, launcher, shape, pass, flags) }
    }
}

/// The matrices and options of a call.
struct Call<L, const K: usize> {
    inputs: [Tensor; K],
    other: Option<Tensor>,
    wants: [bool; K],
    loss_fn: L,
}

fn arguments<L: Loss<K>, const K: usize>() -> String {
    let tensors: Vec<String> = L::NAMES.iter().chain(&L::OTHER).map(|name| format!("Tensor {name}")).collect();
    format!("{}, int wants, {}", tensors.join(", "), L::schema())
}

impl<L: Loss<K>, const K: usize> Call<L, K> {
    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let inputs = std::array::from_fn(|_| stack.tensor());
        let other = L::OTHER.map(|_| stack.tensor());
        let wants = wants(stack.int());
        Ok(Self { inputs, other, wants, loss_fn: L::take(stack)? })
    }

    fn shape(&self) -> [usize; 2] {
        [self.inputs[0].size(0), self.inputs[0].size(1)]
    }

    fn loss_shape(&self) -> Vec<usize> {
        if self.loss_fn.reduction() == Reduction::None { vec![self.inputs[0].size(0)] } else { Vec::new() }
    }

    /// Checks the tensors; their rows are contiguous afterwards.
    fn check(mut self) -> Result<Self, Error> {
        check_embeddings(L::NAMES[0], &self.inputs[0], true)?;
        for (name, input) in L::NAMES.into_iter().zip(&self.inputs).skip(1) {
            check_embeddings(name, input, true)?;
            if input.sizes() != self.inputs[0].sizes() {
                let expected = format!("the shape of {}, {:?}", L::NAMES[0], self.inputs[0].sizes());
                return Err(wrong(name, expected, format!("{:?}", input.sizes())));
            }
            check_dtype_and_device(name, input, L::NAMES[0], &self.inputs[0])?;
        }
        self.loss_fn.check(self.other.as_ref(), &self.inputs[0])?;
        for input in &mut self.inputs {
            *input = input.with_contiguous_rows()?;
        }
        Ok(self)
    }

    fn empty_grads(&self, wanted: impl Fn(usize) -> bool) -> Result<[Option<Tensor>; K], Error> {
        let mut grads = [const { None }; K];
        for (which, grad) in grads.iter_mut().enumerate() {
            if wanted(which) {
                *grad = Some(Tensor::empty(&self.shape(), self.inputs[0].dtype(), self.inputs[0].device())?);
            }
        }
        Ok(grads)
    }

    /// One pass: writes the loss, if it is wanted, and the gradients that are there.
    fn pass(
        &self,
        upstream: Option<&Tensor>,
        loss: Option<&mut Tensor>,
        grads: &mut [Option<Tensor>; K],
    ) -> Result<(), Error> {
        match self.inputs[0].device().is_cpu() {
            true => with_element!(self.inputs[0].dtype(), T => self.pass_on_cpu::<T>(upstream, loss, grads)),
            #[cfg(feature = "cuda")]
            false => with_element!(self.inputs[0].dtype(), T => self.pass_on_cuda::<T>(upstream, loss, grads)),
            #[cfg(not(feature = "cuda"))]
            false => Err(wrong(L::NAMES[0], "a CPU tensor (built without the cuda feature)", "a CUDA tensor")),
        }
    }

    fn pass_on_cpu<T: OfDtype>(
        &self,
        upstream: Option<&Tensor>,
        loss: Option<&mut Tensor>,
        grads: &mut [Option<Tensor>; K],
    ) -> Result<(), Error> {
        let mut inputs = Vec::with_capacity(K);
        for input in &self.inputs {
            inputs.push(input.matrix::<T>()?);
        }
        let per_row = self.loss_fn.reduction() == Reduction::None;
        let mut loss = loss.map(Tensor::slice_mut::<T::Scalar>);
        let pass = SlicePass {
            inputs: std::array::from_fn(|i| inputs[i]),
            upstream: upstream.map(Tensor::slice::<T::Scalar>),
            losses: if per_row { loss.take() } else { None },
            grads: grads.each_mut().map(|grad| grad.as_mut().map(Tensor::slice_mut::<T>)),
        };
        let reduced = self.loss_fn.on_cpu::<T>(pass, self.other.as_ref())?;
        if let Some(loss) = loss {
            loss[0] = reduced;
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn pass_on_cuda<T: OfDtype>(
        &self,
        upstream: Option<&Tensor>,
        loss: Option<&mut Tensor>,
        grads: &mut [Option<Tensor>; K],
    ) -> Result<(), Error> {
        let per_row = self.loss_fn.reduction() == Reduction::None;
        let at = loss.map_or(0, |loss| loss.address());
        let pass = tercet::internal::Pass {
            inputs: self.inputs.each_ref().map(Tensor::address),
            strides: self.inputs.each_ref().map(Tensor::row_stride),
            upstream: upstream.map_or(0, Tensor::address),
            upstream_per_row: per_row,
            losses: if per_row { at } else { 0 },
            loss: if per_row { 0 } else { at },
            grads: grads.each_ref().map(|grad| grad.as_ref().map_or(0, Tensor::address)),
            ..Default::default()
        };
        let launcher = crate::launcher::PyTorchLauncher::current(self.inputs[0].device())?;
        // SAFETY: checked tensors of T on this device, of one shape; loss and gradients are contiguous tensors of this crate's
        // making, and so is the upstream gradient. PyTorch's allocator keeps memory for this stream's work until the stream
        // has done it.
        unsafe { self.loss_fn.on_cuda::<T>(&launcher, self.shape(), &pass, self.other.as_ref()) }
    }
}

/// The results of gradients, empty tensors for those that there are not.
fn results<const K: usize>(grads: [Option<Tensor>; K], like: &Tensor) -> Result<Vec<Tensor>, Error> {
    grads.into_iter().map(|grad| grad.map_or_else(|| nothing(like.dtype(), like), Ok)).collect()
}

/// The forward pass of a loss.
pub struct Forward<L, const K: usize>(Call<L, K>);

fn grad_results<const K: usize>() -> String {
    vec!["Tensor"; K].join(", ")
}

impl<L: Loss<K>, const K: usize> Operator for Forward<L, K> {
    fn name() -> String {
        L::STEM.into()
    }

    fn schema() -> String {
        format!("({}) -> (Tensor, {})", arguments::<L, K>(), grad_results::<K>())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        Ok(Self(Call::take(stack)?))
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let call = self.0.check()?;
        let first = &call.inputs[0];
        let at_once = call.loss_fn.reduction() != Reduction::None && first.dtype() != half::f16::DTYPE;
        let mut grads = call.empty_grads(|which| at_once && call.wants[which])?;
        let mut loss = Tensor::empty(&call.loss_shape(), first.dtype().of_losses(), first.device())?;
        call.pass(None, Some(&mut loss), &mut grads)?;
        let mut all = vec![loss];
        all.extend(results(grads, first)?);
        Ok(all)
    }
}

/// The gradients of a loss times the upstream gradient.
pub struct Backward<L, const K: usize>(Tensor, Call<L, K>);

impl<L: Loss<K>, const K: usize> Operator for Backward<L, K> {
    fn name() -> String {
        format!("{}_backward", L::STEM)
    }

    fn schema() -> String {
        format!("(Tensor upstream, {}) -> ({})", arguments::<L, K>(), grad_results::<K>())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let upstream = stack.tensor();
        Ok(Self(upstream, Call::take(stack)?))
    }

    fn run(self) -> Result<Vec<Tensor>, Error> {
        let Self(upstream, call) = self;
        let call = call.check()?;
        let upstream = checked_upstream(&upstream, &call.loss_shape(), &call.inputs[0])?;
        let mut grads = call.empty_grads(|which| call.wants[which])?;
        call.pass(Some(&upstream), None, &mut grads)?;
        results(grads, &call.inputs[0])
    }
}
