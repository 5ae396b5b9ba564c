//! What the threads of a block do to memory: its shared arrays, accesses that are checked, and copies in flight.

use std::ptr;

use super::{Block, State};
use crate::detector::{Finding, Kind, Shadow};
use crate::memory::Region;

/// Bytes of static shared memory that a block may have; more must be dynamic.
const STATIC_SHARED_BYTES: usize = 48 << 10;
/// Races do not stop a launch, but so many reports do.
const MAX_REPORTS: usize = 16;

/// A `cp.async` in flight; with `from` 0 it writes zeros.
pub(super) struct Copy {
    to: usize,
    from: usize,
    bytes: usize,
    group: u32,
    site: usize,
}

/// How often the threads of a launch accessed buffers, and how many bytes that were. An atomic operation is a write. And how
/// its warps voted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How often a thread read.
    pub reads: u64,
    /// How often a thread wrote.
    pub writes: u64,
    /// The bytes of all reads.
    pub bytes_read: u64,
    /// The bytes of all writes.
    pub bytes_written: u64,
    /// How often a warp asked whether any of its lanes has a condition, and none had.
    pub votes_against: u64,
    /// How often a warp asked whether any of its lanes has a condition, and one had.
    pub votes_for: u64,
}

impl Traffic {
    fn add(&mut self, bytes: usize, writes: bool) {
        let (count, sum) =
            if writes { (&mut self.writes, &mut self.bytes_written) } else { (&mut self.reads, &mut self.bytes_read) };
        *count += 1;
        *sum += bytes as u64;
    }
}

/// A shared array.
pub(super) struct Shared {
    key: usize,
    region: Region,
    shadow: Shadow,
}

impl Block<'_> {
    /// The start of a shared array, made if need be. Key 0: the dynamic one.
    pub fn shared(&mut self, key: usize, bytes: usize, align: usize) -> Result<usize, String> {
        let dynamic = self.launch.grid.shared_bytes as usize;
        if let Some(shared) = self.shared.iter().find(|s| s.key == key) {
            return Ok(shared.region.start);
        }
        let of_static = |shared: &[Shared]| shared.iter().filter(|s| s.key != 0).map(|s| s.region.bytes).sum::<usize>();
        if key == 0 && bytes > dynamic {
            return Err(format!("{bytes} bytes of dynamic shared memory, but the launch gave {dynamic}"));
        }
        let whole = of_static(&self.shared) + if key == 0 { 0 } else { bytes };
        if whole > STATIC_SHARED_BYTES || whole + dynamic > self.launch.shared_bytes_per_block {
            return Err(format!("{whole} bytes of static and {dynamic} of dynamic shared memory are too much"));
        }
        if align > 128 {
            return Err(format!("shared memory aligned to {align} bytes"));
        }
        let bytes = if key == 0 { dynamic } else { bytes };
        let region = Region::new(bytes).expect("host memory");
        let start = region.start;
        let shadow = if self.detector.is_some() { Shadow::new(bytes) } else { Shadow::default() };
        self.shared.push(Shared { key, region, shadow });
        Ok(start)
    }

    /// Checks and remembers an access by the current thread; the error ends the launch.
    pub fn access(&mut self, address: usize, bytes: usize, kind: Kind, site: usize) -> Result<(), String> {
        // A thread's own variables, in registers on a device: the host's compiler makes vectors of neighbours of them.
        if self.threads[self.current].stack.contains(&address) {
            return Ok(());
        }
        let verb = if kind.writes() { "write" } else { "read" };
        if kind.aligned() && !address.is_multiple_of(bytes) {
            return Err(format!("misaligned {verb} of {bytes} bytes"));
        }
        let (Some(detector), Some(heap)) = (&mut self.detector, &mut self.heap) else { return Ok(()) };
        let (found, at, place);
        let shared = self.shared.iter_mut().find_map(|s| Some((s.region.offset(address, bytes)?, s)));
        if let Some((offset, s)) = shared {
            let written = &mut s.region.written[offset..offset + bytes];
            found = detector.access(Some(&mut s.shadow), (s.region.start, offset), written, self.current, kind, site);
            (at, place) = (offset, Some(s.region.bytes));
        } else {
            let region = heap.range_mut(..=address).next_back().map(|(_, r)| r);
            let Some((offset, region)) = region.and_then(|r| Some((r.offset(address, bytes)?, r))) else {
                if self.launch.library.image.contains(&address) && !kind.writes() {
                    return Ok(());
                }
                return Err(format!("{verb} of {bytes} bytes out of bounds: {}", self.nearest(address)));
            };
            self.traffic.add(bytes, kind.writes());
            let written = &mut region.written[offset..offset + bytes];
            found = detector.access(None, (region.start, offset), written, self.current, kind, site);
            (at, place) = (offset, None);
        }
        let Some(found) = found else { return Ok(()) };
        let place = place.map_or("a buffer".into(), |bytes| format!("a shared array of {bytes} bytes"));
        let other = if let Finding::Race(other) = &found { other.site } else { 0 };
        if !self.seen.insert((site, other)) {
            return Ok(());
        }
        let what = match found {
            Finding::Race(other) => format!(
                "race on byte {at} of {place}: {verb}, and without order to it the access\n  at {}\n  by thread {} of block {}",
                self.launch.library.line(other.site),
                other.thread,
                other.block
            ),
            Finding::Uninitialised => format!("read of byte {at} of {place}, which nobody has written"),
            Finding::InFlight => format!("{verb} of byte {at} of {place} while a cp.async to it is in flight"),
        };
        self.report(&what, site, self.current);
        if self.reports.len() >= MAX_REPORTS {
            return Err("too many reports".into());
        }
        Ok(())
    }

    fn nearest(&self, address: usize) -> String {
        let regions = self.shared.iter().map(|s| ("shared array", &s.region));
        let buffers = self.heap.iter().flat_map(|heap| heap.values()).map(|r| ("buffer", r));
        let distance = |r: &Region| r.start.saturating_sub(address).max(address.saturating_sub(r.start + r.bytes));
        match regions.chain(buffers).min_by_key(|(_, r)| distance(r)) {
            Some((kind, r)) if address < r.start => {
                format!("{} bytes before a {kind} of {}", r.start - address, r.bytes)
            }
            Some((kind, r)) => format!("at byte {} of a {kind} of {}", address - r.start, r.bytes),
            None => format!("at {address:#x}, and there are no buffers"),
        }
    }

    /// Starts a copy that lands as late as is legal: when this thread waits for it, or ends.
    pub fn copy_async(&mut self, to: usize, from: usize, bytes: usize, valid: bool, site: usize) -> Result<(), String> {
        if !to.is_multiple_of(bytes) || valid && !from.is_multiple_of(bytes) {
            return Err(format!("cp.async of {bytes} bytes between addresses that are not multiples of that"));
        }
        if valid {
            self.access(from, bytes, Kind::READ, site)?;
        }
        self.access(to, bytes, Kind::WRITE, site)?;
        let Some(shared) = self.shared.iter_mut().find(|s| s.region.offset(to, bytes).is_some()) else {
            return Err(format!("cp.async out of shared memory: {}", self.nearest(to)));
        };
        if self.detector.is_some() {
            shared.shadow.set_pending(to - shared.region.start, bytes, true);
        }
        // SAFETY: inside a shared array of this block. NaN until it lands.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(to).write_bytes(0xff, bytes) };
        let group = self.thread().group;
        self.thread().copies.push(Copy { to, from: if valid { from } else { 0 }, bytes, group, site });
        Ok(())
    }

    /// Lands all groups of copies of the current thread except the last `pending`.
    pub fn land(&mut self, pending: u32) {
        let thread = self.thread();
        // Copies after the last commit are in no group yet. For a thread that exits, these land too.
        let first_kept =
            if matches!(thread.state, State::Ready) { thread.group.saturating_sub(pending) } else { u32::MAX };
        let (landed, kept) = std::mem::take(&mut thread.copies).into_iter().partition(|c| c.group < first_kept);
        thread.copies = kept;
        let landed: Vec<Copy> = landed;
        for Copy { to, from, bytes, site, .. } in landed {
            let to_bytes = ptr::with_exposed_provenance_mut::<u8>(to);
            match from {
                0 => {
                    // SAFETY: `to` was found in a shared array when the copy started.
                    unsafe { to_bytes.write_bytes(0, bytes) }
                }
                _ => {
                    // SAFETY: `to` was found in a shared array when the copy started; the detector has checked `from`,
                    // and without it the caller vouches for that, as on a device.
                    unsafe { to_bytes.copy_from_nonoverlapping(ptr::with_exposed_provenance(from), bytes) }
                }
            }
            if self.detector.is_some() {
                let shared = self.shared.iter_mut().find(|s| s.region.offset(to, bytes).is_some());
                if let Some(s) = shared {
                    s.shadow.set_pending(to - s.region.start, bytes, false);
                }
                // The bounds were checked when the copy started; a race is reported by `access` itself.
                let _ = self.access(to, bytes, Kind::LANDING, site);
            }
        }
    }

    /// Whether a write beside a shared array went unnoticed; for launches without the detector.
    pub fn overrun(&self) -> bool {
        self.shared.iter().any(|s| s.region.overrun())
    }
}
