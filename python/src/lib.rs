//! Tercet's losses as operators of PyTorch, `torch.ops.tercet`, for the Python package in `python/tercet`.
//!
//! ```text
//! Python: tercet.functional  ->  torch.ops.tercet.batch_hard  ->  operator.rs: arguments from PyTorch's stack
//!     -> mined.rs, paired.rs, pairwise_distance.rs, top_k.rs: checks, then the crate's losses on the tensors' memory
//! ```
//!
//! The library links neither libtorch nor CUDA: abi.rs finds PyTorch's stable C ABI by name, so that one file serves every
//! PyTorch from 2.10 on.

mod abi;
#[cfg(feature = "cuda")]
mod launcher;
mod mined;
mod operator;
mod options;
mod paired;
mod pairwise_distance;
mod tensor;
mod threads;
mod top_k;

use std::ffi::{CStr, CString, c_char};
use std::panic::catch_unwind;
use std::sync::OnceLock;

use operator::{Library, Operator};
use options::Options;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, PairwiseDistance, TopK, TripletMarginLoss,
};

fn add_all(library: &Library) -> Result<(), String> {
    library.add::<paired::Forward<TripletMarginLoss, 3>>()?;
    library.add::<paired::Backward<TripletMarginLoss, 3>>()?;
    library.add::<paired::Forward<ContrastiveLoss, 2>>()?;
    library.add::<paired::Backward<ContrastiveLoss, 2>>()?;
    add_mined::<BatchAllTripletLoss>(library)?;
    add_mined::<BatchHardTripletLoss>(library)?;
    add_mined::<BatchSemiHardTripletLoss>(library)?;
    add_mined::<BatchNegativeTripletLoss>(library)?;
    add_mined::<BatchContrastiveLoss>(library)?;
    library.add::<pairwise_distance::Forward>()?;
    library.add::<pairwise_distance::Backward>()?;
    library.add::<top_k::Search>()
}

fn add_mined<L: mined::Loss>(library: &Library) -> Result<(), String> {
    library.add::<mined::Forward<L>>()?;
    library.add::<mined::Backward<L>>()
}

/// Registers the operators with the PyTorch that the process has loaded. Returns null, or why it could not be done, a text
/// that lives as long as the process. Further calls do nothing.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_register() -> *const c_char {
    let outcome = catch_unwind(|| Library::once(add_all)).unwrap_or_else(|_| Err("a panic, which is a bug".into()));
    match outcome {
        Ok(()) => std::ptr::null(),
        Err(text) => CString::new(text.replace('\0', " ")).map_or(c"an error".as_ptr(), |text| text.into_raw()),
    }
}

/// The names and defaults of the operators' options, as the Rust structs have them, in JSON; a text that lives as long as the
/// process. The Python package's tests compare its own with them.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_defaults() -> *const c_char {
    fn of<O: Options>(name: String) -> String {
        let options: Vec<String> = O::defaults().iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("\"{name}\": {{{}}}", options.join(", "))
    }
    static TEXT: OnceLock<CString> = OnceLock::new();
    let text = catch_unwind(|| {
        let all = [
            of::<TripletMarginLoss>(paired::Forward::<TripletMarginLoss, 3>::name()),
            of::<ContrastiveLoss>(paired::Forward::<ContrastiveLoss, 2>::name()),
            of::<BatchAllTripletLoss>(mined::Forward::<BatchAllTripletLoss>::name()),
            of::<BatchHardTripletLoss>(mined::Forward::<BatchHardTripletLoss>::name()),
            of::<BatchSemiHardTripletLoss>(mined::Forward::<BatchSemiHardTripletLoss>::name()),
            of::<BatchNegativeTripletLoss>(mined::Forward::<BatchNegativeTripletLoss>::name()),
            of::<BatchContrastiveLoss>(mined::Forward::<BatchContrastiveLoss>::name()),
            of::<PairwiseDistance>(pairwise_distance::Forward::name()),
            of::<TopK>(top_k::Search::name()),
        ];
        TEXT.get_or_init(|| CString::new(format!("{{{}}}", all.join(", "))).unwrap_or_default()).as_ptr()
    });
    text.unwrap_or(c"".as_ptr())
}

/// The crate's version, a text that lives as long as the process.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_version() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a version has no NUL"),
    };
    TEXT.as_ptr()
}
