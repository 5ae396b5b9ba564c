//! Kernel libraries made by build.rs: their kernels, and the source lines of their code.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::runtime::{Kernel, Runtime};

/// The kernel libraries: `(stem, with the detector, path)`.
const LIBRARIES: &[(&str, bool, &str)] = include!(concat!(env!("OUT_DIR"), "/libraries.rs"));

pub(crate) struct Library {
    pub kernels: HashMap<String, &'static Kernel>,
    /// The addresses of the library's code and constants.
    pub image: Range<usize>,
    lines: Mutex<addr2line::Loader>,
}
// SAFETY: the loader is only used under its lock; nothing in it belongs to one thread.
unsafe impl Sync for Library {}
// SAFETY: the loader is only used under its lock; nothing in it belongs to one thread.
unsafe impl Send for Library {}

impl Library {
    /// Opened once per process, never closed. Its kernels call `runtime`, that of the first opening.
    pub fn open(stem: &str, detect: bool, runtime: &'static Runtime) -> Option<&'static Self> {
        static OPEN: Mutex<Vec<(&str, &Library)>> = Mutex::new(Vec::new());
        let (_, _, path) = LIBRARIES.iter().find(|(s, d, _)| *s == stem && *d == detect)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, library)) = open.iter().find(|(p, _)| p == path) {
            return Some(library);
        }
        let library = Box::leak(Box::new(Self::load(path, runtime)));
        open.push((path, library));
        Some(library)
    }

    fn load(path: &str, runtime: &'static Runtime) -> Self {
        type Open = unsafe extern "C" fn(*const Runtime, *mut usize, *mut usize, *mut *const Kernel);
        let (mut first, mut end, mut list) = (0, 0, std::ptr::null());
        // SAFETY: built by build.rs from cuda/hooks.cpp, whose `emu_open` has this signature; its constructors only
        // make the list of kernels. It stays loaded, so the list does too.
        unsafe {
            let handle = libloading::Library::new(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let open: libloading::Symbol<Open> = handle.get(b"emu_open").expect("hooks.cpp is linked in");
            open(runtime, &mut first, &mut end, &mut list);
            std::mem::forget(handle);
        }
        let mut kernels = HashMap::new();
        // SAFETY: `list` is null or an element of the list, which is never freed.
        while let Some(kernel) = unsafe { list.as_ref() } {
            // SAFETY: the name is a C string constant.
            let name = unsafe { CStr::from_ptr(kernel.name) };
            kernels.insert(name.to_string_lossy().into_owned(), kernel);
            list = kernel.next;
        }
        let lines = addr2line::Loader::new(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        Self { kernels, image: first..end, lines: Mutex::new(lines) }
    }

    /// The source line that a hook was called from, and the lines it is inlined into, without those of the stand-in.
    pub fn line(&self, site: usize) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<String> = Vec::new();
        // The call is before its return address.
        let address = site.wrapping_sub(self.image.start).wrapping_sub(1) as u64;
        if let Ok(mut frames) = lines.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let Some((file, line)) = frame.location.and_then(|l| Some((l.file?, l.line?))) else { continue };
                let file = file.rfind("kernels/").map_or(file, |i| &file[i..]);
                let line = format!("{file}:{line}");
                if !file.ends_with("platform.cuh") && found.last() != Some(&line) {
                    found.push(line);
                }
            }
        }
        if found.is_empty() { "an unknown line".into() } else { found.join(", inlined at ") }
    }
}
