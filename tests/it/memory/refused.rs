//! An allocation that C++ is refused while a function is attached to a graph is an error, and what Rust handed over is
//! dropped once. It replaces `operator new` of the whole program, where other threads are granted everything.
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::Tensor;
use tercet::torch::CustomFunction;

thread_local! {
    /// How many requests of this thread are granted before one is refused; `None` grants all.
    static GRANTED: Cell<Option<usize>> = const { Cell::new(None) };
}

unsafe extern "C-unwind" {
    /// `std::__throw_bad_alloc()` of libstdc++.
    #[link_name = "_ZSt17__throw_bad_allocv"]
    fn throw_bad_alloc() -> !;
}

/// `operator new(size_t)`, in place of libstdc++'s, whose `operator delete` is `free` as well.
///
/// # Safety
/// None: as in C++, any size may be asked for.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _Znwm(bytes: usize) -> *mut c_void {
    let refused = GRANTED.get().is_some_and(|left| {
        GRANTED.set(left.checked_sub(1));
        left == 0
    });
    // SAFETY: any size may be asked for.
    let memory = if refused { std::ptr::null_mut() } else { unsafe { libc::malloc(bytes.max(1)) } };
    if memory.is_null() {
        // SAFETY: throws; nothing here has to be dropped.
        unsafe { throw_bad_alloc() }
    }
    memory
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_refused_allocation_is_an_error_and_the_closure_is_dropped_once() {
    let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    let value = tch::no_grad(|| &x * 2.0);
    let mut refused = 0;
    for granted in 0.. {
        let drops = Arc::new(AtomicUsize::new(0));
        let state = Dropped(drops.clone());
        let (name, inputs) = ("a function whose name is too long to lie within a string", [&x]);
        let function = CustomFunction::new(name).inputs(&inputs).saved(&inputs);
        GRANTED.set(Some(granted));
        let result = function.attach(&value, move |ctx| {
            let _ = &state;
            Ok(vec![Some(ctx.upstream() * 2.0)])
        });
        let left = GRANTED.replace(None);
        match result {
            Err(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(text.contains("bad_alloc") || text.contains("out of memory"), "{text}");
                assert_eq!(drops.load(Ordering::Relaxed), 1, "request {granted}");
            }
            Ok(y) => {
                assert_eq!(drops.load(Ordering::Relaxed), 0);
                assert_eq!(Tensor::run_backward(&[&y], &[&x], false, false)[0].double_value(&[0]), 2.0);
                drop(y);
                assert_eq!(drops.load(Ordering::Relaxed), 1);
                if left.is_some() {
                    break; // nothing was refused
                }
            }
        }
    }
    // Requests for the name, the node, its reference count, its edges, what is saved, and the result.
    assert!(refused >= 5, "{refused} requests");
    println!("{refused} requests were refused one by one");
}
