//! The race detector: happens-before with vector clocks, one cell per byte of memory.
//!
//! Each thread of the running block has a clock, and knows up to which time of each other thread everything is ordered
//! before it: barriers and `__syncwarp` share that knowledge among their threads, a release leaves it in the atomic
//! variable, an acquire takes it from there, whatever blocks they are in. Two accesses to a byte by two threads, one of
//! them a write and not both atomic, are a race if the thread of the second does not know of the time of the first:
//! then there is no order between them, whichever ran first.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::rc::Rc;

/// The flags of an access: `emu::Access` of cuda/runtime.h, and 16 for a `cp.async` that lands.
#[derive(Clone, Copy)]
pub(crate) struct Kind(pub c_int);

impl Kind {
    pub const READ: Self = Self(0);
    pub const WRITE: Self = Self(1);
    /// The write of a `cp.async` when it lands.
    pub const LANDING: Self = Self(1 | 16);
    pub fn writes(self) -> bool {
        self.0 & 3 != 0
    }
    fn reads(self) -> bool {
        self.0 & 1 == 0
    }
    fn atomic(self) -> bool {
        self.0 & 2 != 0
    }
    fn releases_and_acquires(self) -> bool {
        self.0 & 4 != 0
    }
    pub fn aligned(self) -> bool {
        self.0 & 8 != 0
    }
    fn lands(self) -> bool {
        self.0 & 16 != 0
    }
}

/// Who touched a byte last, and from where.
#[derive(Clone, Copy, Default)]
pub(crate) struct Access {
    pub site: usize,
    pub block: u32,
    pub thread: u16,
    atomic: bool,
    /// The thread's time; 0: nobody has accessed the byte.
    time: u32,
}

/// The history of one byte of memory.
#[derive(Clone, Default)]
struct Cell {
    write: Access,
    /// A read since the last write.
    read: Access,
    /// Up to `MAX_READERS` more accesses since the last write that are not ordered behind it.
    others: Others,
    /// A `cp.async` into it is in flight.
    pending: bool,
}
const MAX_READERS: usize = 64;

/// Accesses sorted by who made them: a byte that many threads read is looked up by each of them, often.
#[derive(Clone, Default)]
struct Others {
    all: Vec<Access>,
    /// Whether one of the accesses may be atomic.
    atomic: bool,
}

impl Others {
    fn note(&mut self, access: Access) {
        let who = |a: &Access| (a.block, a.thread, a.atomic);
        match self.all.binary_search_by_key(&who(&access), who) {
            Ok(at) => self.all[at] = access,
            Err(at) if self.all.len() < MAX_READERS => {
                self.all.insert(at, access);
                self.atomic |= access.atomic;
            }
            Err(_) => {}
        }
    }

    fn clear(&mut self) {
        self.all.clear();
        self.atomic = false;
    }
}

/// The history of each byte of a buffer or shared array during a launch.
#[derive(Default)]
pub(crate) struct Shadow(Vec<Cell>);

impl Shadow {
    pub fn new(bytes: usize) -> Self {
        Self(vec![Cell::default(); bytes])
    }
    pub fn set_pending(&mut self, offset: usize, bytes: usize, pending: bool) {
        self.0[offset..offset + bytes].iter_mut().for_each(|cell| cell.pending = pending);
    }
}

/// Times of the threads of one block.
type Times = Rc<Vec<u32>>;

/// The clock of a thread of the running block, and what it knows of others'.
#[derive(Clone)]
struct Clock {
    time: u32,
    /// Up to which time of each thread of this block all is ordered before this thread (its own entry is not kept up).
    here: Times,
    /// Up to which time of each thread of other blocks all is ordered before this thread.
    elsewhere: Rc<BTreeMap<u32, Times>>,
}

/// What is wrong with an access to a byte.
pub(crate) enum Finding {
    Race(Access),
    Uninitialised,
    InFlight,
}

/// What the threads of the running block know of times.
#[derive(Default)]
struct Order {
    block: u32,
    clocks: Vec<Clock>,
}

impl Order {
    /// Whether an access is ordered before what the thread does now.
    fn has(&self, before: &Access, thread: usize) -> bool {
        let (other, clock) = (usize::from(before.thread), &self.clocks[thread]);
        before.time == 0
            || if before.block == self.block {
                other == thread || clock.here[other] >= before.time
            } else {
                clock.elsewhere.get(&before.block).is_some_and(|times| times[other] >= before.time)
            }
    }
}

#[derive(Default)]
pub(crate) struct Detector {
    order: Order,
    /// The knowledge that releases have left, by the variable's address.
    released: HashMap<usize, BTreeMap<u32, Times>>,
    pub globals: BTreeMap<usize, Shadow>,
}

fn join(to: &mut Times, from: &Times) {
    if Rc::ptr_eq(to, from) || from.iter().zip(to.iter()).all(|(f, t)| f <= t) {
        return;
    }
    Rc::make_mut(to).iter_mut().zip(from.iter()).for_each(|(t, f)| *t = (*t).max(*f));
}

fn join_blocks(to: &mut BTreeMap<u32, Times>, from: &BTreeMap<u32, Times>) {
    for (block, times) in from {
        to.entry(*block).and_modify(|t| join(t, times)).or_insert_with(|| times.clone());
    }
}

impl Detector {
    /// A detector for one launch; `globals` has each buffer's address and size.
    pub fn new(globals: impl Iterator<Item = (usize, usize)>) -> Self {
        Self { globals: globals.map(|(start, bytes)| (start, Shadow::new(bytes))).collect(), ..Self::default() }
    }

    pub fn start_block(&mut self, block: u32, threads: usize) {
        let new = Clock { time: 1, here: Rc::new(vec![0; threads]), elsewhere: Rc::default() };
        self.order = Order { block, clocks: vec![new; threads] };
    }

    /// Orders what each of `threads` did before what each of them does from now on.
    pub fn synchronise(&mut self, threads: &[usize]) {
        let Some(&first) = threads.first() else { return };
        let clocks = &mut self.order.clocks;
        let mut here = clocks[first].here.clone();
        let mut elsewhere = clocks[first].elsewhere.clone();
        for &t in threads {
            join(&mut here, &clocks[t].here);
            if !Rc::ptr_eq(&elsewhere, &clocks[t].elsewhere) {
                let mut all = (*elsewhere).clone();
                join_blocks(&mut all, &clocks[t].elsewhere);
                elsewhere = Rc::new(all);
            }
        }
        for &t in threads {
            Rc::make_mut(&mut here)[t] = clocks[t].time;
        }
        for &t in threads {
            let time = clocks[t].time + 1;
            clocks[t] = Clock { time, here: here.clone(), elsewhere: elsewhere.clone() };
        }
    }

    fn release_and_acquire(&mut self, thread: usize, variable: usize) {
        let Order { block, clocks } = &mut self.order;
        let clock = &mut clocks[thread];
        let released = self.released.entry(variable).or_default();
        let mut elsewhere = (*clock.elsewhere).clone();
        join_blocks(&mut elsewhere, released);
        if let Some(here) = elsewhere.remove(block) {
            join(&mut clock.here, &here);
        }
        clock.elsewhere = Rc::new(elsewhere);
        let mut known = clock.here.clone();
        Rc::make_mut(&mut known)[thread] = clock.time;
        join_blocks(released, &clock.elsewhere);
        released.entry(*block).and_modify(|t| join(t, &known)).or_insert(known);
        clock.time += 1;
    }

    /// Remembers an access, and returns the first thing that is wrong with it. `shared`: the shadow of a shared array;
    /// `None` for the buffer at `start`. `written`: for each byte touched, whether it was written before.
    pub fn access(
        &mut self,
        shared: Option<&mut Shadow>,
        (start, offset): (usize, usize),
        written: &mut [bool],
        thread: usize,
        kind: Kind,
        site: usize,
    ) -> Option<Finding> {
        let mut found = None;
        let order = &self.order;
        let shadow = match shared {
            Some(shadow) => shadow,
            None => self.globals.get_mut(&start).expect("every buffer has a shadow"),
        };
        let now = Access {
            site,
            block: order.block,
            thread: thread as u16,
            atomic: kind.atomic(),
            time: order.clocks[thread].time,
        };
        for (cell, written) in shadow.0[offset..].iter_mut().zip(written.iter_mut()) {
            if cell.pending && !kind.lands() {
                found = found.or(Some(Finding::InFlight));
                cell.pending = false;
            }
            if kind.reads() && !*written {
                found = found.or(Some(Finding::Uninitialised));
                *written = true;
            }
            let races = |before: &Access| !(before.atomic && now.atomic || order.has(before, thread));
            if races(&cell.write) {
                found = found.or(Some(Finding::Race(cell.write)));
            }
            if kind.writes() {
                if let Some(read) = std::iter::once(&cell.read).chain(&cell.others.all).find(|read| races(read)) {
                    found = found.or(Some(Finding::Race(*read)));
                }
                // The next plain access must be ordered behind the atomics of all threads, and not only the last one's.
                if now.atomic && cell.write.atomic && !order.has(&cell.write, thread) {
                    cell.others.note(cell.write);
                } else {
                    cell.others.clear();
                }
                cell.write = now;
                cell.read = Access::default();
                *written = true;
                continue;
            }
            let atomics = if cell.others.atomic { &cell.others.all[..] } else { &[] };
            if let Some(write) = atomics.iter().find(|other| other.atomic && races(other)) {
                found = found.or(Some(Finding::Race(*write)));
            }
            if cell.read.time == 0 || order.has(&cell.read, thread) {
                cell.read = now;
            } else {
                cell.others.note(now);
            }
        }
        if kind.releases_and_acquires() {
            self.release_and_acquire(thread, start + offset);
        }
        found
    }
}
