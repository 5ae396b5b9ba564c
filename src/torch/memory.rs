//! A memory of embeddings of earlier batches, from which a mined loss takes positives and negatives.

use tch::{Device, Kind, Tensor};

use super::mined::{MinedLoss, WithStats, integers};
use super::tensors::{check_embeddings, check_kind_and_device};
use crate::{Error, Own, Reference};

/// The embeddings of the last batches with their labels, as a reference set: many more positives and negatives than a batch
/// has, at the cost of a copy.
///
/// ```text
/// enqueue(X, y)      row i of X goes to place (next + i) mod capacity, where the oldest is
/// forward(loss, ..)  enqueue(X, y), then the loss of X against the memory: positives and negatives of x_a are all rows of
///                    the memory but its own, those of the batch itself among them
/// ```
///
/// From "Cross-Batch Memory for Embedding Learning" (Wang, Zhang, Huang, Scott 2020), whose observation is that embeddings
/// drift slowly: old ones still are good negatives. The numbers are those of pytorch-metric-learning's class of this name.
///
/// What lies in the memory is a copy without a gradient, so a pair of two rows of the batch moves its anchor alone; where
/// the loss weighs `(a, b)` as `(b, a)` and distances are squared, the gradient of a memory that holds nothing but the batch
/// is half of the batch's own. Reference indices are places of the ring, so of equally far rows the one in the lowest place
/// is taken, not the oldest. A row of NaN or infinity makes the loss NaN until it is written over, or until
/// [`clear`](Self::clear).
///
/// Embeddings of the first steps drift fast. With a [`warm_up`](Self::warm_up) `forward` is the loss of the batch itself,
/// gradients on both sides of each pair, while fewer rows are in the memory.
///
/// Memory is `capacity dim` numbers of the embeddings' dtype and `capacity` i64. Nothing waits for the device. The place of
/// the next row is the host's: a replayed CUDA graph writes to the same places again. A loss that has not gone backward
/// yet reads the memory again when it does: go backward before the next `enqueue`, or that is PyTorch's error for tensors
/// changed in place.
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
///     let loss = memory.forward(&loss_fn, &embeddings, &labels); // the batch's own in the first step, then the memory's
///     loss.backward();
///     assert_eq!(embeddings.grad().size(), [4, 128]);
/// }
/// assert_eq!((memory.len(), memory.capacity()), (12, 1024));
/// ```
#[derive(Debug)]
pub struct CrossBatchMemory {
    embeddings: Tensor,
    labels: Tensor,
    /// Of both the rows that are filled: views.
    filled: [Tensor; 2],
    /// Where the next row goes.
    next: usize,
    len: usize,
    warm_up: usize,
}

impl CrossBatchMemory {
    /// An empty memory of `capacity` rows of `dim` numbers, for embeddings of this dtype on this device.
    ///
    /// # Panics
    /// Where [`f_new`](Self::f_new) returns an error, with its text.
    pub fn new(capacity: usize, dim: usize, kind: Kind, device: Device) -> Self {
        or_panic(Self::f_new(capacity, dim, kind, device))
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    /// If `capacity` or `dim` is 0 or too large, `kind` is not f32, f16, bf16 or on the CPU f64, `device` is neither the CPU
    /// nor a CUDA device, or memory runs out.
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

    /// The same memory, which [`forward`](Self::forward) looks at as soon as so many rows are in it; 0, the default: from the
    /// first batch on. More than the capacity means when it is full.
    pub fn warm_up(self, rows: usize) -> Self {
        Self { warm_up: rows.min(self.capacity()), ..self }
    }

    /// Whether the warm-up is over.
    pub fn is_warm(&self) -> bool {
        self.len >= self.warm_up
    }

    /// The rows in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rows that it can hold.
    pub fn capacity(&self) -> usize {
        self.labels.numel()
    }

    /// Whether the next row takes the place of another one.
    pub fn is_full(&self) -> bool {
        self.len == self.capacity()
    }

    /// The place of the next row.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Forgets all rows; a warm-up begins again.
    pub fn clear(&mut self) {
        or_panic(self.fill(0, 0));
    }

    /// Copies a batch, of any number of rows, to the places of the oldest. Of a batch larger than the memory the last rows stay.
    ///
    /// `embeddings` are `[N, D]`, `labels` `[N]`, i64 or i32; both may be part of a graph and any views.
    ///
    /// # Panics
    /// Where [`f_enqueue`](Self::f_enqueue) returns an error, with its text.
    pub fn enqueue(&mut self, embeddings: &Tensor, labels: &Tensor) {
        or_panic(self.f_enqueue(embeddings, labels));
    }

    /// As [`enqueue`](Self::enqueue).
    ///
    /// # Errors
    /// If the embeddings' dtype, device or D are not the memory's, there are none, or there is not one label a row; the
    /// memory is then as it was. If libtorch refuses one of the copies, those before it have taken the places of the oldest rows.
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

    /// What is in the memory, as `forward_against` takes it: none of the anchors are. For a batch that has been enqueued put
    /// `own: Own::Rows(&memory.newest(n))` in its place. An empty memory is an error of the loss.
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
    /// let loss = loss_fn.forward_against(&embeddings, &labels, &reference);
    /// # assert!(loss.double_value(&[]) > 0.0);
    /// ```
    pub fn reference(&self) -> Reference<&Tensor, &Tensor> {
        Reference { embeddings: &self.filled[0], labels: &self.filled[1], own: Own::None }
    }

    /// The places of the last `rows` rows that were enqueued, in their order: i64 `[rows]` on the memory's device. −1, which
    /// is no row of a reference, for those that are no longer there.
    ///
    /// # Panics
    /// Where [`f_newest`](Self::f_newest) returns an error, with its text.
    pub fn newest(&self, rows: usize) -> Tensor {
        or_panic(self.f_newest(rows))
    }

    /// As [`newest`](Self::newest).
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

    /// Enqueues the batch, then its loss against the memory, where no anchor is its own positive: a scalar, or `[N]` for
    /// `Reduction::None`, part of the graph of `embeddings`. During the warm-up, the loss of the batch itself.
    ///
    /// # Panics
    /// Where [`f_forward`](Self::f_forward) returns an error, with its text.
    pub fn forward(&mut self, loss: &impl MinedLoss, embeddings: &Tensor, labels: &Tensor) -> Tensor {
        or_panic(self.f_forward(loss, embeddings, labels))
    }

    /// As [`forward`](Self::forward).
    ///
    /// # Errors
    /// As [`f_enqueue`](Self::f_enqueue), or as the loss's `f_forward_against`; after an error of the loss the batch has been
    /// enqueued.
    pub fn f_forward(&mut self, loss: &impl MinedLoss, embeddings: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
        Ok(self.f_forward_with_stats(loss, embeddings, labels)?.loss)
    }

    /// As [`forward`](Self::forward), and what the batch and the memory are like.
    ///
    /// # Panics
    /// Where [`f_forward_with_stats`](Self::f_forward_with_stats) returns an error, with its text.
    pub fn forward_with_stats(&mut self, loss: &impl MinedLoss, embeddings: &Tensor, labels: &Tensor) -> WithStats {
        or_panic(self.f_forward_with_stats(loss, embeddings, labels))
    }

    /// As [`forward_with_stats`](Self::forward_with_stats).
    ///
    /// # Errors
    /// As [`f_forward`](Self::f_forward).
    pub fn f_forward_with_stats(
        &mut self,
        loss: &impl MinedLoss,
        embeddings: &Tensor,
        labels: &Tensor,
    ) -> Result<WithStats, Error> {
        self.f_enqueue(embeddings, labels)?;
        if !self.is_warm() {
            return loss.f_forward_with_stats(embeddings, labels);
        }
        let own = self.f_newest(embeddings.size()[0] as usize)?;
        let reference = Reference { own: Own::Rows(&own), ..self.reference() };
        loss.f_forward_against_with_stats(embeddings, labels, &reference)
    }

    /// Goes on from what another memory held, to the same bits: its [`reference`](Self::reference)'s tensors, which may be on
    /// another device, and its [`position`](Self::position).
    ///
    /// # Errors
    /// If the embeddings' dtype or D are not the memory's, there are more rows than places or not one label a row, or the
    /// position is not one that so many rows leave; the memory is then as it was.
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
        // Of a memory that is not full the next place is the first empty one.
        if position >= capacity || rows < capacity && position != rows {
            let expected = if rows < capacity { format!("{rows}, the rows") } else { format!("below {capacity}") };
            return Err(Error::argument("position", expected, position.to_string()));
        }
        self.write([embeddings, &labels], 0, 0, rows)?;
        self.fill(position, rows)
    }

    /// How many rows of the memory's D there are.
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

    /// Copies `count` rows of new embeddings and labels.
    fn write(&self, new: [&Tensor; 2], from: usize, to: usize, count: usize) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        let part = |of: &Tensor, first: usize| of.f_narrow(0, first as i64, count as i64);
        for (ring, new) in [&self.embeddings, &self.labels].into_iter().zip(new) {
            part(ring, to)?.f_copy_(&part(new, from)?)?;
        }
        Ok(())
    }

    /// Says what is filled.
    fn fill(&mut self, next: usize, len: usize) -> Result<(), Error> {
        self.filled = [self.embeddings.f_narrow(0, 0, len as i64)?, self.labels.f_narrow(0, 0, len as i64)?];
        (self.next, self.len) = (next, len);
        Ok(())
    }
}

fn or_panic<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| panic!("CrossBatchMemory: {error}"))
}
