//! One block: its threads as coroutines, their barriers and warp operations.

mod access;

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::{Coroutine, Yielder};
use tercet::internal::Grid;

pub use access::Traffic;
use access::{Copy, Shared};

use crate::detector::Detector;
use crate::library::Library;
use crate::memory::Region;
use crate::runtime::{Combine, Kernel};

/// Bytes of a thread's stack: enough for the kernels' arrays at -O1; a guard page lies below.
const STACK_BYTES: usize = 192 << 10;
/// How much lower a stack begins than the one before, and how many do before it begins anew. Stacks that began at equal places of
/// their pages would share the few lines of a cache that such addresses may lie in, and a warp's lanes take turns all the time.
const STAGGER: (usize, usize) = (1024 + 128, 32);

/// A stack that begins below the top of its memory.
struct Staggered {
    memory: DefaultStack,
    base: StackPointer,
}

impl Staggered {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let memory = DefaultStack::new(STACK_BYTES).expect("the host has memory for stacks");
        let below = MADE.fetch_add(1, Ordering::Relaxed) % STAGGER.1 * STAGGER.0;
        let base = StackPointer::new(memory.base().get() - below).expect("far above 0");
        Self { memory, base }
    }
}

// SAFETY: the memory is a stack; its part below `base` is one, too, as aligned, because the steps are multiples of 16, and with the
// same guard page.
unsafe impl Stack for Staggered {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.memory.limit()
    }
}

/// What all blocks of a launch have in common.
pub(crate) struct Launch<'a> {
    pub name: &'a str,
    pub kernel: &'a Kernel,
    pub library: &'static Library,
    pub grid: Grid,
    pub arguments: *const c_void,
    pub seed: u64,
    pub shared_bytes_per_block: usize,
}
// SAFETY: the arguments are only read, and outlive the launch.
unsafe impl Sync for Launch<'_> {}

/// A warp operation that a lane waits in. `input` and `output` lie on its stack.
pub(crate) struct Collective {
    pub operation: c_int,
    pub mask: u32,
    pub argument: c_int,
    pub input: *const c_void,
    pub output: *mut c_void,
    pub combine: Option<Combine>,
}
// `emu::Operation` of cuda/runtime.h, as far as it matters here.
const SYNC: c_int = 0;
const VOTE: c_int = 2;
const LOAD_MATRIX: c_int = 5;
/// The argument of a vote whether any lane has a condition: that of `EmuAny` of cuda/platform.cuh.
const ANY: c_int = 2;

/// What a thread can do next.
#[derive(Clone, Copy)]
pub(crate) enum State {
    Ready,
    /// Waits at a barrier; `threads` 0: for all threads that are alive.
    Barrier {
        id: u32,
        threads: u32,
    },
    /// Waits in a warp operation, which lies on its stack.
    Collective(NonNull<Collective>),
    Done,
}

type Fiber = Coroutine<(), (), (), Staggered>;

/// A CUDA thread, as a coroutine.
pub(crate) struct Thread {
    state: State,
    /// The call by which the thread waits.
    site: usize,
    /// Its coroutine, from a box: while it runs, a hook has the block, but never this.
    fiber: NonNull<Fiber>,
    yielder: *const Yielder<(), ()>,
    stack: Range<usize>,
    copies: Vec<Copy>,
    pub group: u32,
}

/// The block that an OS thread runs.
pub(crate) struct Block<'a> {
    pub launch: &'a Launch<'a>,
    pub index: u32,
    pub current: usize,
    threads: Vec<Thread>,
    /// The lanes of each warp that can run, those whose state is `Ready`.
    ready: Vec<u32>,
    alive: usize,
    /// How many threads wait in `__syncthreads()`.
    at_barrier: usize,
    shared: Vec<Shared>,
    detector: Option<&'a mut Detector>,
    heap: Option<&'a mut BTreeMap<usize, Region>>,
    pub reports: Vec<String>,
    /// What all blocks so far have read and written of buffers; counted with the detector.
    pub traffic: Traffic,
    seen: HashSet<(usize, usize)>,
    stopped: bool,
}

thread_local!(static RUNNING: Cell<*mut Block<'static>> = const { Cell::new(ptr::null_mut()) });
static STACKS: Mutex<Vec<Staggered>> = Mutex::new(Vec::new());

/// Barrier and number of threads of `__syncthreads()`: barrier 0, for all that are alive.
const WHOLE_BLOCK: (u32, u32) = (0, 0);

impl<'a> Block<'a> {
    /// A block of the launch; `detector` comes with the buffers it watches.
    pub fn new(launch: &'a Launch<'a>, detector: Option<(&'a mut Detector, &'a mut BTreeMap<usize, Region>)>) -> Self {
        let (detector, heap) = detector.unzip();
        let (threads, ready, shared, reports, seen) = Default::default();
        Self {
            launch,
            index: 0,
            current: 0,
            threads,
            ready,
            alive: 0,
            at_barrier: 0,
            shared,
            detector,
            heap,
            reports,
            traffic: Traffic::default(),
            seen,
            stopped: false,
        }
    }

    /// Calls `f` with the block that runs on this OS thread. `f` must not switch coroutines.
    pub fn with<R>(f: impl FnOnce(&mut Block<'_>) -> R) -> R {
        Self::try_with(f).expect("hooks are called from kernels")
    }

    /// Calls `f` with the block that runs on this OS thread, if there is one. `f` must not switch coroutines.
    pub fn try_with<R>(f: impl FnOnce(&mut Block<'_>) -> R) -> Option<R> {
        // SAFETY: set by `run` while coroutines run; it and they hold no other reference to the block across a switch,
        // and `f` does not come back here.
        unsafe { RUNNING.get().as_mut() }.map(f)
    }

    pub fn thread(&mut self) -> &mut Thread {
        &mut self.threads[self.current]
    }

    // ---- scheduling ----

    /// Runs block `index` to its end; false if it had to be stopped.
    pub fn run(&mut self, index: u32) -> bool {
        let count = self.launch.grid.threads as usize;
        self.index = index;
        (self.alive, self.at_barrier) = (count, 0);
        self.shared.clear();
        self.threads.clear();
        self.threads.extend((0..count).map(|_| self.launch.spawn()));
        self.ready.clear();
        self.ready.extend((0..count).step_by(32).map(|first| u32::MAX >> (32 - (count - first).min(32))));
        if let Some(detector) = &mut self.detector {
            detector.start_block(index, count);
        }
        // SAFETY: only the lifetime changes; the pointer is cleared before `self` can end.
        let this: *mut Block<'static> = unsafe { std::mem::transmute(ptr::from_mut(self)) };
        let previous = RUNNING.replace(this);
        Self::schedule();
        RUNNING.set(previous);
        let mut stacks = STACKS.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in self.threads.drain(..) {
            // SAFETY: made from a box by `spawn`, and nothing runs any more.
            let mut fiber = unsafe { Box::from_raw(thread.fiber.as_ptr()) };
            if !fiber.done() {
                // SAFETY: the frames on it are C++ without exceptions, and hooks that hold nothing across a switch.
                unsafe { fiber.force_reset() };
            }
            stacks.push(fiber.into_stack());
        }
        !self.stopped
    }

    /// Runs the threads until all have ended. Seed 0 runs warps and lanes in order, each as far as it gets; seed 1
    /// backwards; the others at random, sometimes letting another warp overtake. Reaches the block as the hooks do, so
    /// that no reference to it is alive while a coroutine runs.
    fn schedule() {
        let (count, seed, mut random) =
            Block::with(|b| (b.ready.len(), b.launch.seed, b.launch.seed ^ u64::from(b.index) << 32));
        let mut warps: Vec<usize> = (0..count).collect();
        let mut lanes: Vec<usize> = (0..32).collect();
        if seed == 1 {
            warps.reverse();
            lanes.reverse();
        }
        while Block::with(|block| block.alive > 0) {
            if seed > 1 {
                shuffle(&mut warps, &mut random);
            }
            let mut moved = false;
            for &warp in &warps {
                loop {
                    let mut ran = false;
                    if seed > 1 {
                        shuffle(&mut lanes, &mut random);
                    }
                    for &lane in &lanes {
                        let Some(fiber) = Block::with(|block| block.select(warp, lane)) else { continue };
                        ran = true;
                        if Self::resume(fiber) {
                            return;
                        }
                    }
                    moved |= ran;
                    if !ran || seed > 1 && next(&mut random).is_multiple_of(2) {
                        break;
                    }
                }
            }
            if !moved && Block::with(|block| block.ready.iter().all(|&lanes| lanes == 0)) {
                Block::with(|block| block.deadlock());
                return;
            }
        }
    }

    /// Makes a lane's thread the current one; `None` if it cannot run now.
    fn select(&mut self, warp: usize, lane: usize) -> Option<NonNull<Fiber>> {
        (self.ready[warp] >> lane & 1 == 1).then(|| {
            self.current = warp * 32 + lane;
            self.threads[self.current].fiber
        })
    }

    /// Runs the current thread, whose coroutine this is, until it waits or ends; whether the block is stopped.
    fn resume(mut fiber: NonNull<Fiber>) -> bool {
        // SAFETY: the box is the thread's, which lives until `run` has ended; nobody else has a reference into it.
        let finished = unsafe { fiber.as_mut() }.resume(()).as_return().is_some();
        Block::with(|block| {
            if finished {
                let thread = block.current;
                block.threads[thread].state = State::Done;
                block.ready[thread / 32] &= !(1 << (thread % 32));
                block.land(0);
                block.alive -= 1;
                block.after_exit(thread);
            }
            block.stopped
        })
    }

    /// Lets the current thread wait at a barrier, or go on if it was the last to arrive.
    pub fn wait_at_barrier(id: u32, threads: u32, site: usize) {
        Self::wait(|block, current| {
            block.threads[current].state = State::Barrier { id, threads };
            block.threads[current].site = site;
            block.at_barrier += usize::from((id, threads) == WHOLE_BLOCK);
            block.try_barrier(id, threads);
        });
    }

    /// Lets the current thread wait in a warp operation, or go on if it was the last to arrive.
    #[inline]
    pub fn wait_in(collective: &Collective, site: usize) {
        Self::wait(|block, current| {
            let thread = &mut block.threads[current];
            // By its address: a copy of what has just been written in parts is slow.
            thread.state = State::Collective(NonNull::from(collective));
            thread.site = site;
            if block.ready[current / 32] & collective.mask == 0 {
                block.try_collective(current / 32, collective);
            }
        });
    }

    /// Calls `arrive` with the block and the current thread, which is no longer ready, and suspends it unless it is again.
    #[inline]
    fn wait(arrive: impl FnOnce(&mut Block<'_>, usize)) {
        let yielder = Block::with(|block| {
            let current = block.current;
            let (warp, lane) = (current / 32, 1 << (current % 32));
            block.ready[warp] &= !lane;
            arrive(block, current);
            (block.stopped || block.ready[warp] & lane == 0).then(|| block.threads[current].yielder)
        });
        if let Some(yielder) = yielder {
            // SAFETY: the yielder is this coroutine's own, and alive while it runs.
            unsafe { (*yielder).suspend(()) };
        }
    }

    /// Reports what is wrong and ends the launch: the current thread never goes on.
    pub fn stop(what: &str, site: usize) -> ! {
        let yielder = Block::with(|block| {
            block.report(what, site, block.current);
            block.stopped = true;
            block.thread().yielder
        });
        // SAFETY: the yielder is this coroutine's own, and alive while it runs.
        unsafe { (*yielder).suspend(()) };
        unreachable!("a stopped block resumes nothing")
    }

    fn report(&mut self, what: &str, site: usize, thread: usize) {
        let line = self.launch.library.line(site);
        let report = format!("{}: {what}\n  at {line}\n  by thread {thread} of block {}", self.launch.name, self.index);
        self.reports.push(report);
    }

    fn deadlock(&mut self) {
        let mut waiting: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (i, thread) in self.threads.iter().enumerate().filter(|(_, t)| !matches!(t.state, State::Done)) {
            let what = match thread.state {
                State::Barrier { id, .. } => format!("barrier {id}"),
                // SAFETY: on the stack of a thread that waits.
                State::Collective(c) => format!("a warp operation with mask {:#010x}", unsafe { c.as_ref() }.mask),
                State::Ready | State::Done => String::new(),
            };
            waiting.entry(format!("{what} at {}", self.launch.library.line(thread.site))).or_default().push(i);
        }
        let (first, site) = waiting.values().next().map_or((0, 0), |t| (t[0], self.threads[t[0]].site));
        let mut what = format!("deadlock; {} threads have exited", self.threads.len() - self.alive);
        for (place, threads) in &waiting {
            what += &format!("\n  {} threads, from {}, wait at {place}", threads.len(), threads[0]);
        }
        self.report(&what, site, first);
        self.stopped = true;
    }

    // ---- barriers and warp operations ----

    fn try_barrier(&mut self, id: u32, threads: u32) {
        let whole = (id, threads) == WHOLE_BLOCK;
        if whole && (self.at_barrier == 0 || self.at_barrier < self.alive) {
            return; // as most often: each thread that arrives asks
        }
        let here = |t: &Thread| matches!(t.state, State::Barrier { id: i, threads: n } if i == id && n == threads);
        let waiting: Vec<usize> = (0..self.threads.len()).filter(|&i| here(&self.threads[i])).collect();
        let expected = if threads == 0 { self.alive } else { threads as usize };
        if waiting.is_empty() || waiting.len() < expected {
            return;
        }
        let first = self.threads[waiting[0]].site;
        let other = waiting.iter().copied().find(|&i| self.threads[i].site != first);
        if let (0, Some(other)) = (threads, other) {
            // Two addresses may belong to one line.
            let line = |i: usize| self.launch.library.line(self.threads[i].site);
            if line(waiting[0]) != line(other) {
                let what = format!("divergent barrier: thread {other} is at {}", line(other));
                self.report(&what, first, waiting[0]);
                self.stopped = true;
                return;
            }
        }
        if let Some(detector) = &mut self.detector {
            detector.synchronise(&waiting);
        }
        for i in waiting {
            self.threads[i].state = State::Ready;
            self.ready[i / 32] |= 1 << (i % 32);
        }
        if whole {
            self.at_barrier = 0;
        }
    }

    fn try_collective(&mut self, warp: usize, wanted: &Collective) {
        let base = warp * 32;
        let end = self.threads.len().min(base + 32);
        let (mut lanes, mut input, mut output) = (0u32, [ptr::null(); 32], [ptr::null_mut(); 32]);
        for (lane, thread) in self.threads[base..end].iter().enumerate().filter(|(l, _)| wanted.mask >> l & 1 == 1) {
            match thread.state {
                State::Done => {}
                State::Collective(theirs) => {
                    // SAFETY: on the stack of a thread that waits.
                    let theirs = unsafe { theirs.as_ref() };
                    let of = |c: &Collective| (c.operation, c.mask, c.argument);
                    if of(theirs) != of(wanted) {
                        return;
                    }
                    lanes |= 1 << lane;
                    (input[lane], output[lane]) = (theirs.input, theirs.output);
                }
                State::Ready | State::Barrier { .. } => return,
            }
        }
        if wanted.operation >= LOAD_MATRIX && lanes != u32::MAX {
            self.report("matrix operation without the whole warp", self.threads[self.current].site, self.current);
            self.stopped = true;
            return;
        }
        if let Some(combine) = wanted.combine {
            // SAFETY: each arrived lane's input and output are of the operation's type, on stacks that wait.
            unsafe { combine(lanes, input.as_ptr(), output.as_ptr(), wanted.argument) };
        }
        if (wanted.operation, wanted.argument) == (VOTE, ANY) {
            // SAFETY: a vote's output is one u32, on the stack of a lane that waits, and has just been written.
            let any = unsafe { *wanted.output.cast::<u32>() } != 0;
            *(if any { &mut self.traffic.votes_for } else { &mut self.traffic.votes_against }) += 1;
        }
        if let (SYNC, Some(detector)) = (wanted.operation, &mut self.detector) {
            let arrived: Vec<usize> = (0..32).filter(|l| lanes >> l & 1 == 1).map(|l| base + l).collect();
            detector.synchronise(&arrived);
        }
        for (lane, thread) in self.threads[base..end].iter_mut().enumerate() {
            if lanes >> lane & 1 == 1 {
                thread.state = State::Ready;
            }
        }
        self.ready[warp] |= lanes;
    }

    /// Releases the threads that wait for one that has now exited.
    fn after_exit(&mut self, thread: usize) {
        self.try_barrier(0, 0);
        let (base, end) = (thread / 32 * 32, self.threads.len().min(thread / 32 * 32 + 32));
        for i in base..end {
            if let State::Collective(collective) = self.threads[i].state {
                // SAFETY: on the stack of a thread that waits.
                self.try_collective(thread / 32, unsafe { collective.as_ref() });
            }
        }
    }
}

impl Launch<'_> {
    fn spawn(&self) -> Thread {
        let stack = STACKS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let stack = stack.unwrap_or_else(Staggered::new);
        let range = stack.limit().get()..stack.base().get();
        let (call, arguments) = (self.kernel.call, self.arguments);
        let fiber = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            Block::with(|block| block.thread().yielder = yielder);
            // SAFETY: the launch checked the argument's size; its layout is the caller's contract.
            unsafe { call(arguments) }
        });
        let (copies, group, site) = Default::default();
        let fiber = NonNull::from(Box::leak(Box::new(fiber)));
        Thread { state: State::Ready, site, fiber, yielder: ptr::null(), stack: range, copies, group }
    }
}

/// The next number of a splitmix64 generator.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn shuffle(items: &mut [usize], state: &mut u64) {
    for i in (1..items.len()).rev() {
        // As even as a remainder, without a division.
        items.swap(i, ((u128::from(next(state)) * (i as u128 + 1)) >> 64) as usize);
    }
}
