//! Device memory of a pass, laid out before it is allocated.

use super::{Address, Launcher, Memory};
use crate::Error;

/// Parts begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// The product of the factors, or the largest number if it overflows: more than any memory holds.
pub(crate) fn count_of<const N: usize>(factors: [usize; N]) -> usize {
    factors.into_iter().fold(1, usize::saturating_mul)
}

/// Lays out the parts of one piece of memory.
#[derive(Default)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// Adds a part of `count` numbers of `size` bytes, and returns its offset in the memory. If the size overflows it becomes
    /// the largest number, which no device can allocate.
    pub fn part(&mut self, count: usize, size: usize) -> Address {
        let at = self.bytes;
        let end = count.checked_mul(size).and_then(|bytes| bytes.checked_add(at));
        self.bytes = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT)).unwrap_or(usize::MAX);
        at as Address
    }

    /// Allocates the memory.
    pub fn allocate<L: Launcher>(&self, launcher: &L) -> Result<L::Memory, Error> {
        launcher.allocate(self.bytes.max(1))
    }
}

/// The layout of a forward pass: what a backward pass needs too, what it does not, and of the latter what starts as zeros.
#[derive(Default)]
pub(crate) struct WorkspaceLayout {
    pub kept: Layout,
    pub passing: Layout,
    pub zeroed: Layout,
}

impl WorkspaceLayout {
    /// Allocates both. `together`: as one piece, of which what passes is kept too. That spares small batches, whose time goes
    /// into what the host does, an allocation; large ones want the memory back.
    pub fn allocate<L: Launcher>(&self, launcher: &L, together: bool) -> Result<Workspace<L::Memory>, Error> {
        let Self { kept, passing, zeroed } = self;
        let passing = Layout { bytes: passing.bytes.saturating_add(zeroed.bytes) };
        let zeroed = |passing_at: Address| (passing_at + self.passing.bytes as Address, zeroed.bytes);
        if together {
            let kept_bytes = kept.bytes;
            let kept = Layout { bytes: kept_bytes.saturating_add(passing.bytes) }.allocate(launcher)?;
            let passing_at = kept.address() + kept_bytes as Address;
            return Ok(Workspace { kept, passing: None, passing_at, zeroed: zeroed(passing_at) });
        }
        let (kept, passing) = (kept.allocate(launcher)?, passing.allocate(launcher)?);
        let passing_at = passing.address();
        Ok(Workspace { kept, passing_at, passing: Some(passing), zeroed: zeroed(passing_at) })
    }
}

/// The memory of a forward pass.
pub(crate) struct Workspace<M> {
    kept: M,
    passing: Option<M>,
    passing_at: Address,
    zeroed: (Address, usize),
}

impl<M: Memory> Workspace<M> {
    /// Where the parts of [`WorkspaceLayout::kept`] begin.
    pub fn kept(&self) -> Address {
        self.kept.address()
    }

    /// Where the parts of [`WorkspaceLayout::passing`] begin.
    pub fn passing(&self) -> Address {
        self.passing_at
    }

    /// Where the parts of [`WorkspaceLayout::zeroed`] begin, and how many bytes they have.
    pub fn zeroed(&self) -> (Address, usize) {
        self.zeroed
    }

    /// The memory that a backward pass needs, and, unless it is one piece with that, the memory that passes.
    pub fn into_parts(self) -> (M, Option<M>) {
        (self.kept, self.passing)
    }

    /// The memory that a backward pass needs; the rest is freed once it has been used.
    pub fn into_kept(self) -> M {
        self.kept
    }
}
