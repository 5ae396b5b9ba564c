//! A gallery: the people that a model can recognise, in one SQLite file, and beside it an index that may be lost.

mod index;
mod search;
mod store;

pub use index::Index;
pub use search::{Answer, By, search};
pub use store::{Gallery, Made, New, Sample, check_name};
