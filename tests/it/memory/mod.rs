#[cfg(target_os = "linux")]
mod refused;
mod torch;
