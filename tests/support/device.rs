//! The CUDA device that tests run on, where there is one.

use std::path::PathBuf;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::support;

/// Its stream.
pub fn stream(test: &str) -> Option<Arc<CudaStream>> {
    if tercet::cuda::device_count() > 0 {
        return Some(CudaContext::new(0).unwrap().default_stream());
    }
    assert!(std::env::var_os("TERCET_REQUIRE_CUDA").is_none(), "TERCET_REQUIRE_CUDA is set, and there is no device");
    println!("skipped: no CUDA device: {test}");
    None
}

/// The file of what the kernels `stem` computed on it, if that was recorded or is to be now.
pub fn record(stem: &str, stream: &CudaStream, test: &str) -> Option<PathBuf> {
    let name = stream.context().name().unwrap();
    let device = name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let file = support::package().join(format!("tests/data/{stem}-{device}.json"));
    if file.exists() || support::rewrite_records() {
        return Some(file);
    }
    println!("skipped: nothing recorded on {name}: {test}");
    None
}
