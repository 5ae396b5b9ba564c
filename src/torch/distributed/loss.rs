//! Mined losses of a batch that lies over several processes. The formulas stand in mod.rs.

use tch::{Device, Kind, Tensor};

use super::agreement::{Notice, Op, Term, hash};
use super::shards::{Shards, Work, is_narrow};
use crate::problem::Options;
use crate::torch::call::{Arguments, Counted, TensorStats, empty_output, integers};
use crate::torch::{CustomFunction, needs_grad};
use crate::{Call, Error, MeanOver, MinedLoss, Own, Reduction, Reference};

/// Calls on tensors of which each process has a part.
impl<'a, L: MinedLoss> Call<'a, L, &Tensor> {
    /// Makes the call one over the batch of all processes, of which the embeddings and labels are this process's rows.
    ///
    /// ```text
    /// value      the loss of one process with all rows, in the order of ranks: the same in each process
    /// gradient   of this process's rows, times the number of processes: the mean over processes of the weights' gradients, which
    ///            average makes, is then the gradient of the loss
    /// statistics those of the whole batch
    /// ```
    ///
    /// The shards say how many rows each process has; it may have none. All processes make the call, and go backward through it,
    /// or none does. [`Shards::repeated`] asks for the bits of one process instead of a share of the work. With
    /// [`Negatives::Hardest`](crate::Negatives::Hardest), which selects over the whole batch, and with
    /// [`means_apart`](crate::BatchContrastiveLoss::means_apart) the work is always repeated.
    ///
    /// With [`against`](Self::against) the reference set is one that all processes have, and its `own` says where this process's
    /// anchors are in it. If it requires a gradient, the mean over processes of its gradients is the gradient of the loss.
    ///
    /// With [`Reduction::None`] the result is the losses of this process's own anchors, and each process weighs them itself: the
    /// gradient is that of the sum over processes of what they make of theirs, without the factor.
    ///
    /// The call is an error in all processes if they differ in the loss, its options, D, dtype, shards, or in whether a gradient is
    /// needed.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tercet::BatchAllTripletLoss;
    /// use tercet::torch::distributed::ProcessGroup;
    ///
    /// let group = ProcessGroup::from_env()?; // of torchrun --no-python --nproc-per-node 4, for example
    /// let shards = group.shards(6)?;
    /// let embeddings = Tensor::randn([6, 32], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    /// let labels = Tensor::from_slice(&[0i64, 0, 1, 1, 2, 2]);
    /// let loss_fn = BatchAllTripletLoss::default();
    /// let found = loss_fn.on(&embeddings, &labels).over(&shards).f_forward_with_stats()?;
    /// found.loss.f_backward()?;
    /// // Each row has one positive or more in each process, and four negatives.
    /// assert!(found.stats.valid.int64_value(&[]) >= 6 * 4);
    /// # Ok::<(), tercet::Error>(())
    /// ```
    pub fn over(self, shards: &'a Shards) -> Self {
        Self { shards: Some(shards), ..self }
    }
}

/// Runs a call over the shards of its batch. `count`: whether the statistics will be read.
pub(in crate::torch) fn run<L: MinedLoss>(
    call: Call<'_, L, &Tensor>,
    shards: &Shards,
    count: bool,
) -> Result<(Tensor, Counted), Error> {
    let call = Call { shards: None, ..call };
    shards.group().agree(notice(&call, shards))?;
    if shards.group().is_alone() {
        return call.run_here(None, count);
    }
    match shards.work() {
        Work::Shared if call.loss_fn.is_sum_over_anchors() => shared(call, shards, count),
        _ => repeated(call, shards, count),
    }
}

/// What the processes compare of a call, after the checks of its tensors.
fn notice<L: MinedLoss>(call: &Call<'_, L, &Tensor>, shards: &Shards) -> Result<Notice, Error> {
    let arguments = Arguments::new(call)?;
    shards.group().takes("embeddings", call.embeddings)?;
    let size = call.embeddings.size();
    if size[0] != shards.own() {
        let expected = format!("{} rows, as the shards say", shards.own());
        return Err(Error::argument("embeddings", expected, format!("{size:?}")));
    }
    if shards.total() == 0 {
        return Err(Error::argument("embeddings", "at least one row in one of the processes", "none"));
    }
    let reference = call.reference.map(|reference| reference.embeddings);
    let own = call.reference.map(|reference| reference.own.map(|_| ()));
    let own = own.map_or("", |own| match own {
        Own::None => "none",
        Own::Offset(_) => "offset",
        Own::Rows(()) => "rows",
    });
    let needs = i64::from(needs_grad(call.embeddings)) | i64::from(reference.is_some_and(needs_grad)) << 1;
    drop(arguments);
    Ok(Notice::new(
        Op::Loss,
        [
            Term::Hash("the loss or its options", hash(&format!("{} {:?} {own}", L::NAME, call.loss_fn))),
            Term::dtype(call.embeddings.kind()),
            Term::Same("D", size[1]),
            Term::Same("whether it is on a CUDA device", call.embeddings.device().is_cuda().into()),
            Term::Same("the tensors that need a gradient", needs),
            Term::Hash("whether the work is shared or repeated", shards.work() as i64),
            Term::Same("the rows of the reference set", reference.map_or(-1, |reference| reference.size()[0])),
            shards.term(),
        ],
    ))
}

/// This process's anchors against the rows of all.
fn shared<L: MinedLoss>(call: Call<'_, L, &Tensor>, shards: &Shards, count: bool) -> Result<(Tensor, Counted), Error> {
    let labels = integers("labels", call.labels, "embeddings", call.embeddings)?;
    let (rows, all, all_labels);
    let (embeddings, reference) = match call.reference {
        Some(reference) => (call.embeddings, *reference),
        None => {
            // 16-bit rows travel as they are. Their gradients are added up over processes in f32, and rounded once.
            let arithmetic = if is_narrow(call.embeddings.kind()) { Kind::Float } else { call.embeddings.kind() };
            rows = call.embeddings.f_to_kind(arithmetic)?;
            let (sent, sent_labels) = (shards.begin_gather(call.embeddings)?, shards.begin_gather(&labels)?);
            all = shards.attach_sum(&rows, &sent.wait()?.f_to_kind(arithmetic)?)?;
            all_labels = sent_labels.wait()?;
            (&rows, Reference { embeddings: &all, labels: &all_labels, own: Own::Offset(shards.first()) })
        }
    };
    let reduction = call.loss_fn.options().reduction;
    let of_anchors = if reduction == Reduction::None { Reduction::None } else { Reduction::Sum };
    let (loss, counted) = match shards.own() {
        0 => nothing(embeddings, &reference, of_anchors)?,
        _ => Call { embeddings, labels: &labels, reference: Some(&reference), ..call }
            .run_here(Some(of_anchors), true)?,
    };
    let totals = Totals::of::<L>(shards, &loss, &counted, &labels, &reference)?;
    let options = call.loss_fn.options();
    let loss = if reduction == Reduction::None { loss } else { totals.reduced(&options, shards, &loss)? };
    Ok((loss, if count { Counted::OfAll(totals.stats()?) } else { Counted::Unasked }))
}

/// The batch of all processes in each of them.
fn repeated<L: MinedLoss>(
    call: Call<'_, L, &Tensor>,
    shards: &Shards,
    count: bool,
) -> Result<(Tensor, Counted), Error> {
    let labels = integers("labels", call.labels, "embeddings", call.embeddings)?;
    let (sent, sent_labels) = (shards.begin_gather(call.embeddings)?, shards.begin_gather(&labels)?);
    let (all, all_labels) = (sent.wait()?, sent_labels.wait()?);
    let own = call.reference.map(|reference| own_of_all(&reference.own, &labels, shards)).transpose()?;
    let reference = call.reference.zip(own.as_ref()).map(|(reference, own)| Reference {
        own: own.map(|rows| rows),
        embeddings: reference.embeddings,
        labels: reference.labels,
    });
    let each = call.loss_fn.options().reduction == Reduction::None;
    let all = if each { shards.attach_sum(call.embeddings, &all)? } else { attach_own(shards, call.embeddings, &all)? };
    let call = Call { embeddings: &all, labels: &all_labels, reference: reference.as_ref(), ..call };
    let (loss, counted) = call.run_here(None, count)?;
    let loss = if each { loss.f_narrow(0, shards.first(), shards.own())? } else { loss };
    Ok((loss, counted))
}

/// The rows of all processes, and their labels, for a memory that all have. `memory`: how many rows are in it, and its next place.
pub(in crate::torch) fn batch_of_all<L: MinedLoss>(
    call: &Call<'_, L, &Tensor>,
    shards: &Shards,
    memory: [usize; 2],
) -> Result<(Tensor, Tensor), Error> {
    let notice = notice(call, shards).map(|_| {
        let terms = [
            Term::dtype(call.embeddings.kind()),
            Term::Same("D", call.embeddings.size()[1]),
            Term::Same("whether it is on a CUDA device", call.embeddings.device().is_cuda().into()),
            Term::Same("the rows in the memory", memory[0] as i64),
            Term::Same("the memory's next place", memory[1] as i64),
            shards.term(),
        ];
        Notice::new(Op::Memory, terms)
    });
    shards.group().agree(notice)?;
    let labels = integers("labels", call.labels, "embeddings", call.embeddings)?;
    let (sent, sent_labels) = (shards.begin_gather(call.embeddings)?, shards.begin_gather(&labels)?);
    Ok((sent.wait()?, sent_labels.wait()?))
}

/// Where in a reference set the anchors of all processes are, from where each process's own are.
fn own_of_all(own: &Own<&Tensor>, labels: &Tensor, shards: &Shards) -> Result<Own<Tensor>, Error> {
    let rows = match own {
        Own::None => return Ok(Own::None),
        Own::Offset(offset) => {
            Tensor::f_arange_start(*offset, offset.saturating_add(shards.own()), (Kind::Int64, labels.device()))?
        }
        Own::Rows(rows) => rows.f_to_kind(Kind::Int64)?,
    };
    Ok(Own::Rows(shards.begin_gather(&rows)?.wait()?))
}

/// A tensor with the values of `all`, of whose gradient this process takes that of its rows, times the number of processes.
fn attach_own(shards: &Shards, rows: &Tensor, all: &Tensor) -> Result<Tensor, Error> {
    let (first, own, processes) = (shards.first(), shards.own(), shards.group().size() as f64);
    CustomFunction::new("OwnRows")
        .inputs(&[rows])
        .attach(all, move |ctx| Ok(vec![Some(ctx.upstream().f_narrow(0, first, own)?.f_mul_scalar(processes)?)]))
}

/// What a process without rows has to say: nothing, but it takes part in the others' backward pass.
fn nothing(
    rows: &Tensor,
    reference: &Reference<&Tensor, &Tensor>,
    reduction: Reduction,
) -> Result<(Tensor, Counted), Error> {
    let inputs = [rows, reference.embeddings];
    let options = (rows.kind(), rows.device());
    let sizes = inputs.map(Tensor::size);
    let zero = empty_output(reduction == Reduction::None, rows)?.f_zero_()?;
    let loss = CustomFunction::new("NoRows").inputs(&inputs).attach(&zero, move |ctx| {
        let zeros = |which: usize| Tensor::f_zeros(&sizes[which], options);
        [0, 1].into_iter().map(|i| Ok(if ctx.needs(i) { Some(zeros(i)?) } else { None })).collect()
    })?;
    Ok((loss, Counted::OnHost { stats: crate::Stats::default(), sum: 0.0 }))
}

/// What the anchors of all processes add up to: f64 on the loss's device.
struct Totals(Tensor);

impl Totals {
    const SUM: i64 = 0;
    const VALID: i64 = 1;
    const ACTIVE: i64 = 2;
    /// The sum of the distances to positives, and over how many pairs it is; then the same of negatives.
    const DISTANCES: [[i64; 2]; 2] = [[3, 4], [5, 6]];
    const TOO_MANY_PAIRS: i64 = 7;

    /// Adds up what the processes found.
    fn of<L: MinedLoss>(
        shards: &Shards,
        loss: &Tensor,
        counted: &Counted,
        labels: &Tensor,
        reference: &Reference<&Tensor, &Tensor>,
    ) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let double = |tensor: &Tensor| tensor.f_to_kind(Kind::Double);
        let (sum, stats) = match counted {
            Counted::OnHost { stats, sum } => {
                (Tensor::from(*sum), Counted::OnHost { stats: *stats, sum: *sum }.read()?)
            }
            // Its sum is rounded to f32.
            #[cfg(feature = "cuda")]
            Counted::OnDevice(stats) => {
                (double(&loss.f_sum(Kind::Double)?)?, Counted::OnDevice(stats.shallow_clone()).read()?)
            }
            _ => unreachable!("the loss of this process's anchors is counted"),
        };
        let (valid, active) = (double(&stats.valid)?, double(&stats.active)?);
        let kinds = match L::DISTANCES_BY_KIND {
            true => {
                let positives = double(&positives(labels, reference)?)?.f_to_device(valid.device())?;
                [positives.shallow_clone(), &valid - &positives]
            }
            false => [0, 1].map(|_| valid.shallow_clone()),
        };
        let [positives, negatives] = &kinds;
        let own = [
            sum,
            valid.shallow_clone(),
            active,
            stats.mean_positive_distance * positives,
            positives.shallow_clone(),
            stats.mean_negative_distance * negatives,
            negatives.shallow_clone(),
            double(&stats.too_many_pairs)?,
        ];
        let own = Tensor::f_stack(&own, 0)?.f_to_device(loss.device())?;
        let all = shards.group().gathered(&own.f_unsqueeze(0)?)?; // [W, 8]
        if all.device() != Device::Cpu {
            return Ok(Self(all.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?));
        }
        // In the order of ranks, on whatever processor: the same bits in all processes.
        let mut total = all.f_get(0)?;
        for rank in 1..all.size()[0] {
            total = total.f_add(&all.f_get(rank)?)?;
        }
        Ok(Self(total))
    }

    fn get(&self, i: i64) -> Result<Tensor, Error> {
        Ok(self.0.f_get(i)?)
    }

    /// The loss of the batch of all processes, whose gradient goes on to the sum over this process's anchors.
    fn reduced<X>(&self, options: &Options<X>, shards: &Shards, sum: &Tensor) -> Result<Tensor, Error> {
        let guard = tch::no_grad_guard();
        let divisor = match (options.reduction, options.mean_over) {
            (Reduction::Mean, MeanOver::Valid) => self.get(Self::VALID)?.f_clamp_min(1.0)?,
            (Reduction::Mean, MeanOver::Active) => self.get(Self::ACTIVE)?.f_clamp_min(1.0)?,
            (Reduction::Sum | Reduction::None, _) => self.get(Self::VALID)?.f_ones_like()?,
        };
        let value = (self.get(Self::SUM)? / &divisor).f_to_kind(sum.kind())?;
        let factor = divisor.f_reciprocal()? * shards.group().size() as f64;
        drop(guard);
        CustomFunction::new("OverProcesses").inputs(&[sum]).attach(&value, move |ctx| {
            let upstream = ctx.upstream();
            Ok(vec![Some((upstream.f_to_kind(Kind::Double)? * &factor).f_to_kind(upstream.kind())?)])
        })
    }

    fn stats(&self) -> Result<TensorStats, Error> {
        let [positive, negative] = Self::DISTANCES
            .map(|[sum, count]| -> Result<Tensor, Error> { Ok(self.get(sum)? / self.get(count)?.f_clamp_min(1.0)?) });
        Ok(TensorStats {
            valid: self.get(Self::VALID)?.f_to_kind(Kind::Int64)?,
            active: self.get(Self::ACTIVE)?.f_to_kind(Kind::Int64)?,
            mean_positive_distance: positive?,
            mean_negative_distance: negative?,
            too_many_pairs: self.get(Self::TOO_MANY_PAIRS)?.f_gt(0.0)?,
        })
    }
}

/// How many pairs of an anchor and a row of its class, other than itself, there are.
fn positives(labels: &Tensor, reference: &Reference<&Tensor, &Tensor>) -> Result<Tensor, Error> {
    let theirs = integers("reference.labels", reference.labels, "reference.embeddings", reference.embeddings)?;
    let (sorted, _) = theirs.f_sort(0, false)?;
    let end =
        |right| labels.f_searchsorted(&sorted, false, right, if right { "right" } else { "left" }, None::<Tensor>);
    let of_class = (end(true)? - end(false)?).f_sum(Kind::Int64)?;
    let own = match &reference.own {
        Own::None => return Ok(of_class),
        Own::Offset(offset) => {
            Tensor::f_arange(labels.size()[0], (Kind::Int64, labels.device()))?.f_add_scalar(*offset)?
        }
        Own::Rows(rows) => rows.f_to_kind(Kind::Int64)?,
    };
    let rows = theirs.size()[0];
    let is_row = own.f_ge(0)?.f_logical_and(&own.f_lt(rows)?)?;
    let of_own = theirs.f_index_select(0, &own.f_clamp(0, rows - 1)?)?;
    let is_itself = of_own.f_eq_tensor(labels)?.f_logical_and(&is_row)?;
    Ok(of_class - is_itself.f_sum(Kind::Int64)?)
}
