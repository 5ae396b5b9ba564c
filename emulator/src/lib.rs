//! Runs Tercet's CUDA kernels on the CPU. The host's C++ compiler builds the same `kernels/*.cu`; CUDA threads are
//! coroutines; a detector reports races, uninitialised reads and accesses out of bounds with their lines.
//!
//! What it checks and what it cannot: `docs/emulator.md`. Nothing it shows is a test on a GPU.
#![warn(clippy::print_stdout, clippy::unwrap_used)]

mod block;
mod detector;
mod hooks;
mod library;
mod memory;
mod runtime;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tercet::Error;
use tercet::internal::{Address, DeviceProperties, Grid, Launcher, SHARED_OF_DRIVER, TRIANGLE_FROM};

use block::{Block, Launch, shuffle};
use detector::Detector;
use library::Library;
use memory::{Heap, Region};

pub use block::Traffic;
pub use memory::Buffer;

/// The names of the kernels of `kernels/<stem>.cu`; `None` without such a file.
pub fn kernels(stem: &str) -> Option<Vec<String>> {
    let library = Library::open(stem, false, &hooks::RUNTIME)?;
    Some(library.kernels.keys().cloned().collect())
}

/// The largest grid and block of every CUDA device, in one dimension.
const MAX_BLOCKS: u32 = i32::MAX as u32;
const MAX_THREADS: u32 = 1024;

/// How kernels are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Watch every access: slower, on one OS thread.
    pub detect: bool,
    /// The order of threads and blocks: 0 forwards, 1 backwards, any other a random one; and which of [`CAPABILITIES`] the
    /// device has. The environment variable `TERCET_EMULATOR_SEED` overrides it.
    pub seed: u64,
    /// The number of OS threads that take blocks.
    pub os_threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { detect: false, seed: 0, os_threads: 1 }
    }
}

/// Devices that plans are made for: the compute capability, and the bytes of shared memory that a block may have.
pub const CAPABILITIES: [([u32; 2], u32); 5] =
    [([8, 0], 163 << 10), ([8, 6], 99 << 10), ([9, 0], 227 << 10), ([12, 0], 99 << 10), ([8, 9], 99 << 10)];

/// A launch, or the filling of memory with zeros.
#[derive(Clone, Debug)]
pub struct Work {
    /// The kernel's name; `None`: memory was filled.
    pub kernel: Option<String>,
    /// What the kernel read and wrote of buffers, if the detector watched, and how its warps voted.
    pub traffic: Traffic,
}

/// A device on the CPU. A launch is finished when the call returns.
pub struct Emulator {
    options: Options,
    properties: DeviceProperties,
    triangle_from: Option<usize>,
    heap: Heap,
    launches: AtomicU64,
    work: Mutex<Vec<Work>>,
}

impl Emulator {
    /// A device of two small multiprocessors, so that grids are small and wrap around early.
    pub fn new(options: Options) -> Self {
        let seed = std::env::var("TERCET_EMULATOR_SEED").ok().and_then(|seed| seed.parse().ok());
        let options = Options { seed: seed.unwrap_or(options.seed), ..options };
        let ([major, minor], shared_bytes_per_block) =
            CAPABILITIES[(options.seed % CAPABILITIES.len() as u64) as usize];
        let properties = DeviceProperties {
            name: "emulator".into(),
            major,
            minor,
            multiprocessors: 2,
            threads_per_multiprocessor: 512,
            shared_bytes_per_block,
            // That of one block that asks for as much as it may.
            shared_bytes_per_multiprocessor: shared_bytes_per_block + SHARED_OF_DRIVER,
        };
        Self {
            options,
            properties,
            triangle_from: None,
            heap: Heap::default(),
            launches: AtomicU64::new(0),
            work: Mutex::default(),
        }
    }

    /// The properties that plans will see, to be changed.
    pub fn properties_mut(&mut self) -> &mut DeviceProperties {
        &mut self.properties
    }

    /// Takes half of the tiles from so many rows on, and not only of many rows as devices do.
    pub fn take_half_from(&mut self, rows: usize) {
        self.triangle_from = Some(rows);
    }

    /// A buffer that holds `data`.
    pub fn upload<T: bytemuck::Pod>(&self, data: &[T]) -> Buffer {
        let buffer = Buffer::new(&self.heap, size_of_val(data)).expect("host memory");
        buffer.write(0, data);
        buffer
    }

    /// The number of launches so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// What was done since the call before, in order.
    pub fn take_work(&self) -> Vec<Work> {
        std::mem::take(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn did(&self, kernel: Option<&str>, traffic: Traffic) {
        let work = Work { kernel: kernel.map(str::to_string), traffic };
        self.work.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }

    fn refused(&self, kernel: &str, grid: Grid, reason: impl Into<String>) -> Error {
        let seed = self.options.seed;
        let reason = format!("{}\n(schedule {seed}: TERCET_EMULATOR_SEED={seed} replays it)", reason.into());
        Error::Cuda { action: format!("launching {kernel} with {grid:?} on the emulator"), reason }
    }
}

// SAFETY: a buffer is a region of as many bytes; launches and fills are done one at a time, before they return.
unsafe impl Launcher for Emulator {
    type Memory = Buffer;

    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn triangle_from(&self) -> usize {
        self.triangle_from.unwrap_or(TRIANGLE_FROM)
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        Buffer::new(&self.heap, bytes).ok_or_else(|| Error::Cuda {
            action: format!("allocating {bytes} bytes on the emulator"),
            reason: "the host has not so much memory".into(),
        })
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error> {
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let region = heap.range_mut(..=to as usize).next_back().map(|(_, region)| region);
        let Some((offset, region)) = region.and_then(|r| Some((r.offset(to as usize, bytes)?, r))) else {
            let reason = format!("{bytes} bytes at {to:#x} are in no buffer");
            return Err(Error::Cuda { action: "clearing memory on the emulator".into(), reason });
        };
        region.written[offset..offset + bytes].fill(true);
        self.did(None, Traffic::default());
        // SAFETY: the range is inside a live region, whose heap is locked.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(to as usize).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        let refused = |reason: &str| Err(self.refused(kernel, grid, reason));
        let Some(library) = Library::open(stem, self.options.detect, &hooks::RUNTIME) else {
            return refused("there is no such file of kernels");
        };
        let Some((name, found)) = library.kernels.get_key_value(kernel) else {
            return refused("there is no such kernel");
        };
        if arguments.len() != found.argument_bytes {
            let expected = found.argument_bytes;
            return refused(&format!("its argument has {expected} bytes, not {}", arguments.len()));
        }
        if !(1..=MAX_BLOCKS).contains(&grid.blocks) || !(1..=MAX_THREADS).contains(&grid.threads) {
            return refused("no device takes such a grid");
        }
        if grid.threads > found.threads {
            return refused(&format!("its launch bounds are {} threads", found.threads));
        }
        if grid.shared_bytes > self.properties.shared_bytes_per_block {
            return refused("too much dynamic shared memory");
        }
        // Aligned as a kernel's parameters are.
        let mut aligned = vec![0u128; arguments.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<_, u8>(&mut aligned)[..arguments.len()].copy_from_slice(arguments);
        let launch = Launch {
            name,
            kernel: found,
            library,
            grid,
            arguments: aligned.as_ptr().cast(),
            seed: self.options.seed,
            shared_bytes_per_block: self.properties.shared_bytes_per_block as usize,
        };
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        let (reports, traffic) = run(&launch, &mut heap, &self.options);
        self.did(Some(kernel), traffic);
        match reports.is_empty() {
            true => Ok(()),
            false => Err(self.refused(kernel, grid, reports.join("\n"))),
        }
    }
}

/// Runs all blocks, and returns reports of what is wrong with them, and what they read and wrote.
fn run(launch: &Launch<'_>, heap: &mut BTreeMap<usize, Region>, options: &Options) -> (Vec<String>, Traffic) {
    let mut order: Vec<usize> = (0..launch.grid.blocks as usize).collect();
    match launch.seed {
        0 => {}
        1 => order.reverse(),
        seed => shuffle(&mut order, &mut seed.clone()),
    }
    if options.detect {
        let mut detector = Detector::new(heap.values().map(|r| (r.start, r.bytes)));
        let mut block = Block::new(launch, Some((&mut detector, heap)));
        let _ = order.iter().all(|&index| block.run(index as u32));
        return (std::mem::take(&mut block.reports), block.traffic);
    }
    let (next, stopped, found) =
        (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new((Vec::new(), Traffic::default())));
    let work = || {
        let mut block = Block::new(launch, None);
        while !stopped.load(Ordering::Relaxed) {
            let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let finished = block.run(index as u32);
            if block.overrun() {
                block.reports.push(format!("{}: block {index} wrote beside a shared array", launch.name));
            }
            if !finished || !block.reports.is_empty() {
                stopped.store(true, Ordering::Relaxed);
            }
        }
        let (reports, traffic) = &mut *found.lock().unwrap_or_else(PoisonError::into_inner);
        reports.append(&mut block.reports);
        traffic.votes_against += block.traffic.votes_against;
        traffic.votes_for += block.traffic.votes_for;
    };
    let workers = options.os_threads.min(order.len());
    match workers {
        0 | 1 => work(),
        _ => std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work)))),
    }
    let (mut reports, traffic) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let beside = heap.values().filter(|region| region.overrun());
    reports.extend(beside.map(|r| format!("{}: wrote beside a buffer of {} bytes", launch.name, r.bytes)));
    (reports, traffic)
}
