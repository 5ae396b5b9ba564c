//! `tercet`: trains and evaluates embedding networks with Tercet's losses.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("NVIDIA_TF32_OVERRIDE").is_none() {
        // cuDNN would compute f32 convolutions in TF32, and then an image's embedding, and what `verify` decides, would depend
        // on the size of its batch.
        // SAFETY: no other thread has started.
        unsafe { std::env::set_var("NVIDIA_TF32_OVERRIDE", "0") };
    }
    tercet_trainer::run()
}
