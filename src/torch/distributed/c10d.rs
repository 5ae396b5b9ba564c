//! The functions of c10d.cpp: groups, collectives under way, and reducers, each with its owner. What libtorch reports is the text of
//! the error.

use std::ffi::{CString, c_char, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use super::options::Options;
use crate::torch::autograd::check;

/// Whether CUDA tensors can travel by NCCL, or why they cannot.
pub fn nccl() -> Result<(), &'static str> {
    match (cfg!(tercet_nccl), option_env!("TERCET_WITHOUT_NCCL")) {
        (true, _) => Ok(()),
        (false, why) => Err(why.unwrap_or("it was left out")),
    }
}

/// A group of two or more processes.
pub struct Group {
    raw: *mut c_void,
    /// Held while a collective is begun: c10d numbers them with a plain integer.
    begins: Mutex<()>,
}

// SAFETY: c10d's groups belong to no thread.
unsafe impl Send for Group {}
// SAFETY: of what is shared, the count of collectives is changed while they are begun, under the lock, and the rest is c10d's own,
// which its threads use as well. The reducer begins its collectives without the lock, on the threads of autograd while the
// caller waits for them; nobody else calls the group then, as its documentation asks for.
unsafe impl Sync for Group {}

impl Group {
    /// Meets the other processes. `address`: this host's, as the others reach it.
    pub fn open(options: &Options, prefix: &str, address: Option<&str>) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{text:?} has a NUL in it"));
        let (host, prefix) = (text(&options.host)?, text(prefix)?);
        let address = address.map(text).transpose()?;
        let number = |number: usize| i32::try_from(number).map_err(|_| format!("{number} is too large"));
        let raw_options = RawOptions {
            host: host.as_ptr(),
            prefix: prefix.as_ptr(),
            address: address.as_ref().map_or(ptr::null(), |address| address.as_ptr()),
            timeout: i64::try_from(options.timeout.as_millis()).unwrap_or(i64::MAX),
            rank: number(options.rank)?,
            size: number(options.size)?,
            port: options.port.into(),
            cuda: match options.device {
                tch::Device::Cuda(ordinal) => number(ordinal)?,
                _ => -1,
            },
            serve: i32::from(options.rank == 0 && !options.launcher_listens),
            by_nccl: i32::from(options.nccl),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the struct and its texts live for the call, which copies what it needs longer.
        said(unsafe { tercet_group_open(&mut raw, &raw_options) })?;
        Ok(Self { raw, begins: Mutex::new(()) })
    }

    /// Lets go of the connections. `abort`: collectives that are under way on a device end at once.
    pub fn close(&mut self, abort: bool) {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: a group that nobody else has any more.
            unsafe { tercet_group_close(raw, abort) }
        }
    }

    /// `out` becomes the `input`s of all processes, one after the other.
    pub fn all_gather(&self, out: &Tensor, input: &Tensor) -> Result<Work, String> {
        // SAFETY: live, contiguous tensors of sizes that were agreed on; c10d.cpp holds them until the collective is over.
        self.begin(|group, work| unsafe { tercet_all_gather(group, out.as_ptr(), input.as_ptr(), work) })
    }

    /// `out` becomes this process's part of the sum of the `input`s.
    pub fn reduce_scatter(&self, out: &Tensor, input: &Tensor) -> Result<Work, String> {
        // SAFETY: as in `all_gather`.
        self.begin(|group, work| unsafe { tercet_reduce_scatter(group, out.as_ptr(), input.as_ptr(), work) })
    }

    /// `tensor` becomes the sum of all processes' tensors, or with `maximum` their maximum.
    pub fn all_reduce(&self, tensor: &Tensor, maximum: bool) -> Result<Work, String> {
        // SAFETY: as in `all_gather`.
        self.begin(|group, work| unsafe { tercet_all_reduce(group, tensor.as_ptr(), maximum, work) })
    }

    /// `tensor` becomes that of process `root`.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work, String> {
        // SAFETY: as in `all_gather`.
        self.begin(|group, work| unsafe { tercet_broadcast(group, tensor.as_ptr(), root as i32, work) })
    }

    fn begin(&self, f: impl FnOnce(*const c_void, *mut *mut c_void) -> *mut c_char) -> Result<Work, String> {
        let _begins = self.begins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = ptr::null_mut();
        said(f(self.raw, &mut work))?;
        Ok(Work(work))
    }

    /// How many bytes one of libtorch's groups over gloo has, as c10d.cpp was compiled, and as libtorch itself has them.
    pub fn gloo_sizes(&self) -> Result<[usize; 2], String> {
        let mut sizes = [0; 2];
        // SAFETY: the group is alive, and the array has two places.
        said(unsafe { tercet_gloo_sizes(self.raw, sizes.as_mut_ptr()) })?;
        Ok(sizes)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.close(false);
    }
}

/// A collective under way.
pub struct Work(*mut c_void);

// SAFETY: c10d's work belongs to no thread.
unsafe impl Send for Work {}

impl Work {
    /// Waits until the tensors have their values; those on a device in the order of its current stream.
    pub fn wait(&self) -> Result<(), String> {
        // SAFETY: alive until it is dropped.
        said(unsafe { tercet_work_wait(self.0) })
    }

    pub fn is_done(&self) -> bool {
        // SAFETY: alive until it is dropped.
        unsafe { tercet_work_is_done(self.0) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: nobody else has it. c10d keeps what is still under way.
        unsafe { tercet_work_drop(self.0) }
    }
}

/// c10d's reducer of gradients.
pub struct Reducer(*mut c_void);

// SAFETY: c10d's reducer locks itself, as its hooks are called by the threads of autograd.
unsafe impl Send for Reducer {}

impl Reducer {
    /// For these variables, in buckets of at most `bytes`; the first that is ready has at most `first_bytes`.
    pub fn new(group: &Group, variables: &[&Tensor], first_bytes: usize, bytes: usize) -> Result<Self, String> {
        let pointers: Vec<*const C_tensor> = variables.iter().map(|variable| variable.as_ptr()).collect();
        let mut raw = ptr::null_mut();
        // SAFETY: live tensors, as many as are counted; the reducer holds them and the group.
        said(unsafe {
            tercet_reducer_new(&mut raw, group.raw, pointers.as_ptr(), pointers.len(), first_bytes, bytes)
        })?;
        Ok(Self(raw))
    }

    pub fn prepare(&self) -> Result<(), String> {
        // SAFETY: alive until it is dropped.
        said(unsafe { tercet_reducer_prepare(self.0) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { tercet_reducer_drop(self.0) }
    }
}

/// The `Err` for a message of c10d.cpp.
fn said(message: *mut c_char) -> Result<(), String> {
    check(message).map_err(|error| {
        let text = match error {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        // gloo begins with the place in its own code, which says nothing to anybody else.
        let code = text.strip_prefix("[/").and_then(|rest| rest.split_once("] "));
        code.map_or(text.as_str(), |(_, rest)| rest).trim_end().to_string()
    })
}

/// `TercetGroupOptions` of c10d.cpp, in the same layout.
#[repr(C)]
struct RawOptions {
    host: *const c_char,
    prefix: *const c_char,
    address: *const c_char,
    timeout: i64,
    rank: i32,
    size: i32,
    port: i32,
    cuda: i32,
    serve: i32,
    by_nccl: i32,
}

unsafe extern "C" {
    fn tercet_group_open(result: *mut *mut c_void, options: *const RawOptions) -> *mut c_char;
    fn tercet_group_close(group: *mut c_void, abort: bool);
    fn tercet_all_gather(
        group: *const c_void,
        out: *const C_tensor,
        input: *const C_tensor,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn tercet_reduce_scatter(
        group: *const c_void,
        out: *const C_tensor,
        input: *const C_tensor,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn tercet_all_reduce(
        group: *const c_void,
        tensor: *const C_tensor,
        maximum: bool,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn tercet_broadcast(
        group: *const c_void,
        tensor: *const C_tensor,
        root: i32,
        work: *mut *mut c_void,
    ) -> *mut c_char;
    fn tercet_work_wait(work: *mut c_void) -> *mut c_char;
    fn tercet_work_is_done(work: *mut c_void) -> bool;
    fn tercet_work_drop(work: *mut c_void);
    fn tercet_reducer_new(
        result: *mut *mut c_void,
        group: *const c_void,
        variables: *const *const C_tensor,
        count: usize,
        first_bytes: usize,
        bytes: usize,
    ) -> *mut c_char;
    fn tercet_reducer_prepare(reducer: *mut c_void) -> *mut c_char;
    fn tercet_reducer_drop(reducer: *mut c_void);
    fn tercet_gloo_sizes(group: *const c_void, sizes: *mut usize) -> *mut c_char;
}
