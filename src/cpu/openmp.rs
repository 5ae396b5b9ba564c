//! Tasks on the threads of the OpenMP library that the program has loaded: libtorch computes on these.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::threads::{self, Threads};

/// Calls `f`, whose tasks run on these threads if OpenMP's can be reached, else on rayon's.
pub(crate) fn on<R>(threads: &'static Threads, f: impl FnOnce() -> R) -> R {
    threads::on(gomp_parallel().map(|_| threads), f)
}

/// `GOMP_parallel` of GNU's OpenMP, which LLVM's has too: calls `f(data)` on `count` threads, the caller among them.
type GompParallel =
    unsafe extern "C" fn(f: unsafe extern "C" fn(*mut c_void), data: *mut c_void, count: u32, flags: u32);

/// The function of the OpenMP library that is loaded, which is libtorch's: it depends on it.
pub(crate) fn gomp_parallel() -> Option<GompParallel> {
    static FOUND: OnceLock<Option<GompParallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let name = c"GOMP_parallel".as_ptr();
        // SAFETY: NUL-terminated names. With RTLD_NOLOAD a library is found only if it is loaded already; its handle is kept,
        // and the library with it.
        let found = unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name);
            // A program that loads libtorch itself may keep its names to itself.
            let library = libc::dlopen(c"libgomp.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
            if found.is_null() && !library.is_null() { libc::dlsym(library, name) } else { found }
        };
        // SAFETY: the function of this name has this type in every library of OpenMP that has it: code that compilers made
        // calls it.
        (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, GompParallel>(found) })
    })
}

/// Work for all threads, and the first panic in it.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls `work` on `count` threads. Always on all there are: where a loop takes fewer, GNU's OpenMP ends the others, and the
/// next loop begins them anew.
pub(crate) fn run(count: usize, work: &(dyn Fn() + Sync)) {
    let parallel = gomp_parallel().expect("found before these threads were chosen");
    let job = Job { work, panic: Mutex::new(None) };
    // SAFETY: `job` is alive until all threads are done, as `parallel` waits for them, and they share it; `on_a_thread` takes
    // it for what it is.
    unsafe { parallel(on_a_thread, (&raw const job).cast_mut().cast(), u32::try_from(count).unwrap_or(1), 0) };
    if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// # Safety
/// `data` is a [`Job`] that lives during the call.
unsafe extern "C" fn on_a_thread(data: *mut c_void) {
    // SAFETY: the contract.
    let job = unsafe { &*data.cast_const().cast::<Job<'_>>() };
    // No panic may cross into OpenMP; the caller's thread goes on with it.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job.work)) {
        job.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}
