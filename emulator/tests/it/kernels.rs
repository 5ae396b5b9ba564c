//! The emulator's kernels are those of the images, and those that some of them leave out.

use std::collections::BTreeSet;

use tercet::internal::{IMAGES, is_left_out};

/// So that a launch which the emulator does not refuse finds its kernel on a device too.
#[test]
fn the_emulator_has_the_kernels_of_the_images() {
    let mut images = 0;
    for image in IMAGES.iter().filter(|image| image.target.starts_with("sm_")) {
        let here: BTreeSet<String> = tercet_emulator::kernels(image.stem)
            .expect("its file")
            .into_iter()
            .filter(|kernel| !is_left_out(image.target, kernel))
            .collect();
        let there: BTreeSet<String> = image.kernels.iter().map(|report| report.kernel.to_string()).collect();
        let difference: Vec<_> = here.symmetric_difference(&there).collect();
        assert!(difference.is_empty(), "{} for {}: {difference:?}", image.stem, image.target);
        images += 1;
    }
    assert!(images > 0);
    assert_eq!(tercet_emulator::kernels("no such file"), None);
}
