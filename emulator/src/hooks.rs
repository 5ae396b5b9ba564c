//! What kernels call.

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::block::{Block, Collective};
use crate::detector::Kind;
use crate::runtime::{Combine, Runtime};

/// The table that every library is given.
pub(crate) static RUNTIME: Runtime =
    Runtime { index, shared, barrier, collective, access, copy_async, copy_commit, copy_wait, fault };

// Each hook runs on the coroutine of the block's current thread, and no reference into the block outlives a switch.

extern "C" fn index(which: c_int) -> u32 {
    Block::with(|block| match which {
        0 => block.current as u32,
        1 => block.index,
        2 => block.launch.grid.threads,
        _ => block.launch.grid.blocks,
    })
}

extern "C" fn shared(key: *const c_void, bytes: usize, align: usize, site: usize) -> *mut c_void {
    match Block::with(|block| block.shared(key.addr(), bytes, align)) {
        Ok(start) => std::ptr::with_exposed_provenance_mut(start),
        Err(what) => Block::stop(&what, site),
    }
}

extern "C" fn barrier(id: u32, threads: u32, site: usize) {
    if id > 15 || !threads.is_multiple_of(32) {
        Block::stop(&format!("barrier {id} of {threads} threads: there are 16, of whole warps"), site);
    }
    Block::wait_at_barrier(id, threads, site);
}

extern "C" fn collective(
    operation: c_int,
    mask: u32,
    argument: c_int,
    input: *const c_void,
    output: *mut c_void,
    combine: Option<Combine>,
    site: usize,
) {
    let lane = Block::with(|block| block.current % 32);
    if mask >> lane & 1 == 0 {
        Block::stop(&format!("warp operation by lane {lane}, which is not in its mask {mask:#010x}"), site);
    }
    Block::wait_in(&Collective { operation, mask, argument, input, output, combine }, site);
}

extern "C" fn access(address: usize, bytes: usize, kind: c_int, site: usize) {
    let Some(result) = Block::try_with(|block| block.access(address, bytes, Kind(kind), site)) else { return };
    if let Err(what) = result {
        Block::stop(&what, site);
    }
}

extern "C" fn copy_async(to: usize, from: usize, bytes: usize, valid: bool, site: usize) {
    if let Err(what) = Block::with(|block| block.copy_async(to, from, bytes, valid, site)) {
        Block::stop(&what, site);
    }
}

extern "C" fn copy_commit() {
    Block::with(|block| block.thread().group += 1);
}

extern "C" fn copy_wait(pending: u32) {
    Block::with(|block| block.land(pending));
}

unsafe extern "C" fn fault(what: *const c_char, site: usize) {
    // SAFETY: `what` is a string constant of the stand-in.
    let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
    Block::stop(&what, site);
}
