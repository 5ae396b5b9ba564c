//! The search on tch tensors.

use tch::{Device, Kind, Tensor};

use super::{Int8Rows, Search, SearchInput, Stored, TopKProblem, check_exact, cpu};
use crate::torch::call::integers;
use crate::torch::tensors::{
    InTensors, OfKind, as_in_memory, check_device, check_embeddings, check_matrix, check_per_row, matrix, slice,
    slice_mut, with_contiguous_rows, with_element,
};
use crate::torch::threads::on_libtorchs;
use crate::{Error, Own};

const NAME: &str = "TopK";

/// Rows that [`TopK`](crate::TopK) looks among: a tensor of f32, f64, f16 or bf16, or one of int8 and a tensor of f32 with a
/// scale for each row, as [`Int8Rows`] has them.
///
/// Both turn into this by themselves: `top_k.on(&queries, &rows)`, `top_k.on(&queries, (&integers, &scales))`.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    rows: &'a Tensor,
    scales: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for StoredTensor<'a> {
    fn from(rows: &'a Tensor) -> Self {
        Self { rows, scales: None }
    }
}
impl<'a> From<(&'a Tensor, &'a Tensor)> for StoredTensor<'a> {
    fn from((rows, scales): (&'a Tensor, &'a Tensor)) -> Self {
        Self { rows, scales: Some(scales) }
    }
}

impl<'a> SearchInput for &'a Tensor {
    type Stored = StoredTensor<'a>;
    type Exact = &'a Tensor;
}

impl Search<&Tensor> {
    /// The distances of the nearest rows, ascending, and their indices, both `[Q, k]`: f32, or f64 for f64, and i64.
    ///
    /// All tensors are on the CPU or on one CUDA device, where nothing waits for the device and `k` is at most 1024; rows may
    /// be views with any strides. The results are no part of the autograd graph: for
    /// gradients, select the rows that were found and compute their distances anew.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::{Distance, TopK};
    ///
    /// let stored = Tensor::randn([1000, 128], (Kind::Float, Device::Cpu));
    /// let queries = stored.narrow(0, 40, 20);
    /// let top = TopK { k: 5, distance: Distance::Cosine, ..Default::default() };
    /// let (distances, indices) = top.on(&queries, &stored).forward();
    /// assert_eq!(distances.size(), [20, 5]);
    /// assert_eq!(indices.select(1, 0), Tensor::arange_start(40, 60, (Kind::Int64, Device::Cpu)));
    /// ```
    pub fn forward(self) -> (Tensor, Tensor) {
        self.f_forward().unwrap_or_else(|error| panic!("{NAME}: {error}"))
    }

    /// What [`forward`](Self::forward) returns, or an error.
    ///
    /// # Errors
    /// If `k` is 0, there is no query, shapes, dtypes or devices do not match or are not supported, or memory runs out.
    pub fn f_forward(self) -> Result<(Tensor, Tensor), Error> {
        let Self { top_k, queries, stored, exact, own } = self;
        check_embeddings("queries", queries)?;
        check_stored(&stored)?;
        check_device("stored", stored.rows, "queries", queries)?;
        if queries.device() != Device::Cpu {
            if cfg!(not(feature = "cuda")) {
                let expected = "a CPU tensor (built without the cuda feature)";
                return Err(Error::argument("queries", expected, "a CUDA tensor"));
            }
            for (argument, rows) in [("queries", queries), ("stored", stored.rows)] {
                if rows.kind() == Kind::Double {
                    return Err(Error::argument(argument, "dtype f32, f16 or bf16 on a CUDA device", "Double"));
                }
            }
        }
        let shape = |rows: &Tensor| [0, 1].map(|axis| rows.size()[axis] as usize);
        let problem = top_k.checked(shape(queries), shape(stored.rows))?;
        if let Some(exact) = exact {
            check_embeddings("exact", exact)?;
            check_device("exact", exact, "queries", queries)?;
            if exact.kind() != Kind::Float {
                return Err(Error::argument("exact", "dtype f32", format!("{:?}", exact.kind())));
            }
        }
        check_exact(exact.map(shape), shape(stored.rows))?;
        let own = match own {
            Own::None => Own::None,
            Own::Offset(offset) => Own::Offset(offset),
            Own::Rows(rows) => Own::Rows(integers("own", rows, "queries", queries)?),
        };
        let contiguous = |rows| with_contiguous_rows(rows);
        let (queries, rows) = (contiguous(queries)?, contiguous(stored.rows)?);
        let scales =
            stored.scales.map(|scales| as_in_memory(scales)?.f_contiguous().map_err(Error::from)).transpose()?;
        let exact = exact.map(contiguous).transpose()?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(ordinal) = queries.device() {
            return on_cuda(&problem, ordinal, &queries, (&rows, scales.as_ref()), exact.as_ref(), &own);
        }
        with_element!(queries.kind(), T => on_cpu::<T>(&problem, &queries, (&rows, scales.as_ref()), exact.as_ref(), &own))
    }
}

fn check_stored(stored: &StoredTensor<'_>) -> Result<(), Error> {
    let StoredTensor { rows, scales } = stored;
    let Some(scales) = scales else {
        return check_embeddings("stored", rows);
    };
    if !rows.defined() {
        return Err(Error::argument("stored", "a tensor", "an undefined one"));
    }
    if rows.f_kind()? != Kind::Int8 {
        return Err(Error::argument("stored", "dtype int8, with scales", format!("{:?}", rows.kind())));
    }
    check_matrix("stored", rows)?;
    check_per_row("scales", scales, ("f32", |kind| kind == Kind::Float), "stored", rows)
}

fn on_cpu<T: OfKind>(
    problem: &TopKProblem,
    queries: &Tensor,
    (rows, scales): (&Tensor, Option<&Tensor>),
    exact: Option<&Tensor>,
    own: &Own<Tensor>,
) -> Result<(Tensor, Tensor), Error>
where
    T::Scalar: OfKind,
{
    let integers;
    let stored: Stored<'_> = match scales {
        Some(scales) => {
            integers = rows.f_contiguous()?;
            Int8Rows::new(slice::<i8>(&integers), slice::<f32>(scales), problem.dim)?.into()
        }
        None => with_element!(rows.kind(), R => matrix::<R>(rows)?.into()),
    };
    let exact = exact.map(matrix::<f32>).transpose()?;
    let shape = [problem.queries, problem.k].map(|size| size as i64);
    let mut distances = Tensor::f_empty(shape, (T::Scalar::KIND, Device::Cpu))?;
    let mut indices = Tensor::f_empty(shape, (i64::KIND, Device::Cpu))?;
    let own = own.map(slice::<i64>);
    let queries = matrix::<T>(queries)?;
    let (of_distances, of_indices) = (slice_mut::<T::Scalar>(&mut distances), slice_mut::<i64>(&mut indices));
    on_libtorchs(|| cpu::search(problem, &queries, &stored, exact, own, of_distances, of_indices))?;
    Ok((distances, indices))
}

#[cfg(feature = "cuda")]
fn on_cuda(
    problem: &TopKProblem,
    ordinal: usize,
    queries: &Tensor,
    (rows, scales): (&Tensor, Option<&Tensor>),
    exact: Option<&Tensor>,
    own: &Own<Tensor>,
) -> Result<(Tensor, Tensor), Error> {
    use super::cuda::{Dtype, SearchInputs, StoredInput, search};
    use crate::cuda::arguments::Input;
    use crate::torch::launcher::{TorchLauncher, address};
    use crate::torch::tensors::row_stride;

    let shape = [problem.queries, problem.k].map(|size| size as i64);
    let distances = Tensor::f_empty(shape, (Kind::Float, queries.device()))?;
    let indices = Tensor::f_empty(shape, (Kind::Int64, queries.device()))?;
    let input = |rows: &Tensor, scales: Option<&Tensor>| {
        let dtype = match rows.kind() {
            Kind::Half => Dtype::F16,
            Kind::BFloat16 => Dtype::Bf16,
            Kind::Int8 => Dtype::Int8,
            _ => Dtype::F32,
        };
        StoredInput { x: address(rows), stride: row_stride(rows), dtype, scales: scales.map_or(0, address) }
    };
    let inputs = SearchInputs {
        queries: input(queries, None),
        stored: input(rows, scales),
        exact: exact.map(|exact| Input { x: address(exact), stride: row_stride(exact), labels: 0 }),
        own: own.map(address),
    };
    let launcher = TorchLauncher::current(ordinal)?;
    // SAFETY: checked tensors on this device, of the problem's shape, and contiguous ones of this function's making. PyTorch's
    // allocator keeps memory for this stream's work until the stream has done it.
    unsafe { search(&launcher, problem, &inputs, [address(&distances), address(&indices)], None)? };
    Ok((distances, indices))
}
