//! NVIDIA devices through cudarc: contexts, loaded kernels, launches on a stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, result};
use cudarc::nvrtc::Ptx;

use super::driver::{self, error};
use super::fitness;
use super::images::{self, Image, image_for};
use super::launcher::{Address, DeviceProperties, Grid, Launcher, Memory};
use super::targets::Shared;
use crate::Error;

/// How many CUDA devices this process can use; 0 without a driver.
#[must_use]
pub fn device_count() -> usize {
    if !driver::exists() {
        return 0;
    }
    CudaContext::device_count().map_or(0, |n| usize::try_from(n).unwrap_or(0))
}

/// A device with the kernels that have been loaded onto it. One per context and process.
pub struct Device {
    context: Arc<CudaContext>,
    properties: DeviceProperties,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By file and target.
    modules: HashMap<(&'static str, &'static str), Arc<CudaModule>>,
    functions: HashMap<String, Function>,
}

struct Function {
    function: CudaFunction,
    /// The most dynamic shared memory that the driver was told its launches take.
    shared_bytes: u32,
}

impl Device {
    /// The device's primary context, the one that PyTorch and the CUDA runtime use.
    ///
    /// # Errors
    /// If there is no driver or no such device.
    pub fn primary(ordinal: usize) -> Result<Arc<Self>, Error> {
        static DEVICES: OnceLock<Mutex<HashMap<usize, Arc<Device>>>> = OnceLock::new();
        let mut devices = DEVICES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.get(&ordinal) {
            return Ok(device.clone());
        }
        if ordinal >= device_count() {
            return Err(Error::argument(
                "device",
                format!("one of {} CUDA devices", device_count()),
                ordinal.to_string(),
            ));
        }
        let previous = Current::remember();
        let context = CudaContext::new(ordinal).map_err(|e| error("making a context", e))?;
        // SAFETY: this context object is ours alone, and its streams are ordered by whoever gives them to us. Event
        // tracking would record events during graph capture, which breaks it.
        unsafe { context.disable_event_tracking() };
        let device = Arc::new(Self::new(context)?);
        drop(previous);
        devices.insert(ordinal, device.clone());
        Ok(device)
    }

    /// The device of a context that the caller made.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>, Error> {
        // Keyed by the driver's handle; the context stays alive in the map, so the handle is not used again.
        static DEVICES: OnceLock<Mutex<HashMap<usize, Arc<Device>>>> = OnceLock::new();
        let mut devices = DEVICES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let key = context.cu_ctx().addr();
        if let Some(device) = devices.get(&key) {
            return Ok(device.clone());
        }
        let device = Arc::new(Self::new(context.clone())?);
        devices.insert(key, device.clone());
        Ok(device)
    }

    fn new(context: Arc<CudaContext>) -> Result<Self, Error> {
        let attribute = |what| {
            let value = context.attribute(what).map_err(|e| error("reading the device's properties", e))?;
            Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
        };
        let mut properties = DeviceProperties {
            name: context.name().map_err(|e| error("reading the device's name", e))?,
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            shared_bytes_per_multiprocessor: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
        };
        if !images::has_code_for(properties.major, properties.minor) {
            // PTX has the kernels that fit everywhere.
            let Shared { of_block, of_multiprocessor } = Shared::LEAST;
            properties.shared_bytes_per_block = properties.shared_bytes_per_block.min(of_block);
            properties.shared_bytes_per_multiprocessor =
                properties.shared_bytes_per_multiprocessor.min(of_multiprocessor);
        }
        Ok(Self { context, properties, loaded: Mutex::default() })
    }

    /// The device's properties.
    pub fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    /// The context, ours or the caller's.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Launches a kernel on `stream`.
    ///
    /// # Safety
    /// The contract of [`Launcher::launch`]; `stream` is one of this device's context.
    ///
    /// # Errors
    /// If there is no such kernel or the device refuses.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        stem: &str,
        kernel: &str,
        grid: Grid,
        arguments: &[u8],
    ) -> Result<(), Error> {
        let _current = Current::set(&self.context)?;
        let function = self.function(stem, kernel, grid.shared_bytes)?;
        // The driver reads the struct through this pointer before it returns, so it need not outlive the call.
        let mut parameters = [arguments.as_ptr().cast_mut().cast()];
        // SAFETY: the caller's contract; the function belongs to the current context.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (grid.blocks, 1, 1),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                stream,
                &mut parameters,
            )
        }
        .map_err(|e| error(format!("launching {kernel} with {grid:?}"), e))
    }

    /// Fills memory with zero bytes, in the order of `stream`.
    ///
    /// # Safety
    /// The contract of [`Launcher::clear`]; `stream` is one of this device's context.
    ///
    /// # Errors
    /// If the driver refuses.
    pub unsafe fn clear(&self, stream: sys::CUstream, to: Address, bytes: usize) -> Result<(), Error> {
        let _current = Current::set(&self.context)?;
        // SAFETY: the caller's contract.
        unsafe { result::memset_d8_async(to, 0, bytes, stream) }.map_err(|e| error("clearing memory", e))
    }

    /// Fills memory with f32 of the value 1, in the order of `stream`. A fill and not a copy: a CUDA graph would read the
    /// host's memory again in each replay.
    ///
    /// # Safety
    /// `count` f32 from `to` on are device memory that nothing else uses meanwhile; `stream` is one of this device's context.
    ///
    /// # Errors
    /// If the driver refuses.
    pub unsafe fn fill_with_ones(&self, stream: sys::CUstream, to: Address, count: usize) -> Result<(), Error> {
        let _current = Current::set(&self.context)?;
        // SAFETY: the caller's contract.
        unsafe { sys::cuMemsetD32Async(to, 1f32.to_bits(), count, stream).result() }
            .map_err(|e| error("filling memory with ones", e))
    }

    /// The kernel, ready for launches with `shared_bytes` of dynamic shared memory.
    fn function(&self, stem: &str, kernel: &str, shared_bytes: u32) -> Result<CudaFunction, Error> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = loaded.functions.get(kernel)
            && shared_bytes <= found.shared_bytes
        {
            return Ok(found.function.clone());
        }
        // Loading may be refused while any stream of the process is being captured into a graph, and what is loaded lazily is
        // loaded when it is first asked about.
        let _relaxed = RelaxedCapture::enter();
        if !loaded.functions.contains_key(kernel) {
            let function = self.find(&mut loaded, stem, kernel)?;
            loaded.functions.insert(kernel.into(), function);
        }
        let found = loaded.functions.get_mut(kernel).expect("just put there");
        // Without being told, the driver refuses more than 48 KiB of static and dynamic shared memory together.
        if shared_bytes > found.shared_bytes {
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            found.function.set_attribute(limit, bytes).map_err(|e| {
                let most = self.properties.shared_bytes_per_block;
                error(format!("giving {kernel} {shared_bytes} bytes of dynamic shared memory, of {most} in a block"), e)
            })?;
            found.shared_bytes = shared_bytes;
        }
        Ok(found.function.clone())
    }

    fn find(&self, loaded: &mut Loaded, stem: &str, kernel: &str) -> Result<Function, Error> {
        let (major, minor) = (self.properties.major, self.properties.minor);
        let Some(image) = image_for(stem, kernel, major, minor) else {
            return Err(Error::Cuda {
                action: format!("choosing a kernel image of {stem} for {}", self.properties.name),
                reason: fitness::nothing_for(major, minor),
            });
        };
        let module = match loaded.modules.get(&(image.stem, image.target)) {
            Some(module) => module.clone(),
            None => {
                let module = self.load(image)?;
                loaded.modules.insert((image.stem, image.target), module.clone());
                module
            }
        };
        let function = module.load_function(kernel).map_err(|e| error(format!("finding {kernel} in {stem}"), e))?;
        // To answer this the driver loads the code: here, and not at the first launch, which may be captured.
        let registers = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
        function.get_attribute(registers).map_err(|e| error(format!("loading {kernel}"), e))?;
        Ok(Function { function, shared_bytes: 0 })
    }

    fn load(&self, image: &Image) -> Result<Arc<CudaModule>, Error> {
        let bytes = image.decompressed();
        let ptx = if image.is_code() {
            Ptx::from_binary(bytes)
        } else {
            let text = String::from_utf8(bytes).expect("PTX is text");
            Ptx::from_src(text.trim_end_matches('\0'))
        };
        self.context.load_module(ptx).map_err(|e| {
            let refused = error(format!("loading {} for {}", image.stem, image.target), e);
            // The driver's own words for an image that it cannot read name no release.
            let driver = driver::release().ok();
            let ptx = !image.is_code();
            match (refused, driver.and_then(|driver| fitness::too_old(images::CUDA, driver, ptx))) {
                (Error::Cuda { action, reason }, Some(why)) => {
                    Error::Cuda { action, reason: format!("{reason}; {why}") }
                }
                (refused, _) => refused,
            }
        })
    }
}

/// Makes a context current, and when dropped the previous one again: cudarc leaves its own, and PyTorch would then
/// go on with another device.
struct Current {
    previous: Option<Option<sys::CUcontext>>,
}

impl Current {
    fn remember() -> Self {
        Self { previous: result::ctx::get_current().ok() }
    }

    fn set(context: &CudaContext) -> Result<Self, Error> {
        let current = Self::remember();
        context.bind_to_thread().map_err(|e| error("entering the device's context", e))?;
        Ok(current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: it was current a moment ago on this thread; null means none.
            let _ = unsafe { result::ctx::set_current(previous.unwrap_or(std::ptr::null_mut())) };
        }
    }
}

/// While it lives, allows calls that a capture on another stream would forbid.
struct RelaxedCapture {
    previous: sys::CUstreamCaptureMode,
}

impl RelaxedCapture {
    fn enter() -> Self {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps a thread-local setting with `mode`.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Self { previous: mode }
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: swaps a thread-local setting with what was there before.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.previous) };
    }
}

/// Launches on a cudarc stream, with memory from that stream.
pub struct CudaLauncher {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
}

impl CudaLauncher {
    /// A launcher on the caller's stream and context.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, Error> {
        Ok(Self { device: Device::of(stream.context())?, stream: stream.clone() })
    }

    /// Fills memory with f32 of the value 1.
    ///
    /// # Safety
    /// The contract of [`Device::fill_with_ones`].
    pub(crate) unsafe fn fill_with_ones(&self, to: Address, count: usize) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.device.fill_with_ones(self.stream.cu_stream(), to, count) }
    }
}

// SAFETY: memory is a slice of as many bytes, which the driver aligns to 256 or more; the properties are the device's; work is
// given to one stream, whose order it keeps.
unsafe impl Launcher for CudaLauncher {
    type Memory = Allocation;

    fn properties(&self) -> &DeviceProperties {
        self.device.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Allocation, Error> {
        // SAFETY: uninitialised, as `Launcher::allocate` says; kernels write before they read.
        let slice =
            unsafe { self.stream.alloc::<u8>(bytes) }.map_err(|e| error(format!("allocating {bytes} bytes"), e))?;
        let address = slice.device_ptr(&self.stream).0;
        Ok(Allocation { address, _slice: slice })
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.device.clear(self.stream.cu_stream(), to, bytes) }
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.device.launch(self.stream.cu_stream(), stem, kernel, grid, arguments) }
    }
}

/// Memory that its stream frees in its own order.
pub struct Allocation {
    address: Address,
    _slice: CudaSlice<u8>,
}

// SAFETY: the driver aligns the slice to 256 or more, it is this value's alone, and cudarc frees it in stream order.
unsafe impl Memory for Allocation {
    fn address(&self) -> Address {
        self.address
    }
}
