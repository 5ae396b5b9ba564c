//! From folders and files to images in memory, and the images that nobody has to bring: generated signatures.

pub mod collections;
pub mod dataset;
pub mod decode;
pub mod doubles;
pub mod folders;
pub mod images;
pub mod pairs;
pub mod signatures;
pub mod view;
pub mod workers;
