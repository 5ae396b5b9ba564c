//! `tercet::top_k`: the nearest rows of many for each query.

use tercet::{Error, Int8Rows, Matrix, Own, Stored, TopK};

use crate::operator::{Operator, Stack};
use crate::options::Options;
use crate::tensor::{
    Dtype, InTensors, OfDtype, Tensor, check_device, check_embeddings, check_matrix, check_per_row, integers,
    with_element, wrong,
};

pub struct Search {
    queries: Tensor,
    stored: Tensor,
    scales: Option<Tensor>,
    exact: Option<Tensor>,
    own: Option<Tensor>,
    own_offset: Option<i64>,
    /// Read before it is known to be valid, as the shapes of the results depend on it.
    top_k: TopK,
}

impl Operator for Search {
    fn name() -> String {
        "top_k".into()
    }

    fn schema() -> String {
        let tensors = "Tensor queries, Tensor stored, Tensor? scales, Tensor? exact, Tensor? own, int? own_offset";
        format!("({tensors}, {}) -> (Tensor distances, Tensor indices)", TopK::schema())
    }

    fn take(stack: &mut Stack) -> Result<Self, Error> {
        let (queries, stored) = (stack.tensor(), stack.tensor());
        let [scales, exact, own] = std::array::from_fn(|_| stack.optional_tensor());
        let own_offset = stack.optional_int();
        Ok(Self { queries, stored, scales, exact, own, own_offset, top_k: TopK::take(stack)? })
    }

    fn run(mut self) -> Result<Vec<Tensor>, Error> {
        check_embeddings("queries", &self.queries, false)?;
        match &self.scales {
            None => check_embeddings("stored", &self.stored, false)?,
            Some(scales) => {
                if self.stored.dtype() != Dtype::Int8 {
                    return Err(wrong("stored", "dtype int8, with scales", self.stored.dtype().name()));
                }
                check_matrix("stored", &self.stored)?;
                check_per_row("scales", scales, ("float32", &[Dtype::Float32]), "stored", &self.stored)?;
            }
        }
        check_device("stored", &self.stored, "queries", &self.queries)?;
        if let Some(exact) = &self.exact {
            if exact.dtype() != Dtype::Float32 {
                return Err(wrong("exact", "dtype float32", exact.dtype().name()));
            }
            check_matrix("exact", exact)?;
            check_device("exact", exact, "queries", &self.queries)?;
        }
        let own = match (&self.own, self.own_offset) {
            (None, None) => Own::None,
            (None, Some(offset)) => Own::Offset(offset),
            (Some(rows), None) => Own::Rows(integers("own", rows, "queries", &self.queries)?),
            (Some(_), Some(_)) => return Err(wrong("own", "an offset or indices", "both")),
        };
        let dtype = self.queries.dtype();
        self.queries = self.queries.with_contiguous_rows()?;
        self.stored =
            if self.scales.is_some() { self.stored.contiguous()? } else { self.stored.with_contiguous_rows()? };
        self.scales = self.scales.as_ref().map(Tensor::contiguous).transpose()?;
        self.exact = self.exact.as_ref().map(Tensor::with_contiguous_rows).transpose()?;
        let device = self.queries.device();
        if device.is_cpu() {
            return with_element!(dtype, T => self.on_cpu::<T>(&own));
        }
        #[cfg(feature = "cuda")]
        return self.on_cuda(&own);
        #[cfg(not(feature = "cuda"))]
        Err(wrong("queries", "a CPU tensor (built without the cuda feature)", "a CUDA tensor"))
    }
}

impl Search {
    fn empty(&self, dtype: Dtype) -> Result<[Tensor; 2], Error> {
        let (shape, device) = ([self.queries.size(0), self.top_k.k], self.queries.device());
        Ok([Tensor::empty(&shape, dtype, device)?, Tensor::empty(&shape, i64::DTYPE, device)?])
    }

    fn on_cpu<T: OfDtype>(&self, own: &Own<Tensor>) -> Result<Vec<Tensor>, Error> {
        let stored: Stored<'_> = match &self.scales {
            Some(scales) => {
                Int8Rows::new(self.stored.slice::<i8>(), scales.slice::<f32>(), self.stored.size(1))?.into()
            }
            None => with_element!(self.stored.dtype(), R => self.stored.matrix::<R>()?.into()),
        };
        let own = match own {
            Own::None => Own::None,
            Own::Offset(offset) => Own::Offset(*offset),
            Own::Rows(rows) => Own::Rows(rows.slice::<i64>()),
        };
        let queries: Matrix<'_, T> = self.queries.matrix()?;
        let mut search = self.top_k.on(queries, stored).own(own);
        if let Some(exact) = &self.exact {
            search = search.exact(exact.matrix::<f32>()?);
        }
        let [mut distances, mut indices] = self.empty(T::Scalar::DTYPE)?;
        search.search(distances.slice_mut(), indices.slice_mut())?;
        Ok(vec![distances, indices])
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, own: &Own<Tensor>) -> Result<Vec<Tensor>, Error> {
        use tercet::internal::{Dtype as Stored, Input, SearchInputs, StoredInput};
        let input = |rows: &Tensor, scales: Option<&Tensor>| StoredInput {
            x: rows.address(),
            stride: rows.row_stride(),
            dtype: match rows.dtype() {
                Dtype::Float16 => Stored::F16,
                Dtype::Bfloat16 => Stored::Bf16,
                Dtype::Int8 => Stored::Int8,
                _ => Stored::F32,
            },
            scales: scales.map_or(0, Tensor::address),
        };
        let shapes = [&self.queries, &self.stored].map(|rows| [rows.size(0), rows.size(1)]);
        if let Some(exact) = &self.exact
            && exact.sizes() != self.stored.sizes()
        {
            let expected = format!("{:?}, as the stored rows", self.stored.sizes());
            return Err(wrong("exact", expected, format!("{:?}", exact.sizes())));
        }
        let inputs = SearchInputs {
            queries: input(&self.queries, None),
            stored: input(&self.stored, self.scales.as_ref()),
            exact: self.exact.as_ref().map(|exact| Input { x: exact.address(), stride: exact.row_stride(), labels: 0 }),
            own: match own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => Own::Rows(rows.address()),
            },
        };
        let [distances, indices] = self.empty(Dtype::Float32)?;
        let launcher = crate::launcher::PyTorchLauncher::current(self.queries.device())?;
        let outputs = [distances.address(), indices.address()];
        // SAFETY: checked tensors on this device, of these shapes, and contiguous results of their sizes. PyTorch's allocator
        // keeps memory for this stream's work until the stream has done it.
        unsafe { tercet::internal::top_k(&self.top_k, &launcher, shapes, &inputs, outputs, None)? };
        Ok(vec![distances, indices])
    }
}
