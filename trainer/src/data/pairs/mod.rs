//! Files of pairs of images, as LFW's `pairs.txt` and as CSV, and which file an image's number means.

mod file;
mod find;

pub use file::{Line, Written, parse, read};
pub use find::Numbers;
