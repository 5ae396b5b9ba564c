//! What kernel libraries and the emulator know of each other: the structs of cuda/runtime.h, with its layouts.

use std::ffi::{c_char, c_int, c_void};

/// Computes a warp operation: reads `input` and writes `output` of each lane that is set in `lanes`.
pub(crate) type Combine =
    unsafe extern "C" fn(lanes: u32, input: *const *const c_void, output: *const *mut c_void, argument: c_int);

/// `emu::Runtime`: what a library calls. Sites are return addresses.
#[repr(C)]
pub(crate) struct Runtime {
    pub index: extern "C" fn(which: c_int) -> u32,
    pub shared: extern "C" fn(key: *const c_void, bytes: usize, align: usize, site: usize) -> *mut c_void,
    pub barrier: extern "C" fn(id: u32, threads: u32, site: usize),
    pub collective: extern "C" fn(
        operation: c_int,
        mask: u32,
        argument: c_int,
        input: *const c_void,
        output: *mut c_void,
        combine: Option<Combine>,
        site: usize,
    ),
    pub access: extern "C" fn(address: usize, bytes: usize, kind: c_int, site: usize),
    pub copy_async: extern "C" fn(to: usize, from: usize, bytes: usize, valid: bool, site: usize),
    pub copy_commit: extern "C" fn(),
    pub copy_wait: extern "C" fn(pending: u32),
    pub fault: unsafe extern "C" fn(what: *const c_char, site: usize),
}

/// `emu::Kernel`: a kernel that registered itself.
#[repr(C)]
pub(crate) struct Kernel {
    pub name: *const c_char,
    pub threads: u32,
    pub argument_bytes: usize,
    pub call: unsafe extern "C" fn(arguments: *const c_void),
    pub next: *const Kernel,
}
// SAFETY: constants of a library that is never closed.
unsafe impl Sync for Kernel {}
