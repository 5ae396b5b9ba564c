//! Empty files for tests.

use std::path::Path;

/// Makes an empty file below `root`, and the folders that it lies in.
pub fn touch(root: &Path, file: &str) {
    let file = root.join(file);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, b"").unwrap();
}
