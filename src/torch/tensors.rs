//! Checks of tensors, and views of their memory.

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Element, Error, Matrix};

/// A type of numbers in tensors.
pub(crate) trait InTensors: Copy {
    /// The kind of the tensors that hold such numbers, and no others.
    const KIND: Kind;
}
impl InTensors for f32 {
    const KIND: Kind = Kind::Float;
}
impl InTensors for f64 {
    const KIND: Kind = Kind::Double;
}
impl InTensors for half::f16 {
    const KIND: Kind = Kind::Half;
}
impl InTensors for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
}
impl InTensors for i64 {
    const KIND: Kind = Kind::Int64;
}
impl InTensors for i8 {
    const KIND: Kind = Kind::Int8;
}

/// An element type, with the kind of its tensors.
pub(crate) trait OfKind: Element + InTensors {}
impl<T: Element + InTensors> OfKind for T {}

/// Runs `$body` with `$T` as the element type of `$kind`, which [`check_embeddings`] has accepted.
macro_rules! with_element {
    ($kind:expr, $T:ident => $body:expr) => {
        match $kind {
            tch::Kind::Float => {
                type $T = f32;
                $body
            }
            tch::Kind::Double => {
                type $T = f64;
                $body
            }
            tch::Kind::Half => {
                type $T = half::f16;
                $body
            }
            tch::Kind::BFloat16 => {
                type $T = half::bf16;
                $body
            }
            other => unreachable!("checked: {other:?}"),
        }
    };
}
pub(crate) use with_element;

/// The largest number of the arithmetic of a kind that losses take.
pub(crate) fn largest(kind: Kind) -> f64 {
    with_element!(kind, T => crate::element::largest::<T>())
}

/// Checks that a tensor is f32, f64, f16 or bf16, dense, of shape `[B, D]`, and on the CPU or a CUDA device.
pub(crate) fn check_embeddings(argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
    if !tensor.defined() {
        return Err(Error::argument(argument, "a tensor", "an undefined one"));
    }
    let kind = tensor.f_kind()?;
    if !matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        return Err(Error::argument(argument, "dtype f32, f64, f16 or bf16", format!("{kind:?}")));
    }
    check_matrix(argument, tensor)
}

/// Checks that a defined tensor is dense, of shape `[B, D]`, and on the CPU or a CUDA device.
pub(crate) fn check_matrix(argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
    check_dense(argument, tensor)?;
    if tensor.dim() != 2 {
        return Err(Error::argument(argument, "shape [B, D]", format!("{:?}", tensor.size())));
    }
    if !matches!(tensor.device(), Device::Cpu | Device::Cuda(_)) {
        return Err(Error::argument(
            argument,
            "a tensor on the CPU or a CUDA device",
            format!("{:?}", tensor.device()),
        ));
    }
    Ok(())
}

/// Checks that a tensor holds embeddings, with the shape, dtype and device of `model`.
pub(crate) fn check_like(
    argument: &'static str,
    tensor: &Tensor,
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    check_embeddings(argument, tensor)?;
    if tensor.size() != model.size() {
        return Err(Error::argument(
            argument,
            format!("the shape of {other}, {:?}", model.size()),
            format!("{:?}", tensor.size()),
        ));
    }
    check_kind_and_device(argument, tensor, other, model)
}

/// Checks that a tensor has the dtype and the device of `model`.
pub(crate) fn check_kind_and_device(
    argument: &'static str,
    tensor: &Tensor,
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    if tensor.kind() != model.kind() {
        return Err(Error::argument(
            argument,
            format!("the dtype of {other}, {:?}", model.kind()),
            format!("{:?}", tensor.kind()),
        ));
    }
    check_device(argument, tensor, other, model)
}

/// Checks that a tensor is one number of this kind, on the device of `model`.
pub(crate) fn check_scalar(
    argument: &'static str,
    tensor: &Tensor,
    kind: Kind,
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    if !tensor.defined() {
        return Err(Error::argument(argument, "a tensor", "an undefined one"));
    }
    let actual = tensor.f_kind()?;
    if actual != kind {
        return Err(Error::argument(argument, format!("dtype {kind:?}"), format!("{actual:?}")));
    }
    check_dense(argument, tensor)?;
    if tensor.numel() != 1 {
        return Err(Error::argument(argument, "one number", format!("shape {:?}", tensor.size())));
    }
    check_device(argument, tensor, other, model)
}

/// Checks that a tensor has one number a row of the matrix `model`, of a kind that `takes` says in words and as a
/// function, and is dense and on its device.
pub(crate) fn check_per_row(
    argument: &'static str,
    tensor: &Tensor,
    takes: (&str, fn(Kind) -> bool),
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    if !tensor.defined() {
        return Err(Error::argument(argument, "a tensor", "an undefined one"));
    }
    let kind = tensor.f_kind()?;
    if !takes.1(kind) {
        return Err(Error::argument(argument, format!("dtype {}", takes.0), format!("{kind:?}")));
    }
    check_dense(argument, tensor)?;
    let rows = model.size()[0];
    if tensor.size() != [rows] {
        return Err(Error::argument(argument, format!("shape [{rows}]"), format!("{:?}", tensor.size())));
    }
    check_device(argument, tensor, other, model)
}

pub(crate) fn check_device(
    argument: &'static str,
    tensor: &Tensor,
    other: &'static str,
    model: &Tensor,
) -> Result<(), Error> {
    let (actual, expected) = (tensor.device(), model.device());
    if actual != expected {
        let expected = format!("the device of {other}, {expected:?}");
        return Err(Error::argument(argument, expected, format!("{actual:?}")));
    }
    Ok(())
}

fn check_dense(argument: &'static str, tensor: &Tensor) -> Result<(), Error> {
    // SAFETY: reads a defined tensor, of which the callers made sure.
    if !unsafe { tercet_is_strided(tensor.as_ptr()) } {
        return Err(Error::argument(argument, "a dense tensor", "a sparse or MKL-DNN one"));
    }
    Ok(())
}

/// The tensor itself if each of its rows is contiguous, else a contiguous copy.
pub(crate) fn with_contiguous_rows(tensor: &Tensor) -> Result<Tensor, Error> {
    let tensor = as_in_memory(tensor)?;
    let rows_are_contiguous = tensor.size()[1] == 1 || tensor.stride()[1] == 1;
    Ok(if rows_are_contiguous { tensor } else { tensor.f_contiguous()? })
}

/// The tensor itself, or a copy if its memory holds the negative of its numbers: libtorch leaves it to the reader to
/// negate the imaginary part of a conjugate.
pub(crate) fn as_in_memory(tensor: &Tensor) -> Result<Tensor, Error> {
    Ok(tensor.f_resolve_neg()?)
}

/// The distance from row to row of a matrix, in elements.
pub(crate) fn row_stride(tensor: &Tensor) -> usize {
    // The stride of a single row means nothing and may be anything.
    if tensor.size()[0] <= 1 { tensor.size()[1] as usize } else { tensor.stride()[0] as usize }
}

/// The memory of a checked CPU tensor with contiguous rows.
pub(crate) fn matrix<T: OfKind>(tensor: &Tensor) -> Result<Matrix<'_, T>, Error> {
    assert_eq!((tensor.kind(), tensor.device()), (T::KIND, Device::Cpu));
    let (rows, dim, stride) = (tensor.size()[0] as usize, tensor.size()[1] as usize, row_stride(tensor));
    let len = if rows == 0 || dim == 0 { 0 } else { (rows - 1) * stride + dim };
    let data = match len {
        0 => &[],
        len => {
            // SAFETY: libtorch keeps the elements that sizes and strides reach in memory while the tensor lives; the
            // kind is T's. As with any operation on tensors, nobody may write to it from another thread meanwhile.
            unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), len) }
        }
    };
    Matrix::strided(data, rows, dim, stride)
}

/// The memory of a contiguous CPU tensor.
pub(crate) fn slice<T: InTensors>(tensor: &Tensor) -> &[T] {
    assert_eq!((tensor.kind(), tensor.device()), (T::KIND, Device::Cpu));
    assert!(tensor.is_contiguous());
    match tensor.numel() {
        0 => &[],
        // SAFETY: libtorch keeps the elements of a contiguous tensor in memory while it lives; the kind is T's. As with
        // any operation on tensors, nobody may write to it from another thread meanwhile.
        len => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), len) },
    }
}

/// The memory of a CPU matrix, and how many numbers apart its rows and its columns are; a tensor that was expanded has 0
/// there.
pub(crate) fn strided<T: OfKind>(tensor: &Tensor) -> (&[T], [usize; 2]) {
    assert_eq!((tensor.kind(), tensor.device(), tensor.dim()), (T::KIND, Device::Cpu, 2));
    let steps = [0, 1].map(|i| tensor.stride()[i] as usize);
    match tensor.numel() {
        0 => (&[], steps),
        _ => {
            let last: usize = [0, 1].map(|i| (tensor.size()[i] as usize - 1) * steps[i]).iter().sum();
            // SAFETY: libtorch keeps all elements of a tensor in memory while it lives, and what lies between them is of
            // the same memory; strides are never negative. As with any operation on tensors, nobody may write to it
            // from another thread meanwhile.
            let numbers = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), last + 1) };
            (numbers, steps)
        }
    }
}

/// The numbers of a contiguous CPU tensor of bools.
pub(crate) fn bools(tensor: &Tensor) -> Vec<bool> {
    assert_eq!((tensor.kind(), tensor.device(), tensor.is_contiguous()), (Kind::Bool, Device::Cpu, true));
    match tensor.numel() {
        0 => Vec::new(),
        // SAFETY: libtorch keeps the elements of a contiguous tensor in memory while it lives; a bool is a byte. It is
        // read as one, because a view of another kind may hold other numbers than 0 and 1. As with any operation on
        // tensors, nobody may write to it from another thread meanwhile.
        len => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>().cast_const(), len) }
            .iter()
            .map(|byte| *byte != 0)
            .collect(),
    }
}

/// The memory of a contiguous CPU tensor, to write to.
pub(crate) fn slice_mut<T: InTensors>(tensor: &mut Tensor) -> &mut [T] {
    assert_eq!((tensor.kind(), tensor.device()), (T::KIND, Device::Cpu));
    assert!(tensor.is_contiguous());
    match tensor.numel() {
        0 => &mut [],
        // SAFETY: libtorch keeps the elements of a contiguous tensor in memory while it lives; the kind is T's. The
        // tensors that are written to are made by this crate and not yet shared, or shared with nobody else any more.
        len => unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), len) },
    }
}

unsafe extern "C" {
    fn tercet_is_strided(tensor: *const C_tensor) -> bool;
}
