//! A memory of embeddings of earlier batches, from which a mined loss takes positives and negatives.

use tch::{Device, Kind, Tensor};

use super::call::{WithStats, integers};
use super::tensors::{check_embeddings, check_kind_and_device};
use crate::{Call, Error, MinedLoss, Own, Reference};

/// The embeddings of the last batches with their labels, as a reference set: many more positives and negatives than a
/// batch has, at the cost of a copy.
///
/// ```text
/// enqueue(X, y)      row i of X goes to place (next + i) mod capacity, over the oldest row
/// forward(call)      enqueue(X, y), then the loss of X against the memory: positives and negatives of x_a are all rows
///                    of the memory except its own, those of the batch itself among them
/// ```
///
/// From "Cross-Batch Memory for Embedding Learning" (Wang, Zhang, Huang, Scott 2020), whose observation is that
/// embeddings drift slowly: old ones still are good negatives. The numbers are those of pytorch-metric-learning's class
/// of this name.
///
/// The rows in the memory are copies without a gradient, so a pair of two rows of the batch moves its anchor alone: if
/// the loss weighs `(a, b)` as `(b, a)` and distances are squared, the gradient against a memory that holds nothing but
/// the batch is half of the batch's own. Reference indices are places in the memory, so of equally far rows the one in
/// the lowest place is taken, not the oldest. A row of NaN or infinity makes the loss NaN until it is written over, or
/// until [`clear`](Self::clear).
///
/// Embeddings of the first steps drift fast. With a [`warm_up`](Self::warm_up) of so many rows `forward` is the loss of
/// the batch itself, with gradients on both sides of each pair, while fewer rows are in the memory.
///
/// Memory is `capacity dim` numbers of the embeddings' dtype and `capacity` i64. Nothing waits for the device. The
/// place of the next row is known to the host alone: a replayed CUDA graph writes to the same places again. The
/// backward pass of a loss reads the memory again: run it before the next `enqueue`, or PyTorch reports a tensor that
/// was changed in place.
///
/// Of a call over several processes ([`Call::over`]) each process enqueues the batch of all, so that their memories are the
/// same, bit for bit, and the numbers are those of one process; one of the memories is all that a checkpoint needs.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tercet::BatchHardTripletLoss;
/// use tercet::torch::CrossBatchMemory;
///
/// let loss_fn = BatchHardTripletLoss::default();
/// let mut memory = CrossBatchMemory::new(1024, 128, Kind::Float, Device::Cpu).warm_up(8);
/// let labels = Tensor::from_slice(&[0i64, 0, 1, 1]);
/// for _step in 0..3 {
///     let embeddings = Tensor::randn([4, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
///     // The loss of the batch itself in the first step, then that against the memory.
///     let loss = memory.forward(loss_fn.on(&embeddings, &labels));
///     loss.backward();
///     assert_eq!(embeddings.grad().size(), [4, 128]);
/// }
/// assert_eq!((memory.len(), memory.capacity()), (12, 1024));
/// ```
#[derive(Debug)]
pub struct CrossBatchMemory {
    embeddings: Tensor,
    labels: Tensor,
    /// Views of the filled rows of `embeddings` and `labels`.
    filled: [Tensor; 2],
    /// The place that the next row goes to.
    next: usize,
    len: usize,
    warm_up: usize,
}

impl CrossBatchMemory {
    /// An empty memory of `capacity` rows of `dim` numbers, for embeddings of this dtype on this device.
    ///
    /// # Panics
    /// If [`f_new`](Self::f_new) returns an error, with its text.
    #[must_use]
    pub fn new(capacity: usize, dim: usize, kind: Kind, device: Device) -> Self {
        or_panic(Self::f_new(capacity, dim, kind, device))
    }

    /// An empty memory as [`new`](Self::new) gives it, or an error.
    ///
    /// # Errors
    /// If `capacity` or `dim` is 0 or too large, `kind` is not f32, f16, bf16 or on the CPU f64, `device` is neither
    /// the CPU nor a CUDA device, or memory runs out.
    pub fn f_new(capacity: usize, dim: usize, kind: Kind, device: Device) -> Result<Self, Error> {
        for (argument, size, limit) in [("capacity", capacity, u32::MAX as usize), ("dim", dim, i64::MAX as usize)] {
            if size == 0 || size >= limit {
                return Err(Error::argument(argument, format!("at least 1 and below {limit}"), size.to_string()));
            }
        }
        let (takes, expected) = match device {
            Device::Cpu => (&[Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16][..], "f32, f64, f16 or bf16"),
            Device::Cuda(_) => (&[Kind::Float, Kind::Half, Kind::BFloat16][..], "f32, f16 or bf16 on a CUDA device"),
            _ => return Err(Error::argument("device", "the CPU or a CUDA device", format!("{device:?}"))),
        };
        if !takes.contains(&kind) {
            return Err(Error::argument("kind", expected, format!("{kind:?}")));
        }
        let embeddings = Tensor::f_empty([capacity as i64, dim as i64], (kind, device))?;
        let labels = Tensor::f_empty([capacity as i64], (Kind::Int64, device))?;
        let filled = [embeddings.f_narrow(0, 0, 0)?, labels.f_narrow(0, 0, 0)?];
        Ok(Self { embeddings, labels, filled, next: 0, len: 0, warm_up: 0 })
    }

    /// This memory with a warm-up: [`forward`](Self::forward) takes the loss of the batch itself until `rows` rows are
    /// in the memory. 0, the default, means no warm-up; more than the capacity means until it is full.
    #[must_use = "the memory with the warm-up is what is returned"]
    pub fn warm_up(self, rows: usize) -> Self {
        Self { warm_up: rows.min(self.capacity()), ..self }
    }

    /// Whether the warm-up is over, so that [`forward`](Self::forward) takes the loss against the memory.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.len >= self.warm_up
    }

    /// How many rows are in the memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no rows are in the memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many rows the memory can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.labels.numel()
    }

    /// Whether the memory is full, so that the next row overwrites the oldest.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.capacity()
    }

    /// The place in the memory that the next row goes to.
    #[must_use]
    pub fn position(&self) -> usize {
        self.next
    }

    /// Forgets all rows; a warm-up begins again.
    pub fn clear(&mut self) {
        or_panic(self.fill(0, 0));
    }

    /// Copies a batch, of any number of rows, over the oldest rows. Of a batch larger than the memory only the last
    /// rows stay.
    ///
    /// `embeddings` are `[N, D]`, `labels` `[N]`, i64 or i32; both may be part of a graph and any views.
    ///
    /// # Panics
    /// If [`f_enqueue`](Self::f_enqueue) returns an error, with its text.
    pub fn enqueue(&mut self, embeddings: &Tensor, labels: &Tensor) {
        or_panic(self.f_enqueue(embeddings, labels));
    }

    /// Copies a batch into the memory as [`enqueue`](Self::enqueue) does, or returns an error.
    ///
    /// # Errors
    /// If the embeddings' dtype, device or D are not the memory's, there are no rows, or there is not one label a row;
    /// the memory is then unchanged. If libtorch refuses one of the copies, those before it have overwritten the oldest
    /// rows.
    pub fn f_enqueue(&mut self, embeddings: &Tensor, labels: &Tensor) -> Result<(), Error> {
        check_embeddings("embeddings", embeddings)?;
        check_kind_and_device("embeddings", embeddings, "the memory", &self.embeddings)?;
        let labels = integers("labels", labels, "embeddings", embeddings)?;
        let (rows, capacity) = (self.rows_of(embeddings)?, self.capacity());
        let skipped = rows.saturating_sub(capacity);
        let (mut from, mut to) = (skipped, (self.next + skipped) % capacity);
        while from < rows {
            let count = (rows - from).min(capacity - to);
            self.write([embeddings, &labels], from, to, count)?;
            (from, to) = (from + count, (to + count) % capacity);
        }
        self.fill(to, (self.len + rows).min(capacity))
    }

    /// The rows in the memory, as [`Call::against`] takes them, with `own: Own::None`: no anchor is among them. For a
    /// batch of n rows that has just been enqueued set `own: Own::Rows(&memory.newest(n))`. The loss against an empty
    /// memory is an error.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::torch::CrossBatchMemory;
    /// use tercet::{BatchAllTripletLoss, Own, Reference};
    ///
    /// let mut memory = CrossBatchMemory::new(6, 2, Kind::Float, Device::Cpu);
    /// let embeddings = Tensor::from_slice(&[0f32, 1.0, 1.0, 2.0, 2.0, 0.0, 3.0, 1.0]).reshape([4, 2]);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1]);
    /// memory.enqueue(&embeddings, &labels);
    /// memory.enqueue(&embeddings, &labels);
    /// let own = memory.newest(4);
    /// assert_eq!(own, Tensor::from_slice(&[4i64, 5, 0, 1]));
    /// let reference = Reference { own: Own::Rows(&own), ..memory.reference() };
    /// let loss_fn = BatchAllTripletLoss { margin: 4.0, ..Default::default() };
    /// let loss = loss_fn.on(&embeddings, &labels).against(&reference).forward();
    /// # assert!(loss.double_value(&[]) > 0.0);
    /// ```
    #[must_use]
    pub fn reference(&self) -> Reference<&Tensor, &Tensor> {
        Reference { embeddings: &self.filled[0], labels: &self.filled[1], own: Own::None }
    }

    /// The places of the last `rows` rows that were enqueued, in their order: i64 `[rows]` on the memory's device.
    /// Those that are no longer there have −1, which is no row of a reference.
    ///
    /// # Panics
    /// If [`f_newest`](Self::f_newest) returns an error, with its text.
    pub fn newest(&self, rows: usize) -> Tensor {
        or_panic(self.f_newest(rows))
    }

    /// The places of the newest rows as [`newest`](Self::newest) gives them, or an error.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn f_newest(&self, rows: usize) -> Result<Tensor, Error> {
        let options = (Kind::Int64, self.labels.device());
        let there = rows.min(self.len);
        let first = (self.next + self.capacity() - there) % self.capacity();
        let places = Tensor::f_arange_start(first as i64, (first + there) as i64, options)?;
        let places = places.f_remainder(self.capacity() as i64)?;
        if there == rows {
            return Ok(places);
        }
        Ok(Tensor::f_cat(&[Tensor::f_full([(rows - there) as i64], -1, options)?, places], 0)?)
    }

    /// Enqueues the batch of a call, then runs the call against the memory, where no anchor is its own positive: a
    /// scalar, or `[N]` for `Reduction::None`, part of the graph of the embeddings. During the warm-up, the loss of the
    /// batch itself.
    ///
    /// # Panics
    /// If [`f_forward`](Self::f_forward) returns an error, with its text.
    pub fn forward<L: MinedLoss>(&mut self, call: Call<'_, L, &Tensor>) -> Tensor {
        or_panic(self.f_forward(call))
    }

    /// The loss as [`forward`](Self::forward) gives it, or an error.
    ///
    /// # Errors
    /// Those of [`f_enqueue`](Self::f_enqueue) and of [`Call::f_forward`], or if the call has a reference set already.
    /// After an error of the loss the batch has been enqueued.
    pub fn f_forward<L: MinedLoss>(&mut self, call: Call<'_, L, &Tensor>) -> Result<Tensor, Error> {
        self.enqueue_and(call, |call| call.f_forward())
    }

    /// The loss as [`forward`](Self::forward) gives it, and statistics of the batch and the memory.
    ///
    /// # Panics
    /// If [`f_forward_with_stats`](Self::f_forward_with_stats) returns an error, with its text.
    pub fn forward_with_stats<L: MinedLoss>(&mut self, call: Call<'_, L, &Tensor>) -> WithStats {
        or_panic(self.f_forward_with_stats(call))
    }

    /// The loss and statistics as [`forward_with_stats`](Self::forward_with_stats) gives them, or an error.
    ///
    /// # Errors
    /// Those of [`f_forward`](Self::f_forward).
    pub fn f_forward_with_stats<L: MinedLoss>(&mut self, call: Call<'_, L, &Tensor>) -> Result<WithStats, Error> {
        self.enqueue_and(call, |call| call.f_forward_with_stats())
    }

    fn enqueue_and<L: MinedLoss, R>(
        &mut self,
        call: Call<'_, L, &Tensor>,
        run: impl FnOnce(Call<'_, L, &Tensor>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if call.reference.is_some() {
            return Err(Error::argument("reference", "none: the memory is the reference set", "one"));
        }
        let [batch, first, rows] = self.enqueue_batch(&call)?;
        if !self.is_warm() {
            return run(call);
        }
        let own = self.f_newest(batch as usize)?.f_narrow(0, first, rows)?;
        let reference = Reference { own: Own::Rows(&own), ..self.reference() };
        run(Call { reference: Some(&reference), ..call })
    }

    /// Enqueues the batch of a call, that of all processes if it lies over several. Returns how many rows it has, the first of
    /// them that is here, and how many are here.
    fn enqueue_batch<L: MinedLoss>(&mut self, call: &Call<'_, L, &Tensor>) -> Result<[i64; 3], Error> {
        #[cfg(feature = "distributed")]
        if let Some(shards) = call.shards {
            let (embeddings, labels) = super::distributed::loss::batch_of_all(call, shards, [self.len, self.next])?;
            self.f_enqueue(&embeddings, &labels)?;
            return Ok([shards.total(), shards.first(), shards.own()]);
        }
        self.f_enqueue(call.embeddings, call.labels)?;
        let rows = call.embeddings.size()[0];
        Ok([rows, 0, rows])
    }

    /// Takes over what another memory held, bit for bit: the tensors of its [`reference`](Self::reference), which may
    /// be on another device, and its [`position`](Self::position).
    ///
    /// # Errors
    /// If the embeddings' dtype or D are not the memory's, there are no rows or more than the capacity, there is not
    /// one label a row, or the position is not possible with so many rows; the memory is then unchanged.
    pub fn f_restore(&mut self, embeddings: &Tensor, labels: &Tensor, position: usize) -> Result<(), Error> {
        check_embeddings("embeddings", embeddings)?;
        let (kind, own) = (embeddings.kind(), self.embeddings.kind());
        if kind != own {
            let expected = format!("the dtype of the memory, {own:?}");
            return Err(Error::argument("embeddings", expected, format!("{kind:?}")));
        }
        let labels = integers("labels", labels, "embeddings", embeddings)?;
        let (rows, capacity) = (self.rows_of(embeddings)?, self.capacity());
        if rows > capacity {
            return Err(Error::argument("embeddings", format!("at most {capacity} rows"), rows.to_string()));
        }
        // The next place in a memory that is not full is the first empty one.
        if position >= capacity || rows < capacity && position != rows {
            let expected = if rows < capacity { format!("{rows}, the rows") } else { format!("below {capacity}") };
            return Err(Error::argument("position", expected, position.to_string()));
        }
        self.write([embeddings, &labels], 0, 0, rows)?;
        self.fill(position, rows)
    }

    /// How many rows the embeddings have; an error if there are none, or their D is not the memory's.
    fn rows_of(&self, embeddings: &Tensor) -> Result<usize, Error> {
        let ([rows, dim], own) = ([0, 1].map(|axis| embeddings.size()[axis]), self.embeddings.size()[1]);
        if rows == 0 {
            return Err(Error::argument("embeddings", "at least one row", format!("[{rows}, {dim}]")));
        }
        if dim != own {
            let expected = format!("rows of {own} numbers, as the memory's");
            return Err(Error::argument("embeddings", expected, format!("[{rows}, {dim}]")));
        }
        Ok(rows as usize)
    }

    /// Copies `count` rows of new embeddings and labels, from row `from` on, to the places from `to` on.
    fn write(&self, new: [&Tensor; 2], from: usize, to: usize, count: usize) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        let part = |of: &Tensor, first: usize| of.f_narrow(0, first as i64, count as i64);
        for (ring, new) in [&self.embeddings, &self.labels].into_iter().zip(new) {
            part(ring, to)?.f_copy_(&part(new, from)?)?;
        }
        Ok(())
    }

    /// Sets the next place and how many rows are filled.
    fn fill(&mut self, next: usize, len: usize) -> Result<(), Error> {
        self.filled = [self.embeddings.f_narrow(0, 0, len as i64)?, self.labels.f_narrow(0, 0, len as i64)?];
        (self.next, self.len) = (next, len);
        Ok(())
    }
}

fn or_panic<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("CrossBatchMemory: {error}"))
}
