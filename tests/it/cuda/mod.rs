mod device;
mod first_call;
#[cfg(feature = "torch")]
mod torch;
