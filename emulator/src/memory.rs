//! Device memory: ordinary memory with gaps around it, and which of its bytes have been written.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use tercet::internal::{Address, Memory};

/// Bytes before and behind each buffer that belong to nobody.
const GAP: usize = 4096;
/// What gaps and fresh memory are filled with: NaN in every float format, -1 in every integer.
const POISON: u8 = 0xff;
const ALIGNMENT: usize = 256;

/// One buffer or shared array.
pub(crate) struct Region {
    pub start: usize,
    pub bytes: usize,
    /// Whether each byte has been written.
    pub written: Vec<bool>,
}

// SAFETY: the memory is owned; who may touch it when is the launches' business, as on a device.
unsafe impl Send for Region {}

impl Region {
    /// Fresh memory; `None` if the host has not so much.
    pub fn new(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.checked_add(2 * GAP)?, ALIGNMENT).ok()?;
        let mut written = Vec::new();
        written.try_reserve_exact(bytes).ok()?;
        written.resize(bytes, false);
        // SAFETY: the layout is not empty; the whole of it is filled before anyone reads it.
        let start = unsafe {
            let whole = alloc(layout);
            if whole.is_null() {
                return None;
            }
            whole.write_bytes(POISON, layout.size());
            whole.expose_provenance() + GAP
        };
        Some(Self { start, bytes, written })
    }

    /// The offset of `bytes` bytes at `address`, if all are inside.
    pub fn offset(&self, address: usize, bytes: usize) -> Option<usize> {
        let offset = address.checked_sub(self.start)?;
        (offset + bytes <= self.bytes).then_some(offset)
    }

    /// Whether a write landed in the gaps.
    pub fn overrun(&self) -> bool {
        let gap = |from: usize| {
            // SAFETY: both gaps are part of the allocation.
            unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(from), GAP) }
        };
        gap(self.start - GAP).iter().chain(gap(self.start + self.bytes)).any(|&b| b != POISON)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated in `new` with this layout, which is a valid one.
        unsafe {
            let layout = Layout::from_size_align_unchecked(self.bytes + 2 * GAP, ALIGNMENT);
            dealloc(std::ptr::with_exposed_provenance_mut(self.start - GAP), layout);
        }
    }
}

/// All live buffers of an emulator, by address.
pub(crate) type Heap = Arc<Mutex<BTreeMap<usize, Region>>>;

/// A buffer of an [`Emulator`](crate::Emulator), freed when dropped.
pub struct Buffer {
    heap: Heap,
    start: usize,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn new(heap: &Heap, bytes: usize) -> Option<Self> {
        let region = Region::new(bytes)?;
        let start = region.start;
        heap.lock().unwrap_or_else(PoisonError::into_inner).insert(start, region);
        Some(Self { heap: heap.clone(), start, bytes })
    }

    /// The numbers that the buffer holds, from its first byte on.
    pub fn read<T: Pod>(&self) -> Vec<T> {
        let _heap = self.heap.lock();
        // SAFETY: the region lives as long as `self` and is initialised; launches hold the heap's lock.
        let bytes =
            unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(self.start), self.bytes) };
        bytes[..bytes.len() / size_of::<T>() * size_of::<T>()]
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }

    /// Copies `data` to `offset` bytes from the start.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write<T: Pod>(&self, offset: usize, data: &[T]) {
        let data: &[u8] = bytemuck::cast_slice(data);
        assert!(offset + data.len() <= self.bytes, "{} bytes at {offset} of {}", data.len(), self.bytes);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(self.start + offset);
        let mut heap = self.heap.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: inside the region, which lives as long as `self`; `data` is the host's, so they do not overlap.
        unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        heap.get_mut(&self.start).expect("alive").written[offset..offset + data.len()].fill(true);
    }
}

// SAFETY: the region is aligned to 256 bytes, in the heap alone, and does not move; launches are done when they return.
unsafe impl Memory for Buffer {
    fn address(&self) -> Address {
        self.start as Address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.start);
    }
}
