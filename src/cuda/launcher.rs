//! What host code needs of a device: properties, memory, and named kernels to launch. Implemented by cudarc's driver
//! (`device.rs`, and over PyTorch's allocator in `torch/launcher.rs`) and by whatever else can run the kernels.

use crate::Error;
use crate::constants::TRIANGLE_FROM;

/// An address in device memory; 0 is null.
pub type Address = u64;

/// What launch plans depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// The device's name.
    pub name: String,
    /// The first number of the compute capability, 9 of 9.0.
    pub major: u32,
    /// The second number of the compute capability, 0 of 9.0.
    pub minor: u32,
    /// The number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Threads that one multiprocessor holds at a time.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_bytes_per_block: u32,
    /// Bytes of shared memory that the blocks of one multiprocessor share.
    pub shared_bytes_per_multiprocessor: u32,
}

/// The shape of a launch, in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The number of blocks.
    pub blocks: u32,
    /// Threads in each block.
    pub threads: u32,
    /// Bytes of dynamic shared memory in each block.
    pub shared_bytes: u32,
}

/// Device memory that is freed when dropped, not before the launches that use it have run.
///
/// # Safety
/// From `address`, a multiple of 256, as many bytes as were asked for belong to this value alone, and stay where they are,
/// until it is dropped; and after that until whatever was launched before has run.
pub unsafe trait Memory: Send + 'static {
    /// The address of the first byte.
    fn address(&self) -> Address;
}

/// A device to launch on.
///
/// # Safety
/// `allocate` returns at least as many bytes as were asked for, or an error. `properties` are those of the device that the
/// launches run on. Launches and fills run one after the other, in the order of the calls, each seeing what those before
/// it wrote. The crate's own code writes to device memory on the strength of this.
pub unsafe trait Launcher {
    /// Memory of the device.
    type Memory: Memory;

    /// The properties of the device.
    fn properties(&self) -> &DeviceProperties;

    /// From how many rows on half of the tiles are taken of a batch with itself.
    fn triangle_from(&self) -> usize {
        TRIANGLE_FROM
    }

    /// Allocates uninitialised memory.
    ///
    /// # Errors
    /// If there is not enough; nothing is leaked, and smaller requests may succeed.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, Error>;

    /// Fills memory with zero bytes.
    ///
    /// # Safety
    /// `bytes` bytes from `to` are device memory that nothing else uses meanwhile.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error>;

    /// Launches `kernel` of the file `stem`, whose only argument is a struct with these bytes.
    ///
    /// # Safety
    /// `arguments` has the layout of the kernel's argument; each address in it is device memory of the size and
    /// alignment that the kernel expects, and lives until the kernel has run.
    ///
    /// # Errors
    /// If there is no such kernel or the device refuses.
    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error>;
}
