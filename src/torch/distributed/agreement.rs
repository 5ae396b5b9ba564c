//! What processes say to each other before anything is sent: gloo ends a process that receives a tensor of another size than it
//! expects, so sizes are compared first.
//!
//! Each call of a group begins with the same 80 bytes a process, whatever the call. So processes that make different calls find that
//! out as well, and each returns an error instead of waiting.

use tch::{Kind, Tensor};

use super::ProcessGroup;
use crate::Error;

/// The numbers of a notice, after the two that say whether the process failed, and the call.
const TERMS: usize = 8;

/// A call that all processes make together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    AllGather,
    AllReduce,
    Any,
    Average,
    Averaging,
    Backward,
    Barrier,
    BatchNorm,
    Broadcast,
    Exchange,
    First,
    Gather,
    Loss,
    Memory,
    ReduceScatter,
    ScatterSum,
    Shards,
}

const OPS: [(Op, &str); 17] = [
    (Op::AllGather, "all_gather"),
    (Op::AllReduce, "all_reduce"),
    (Op::Any, "any"),
    (Op::Average, "average"),
    (Op::Averaging, "averaging"),
    (Op::Backward, "a backward pass"),
    (Op::Barrier, "barrier"),
    (Op::BatchNorm, "batch norm"),
    (Op::Broadcast, "a broadcast"),
    (Op::Exchange, "exchange"),
    (Op::First, "first"),
    (Op::Gather, "gather"),
    (Op::Loss, "a loss"),
    (Op::Memory, "a memory's loss"),
    (Op::ReduceScatter, "reduce_scatter"),
    (Op::ScatterSum, "scatter_sum"),
    (Op::Shards, "shards"),
];

/// One number of a notice.
#[derive(Clone, Copy, Debug)]
pub(super) enum Term {
    /// The same in all processes.
    Same(&'static str, i64),
    /// The same in all processes, and a dtype.
    Dtype(i64),
    /// The same in all processes; of the number itself, a hash, nothing is to be said.
    Hash(&'static str, i64),
    /// Each process's own.
    Own(i64),
}

impl Term {
    pub fn dtype(kind: Kind) -> Self {
        Self::Dtype(kind as i64)
    }

    fn number(self) -> i64 {
        match self {
            Self::Same(_, number) | Self::Dtype(number) | Self::Hash(_, number) | Self::Own(number) => number,
        }
    }

    /// In words how two processes differ in this term; `None` if they may.
    fn difference(self, numbers: [i64; 2]) -> Option<String> {
        let [a, b] = numbers;
        match self {
            Self::Own(_) => None,
            Self::Same(what, _) => Some(format!("{what}: {a} and {b}")),
            Self::Hash(what, _) => Some(what.into()),
            Self::Dtype(_) => {
                let [a, b] = numbers.map(|number| DTYPES.iter().find(|kind| **kind as i64 == number));
                let name = |kind: Option<&Kind>| kind.map_or("another".into(), |kind| format!("{kind:?}"));
                Some(format!("dtype: {} and {}", name(a), name(b)))
            }
        }
    }
}

const DTYPES: [Kind; 10] = [
    Kind::Bool,
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Half,
    Kind::BFloat16,
    Kind::Float,
    Kind::Double,
];

/// What a process is about to do.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub op: Op,
    pub terms: Vec<Term>,
}

impl Notice {
    pub fn new(op: Op, terms: impl Into<Vec<Term>>) -> Self {
        let terms = terms.into();
        assert!(terms.len() <= TERMS, "{op:?}");
        Self { op, terms }
    }

    /// A collective of a tensor of this shape.
    pub fn of(op: Op, tensor: &Tensor) -> Self {
        let size = tensor.size();
        let axis = |i: usize| size.get(i).copied().unwrap_or(1);
        let mut terms = vec![
            Term::dtype(tensor.kind()),
            Term::Same("the number of dimensions", size.len() as i64),
            Term::Same("the size of dimension 0", axis(0)),
            Term::Same("the size of dimension 1", axis(1)),
            Term::Same("the size of dimension 2", axis(2)),
            Term::Same("the numbers in a tensor", tensor.numel() as i64),
        ];
        terms.push(Term::Same("whether it is on a CUDA device", tensor.device().is_cuda().into()));
        Self::new(op, terms)
    }
}

/// FNV-1a, of what is compared but too long to be sent.
pub(super) fn hash(text: &str) -> i64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step) as i64
}

impl ProcessGroup {
    /// Compares what the processes are about to do; an error in all of them if they differ. A process that cannot take part,
    /// with an error of its own, says so by it, and all return. The terms of all processes, if they were exchanged.
    pub(super) fn agree(&self, notice: Result<Notice, Error>) -> Result<Option<Vec<Vec<i64>>>, Error> {
        if self.0.checks { self.tell(notice).map(Some) } else { notice.map(|_| None) }
    }

    /// Compares what the processes are about to do, as [`agree`](Self::agree) does, and returns the terms of all.
    pub(super) fn tell(&self, notice: Result<Notice, Error>) -> Result<Vec<Vec<i64>>, Error> {
        if self.is_alone() {
            return Ok(vec![notice?.terms.into_iter().map(Term::number).collect()]);
        }
        const LENGTH: usize = 2 + TERMS;
        let mut mine = [0; LENGTH];
        match &notice {
            Err(_) => mine[0] = 1,
            Ok(notice) => {
                mine[1] = notice.op as i64;
                mine[2..].iter_mut().zip(&notice.terms).for_each(|(place, term)| *place = term.number());
            }
        }
        let all = self.gathered(&Tensor::from_slice(&mine).f_unsqueeze(0)?);
        let notice = notice?; // its own error tells more than that of a lost connection
        let all = Vec::<i64>::try_from(all?.f_reshape([-1])?)?;
        self.compare(&notice, &all.chunks_exact(LENGTH).collect::<Vec<_>>())?;
        Ok(all.chunks_exact(LENGTH).map(|theirs| theirs[2..2 + notice.terms.len()].to_vec()).collect())
    }

    fn compare(&self, notice: &Notice, all: &[&[i64]]) -> Result<(), Error> {
        if let Some(failed) = all.iter().position(|theirs| theirs[0] != 0) {
            return Err(self.error(format!("process {failed} has an error of its own, and takes no part")));
        }
        let first = all[0];
        for (rank, theirs) in all.iter().enumerate() {
            if theirs[1] != first[1] {
                let name =
                    |op: i64| OPS.iter().find(|(known, _)| *known as i64 == op).map_or("another", |(_, name)| *name);
                let (a, b) = (name(first[1]), name(theirs[1]));
                return Err(self.error(format!("processes 0 and {rank} make different calls: {a} and {b}")));
            }
            for (i, term) in notice.terms.iter().enumerate() {
                let numbers = [first[2 + i], theirs[2 + i]];
                if let Some(what) = term.difference(numbers).filter(|_| numbers[0] != numbers[1]) {
                    let (_, call) = OPS[notice.op as usize];
                    return Err(self.error(format!("{call}: processes 0 and {rank} differ in {what}")));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_its_name() {
        for (i, (op, _)) in OPS.iter().enumerate() {
            assert_eq!(*op as usize, i);
        }
    }
}
