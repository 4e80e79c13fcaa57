//! A GPU, by the calls of its driver. Nothing here knows what it computes.
#![allow(unsafe_code, reason = "the driver's functions take addresses, and trust them")]

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt, ptr, slice,
    sync::Arc,
};

use cudarc::driver::{
    CudaContext, CudaGraph, CudaStream, DriverError, result,
    sys::{
        self, CUdevice_attribute, CUfunction_attribute, CUgraphInstantiate_flags,
        CUstreamCaptureMode, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
        CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
    },
};

use crate::{
    device::{AllocatedBytes, Device, DeviceError},
    image::{self, Image},
    kernel::{Address, Boxes, Dtype, Launch, TensorMap},
};

/// Oldest driver that loads the kernels, as CUDA counts: 12.0.
const OLDEST_DRIVER: i32 = 12_000;

/// A GPU that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No `libcuda.so`.
    #[error("no driver of a GPU: libcuda.so.1 is not there")]
    NoDriver,
    /// Too old.
    #[error("the driver knows CUDA {}.{}; 12.0 is the oldest that will do", version / 1000, version % 1000 / 10)]
    OldDriver {
        /// A thousand times the version, and ten times what follows it.
        version: i32,
    },
    /// None, or not so many.
    #[error("no GPU {ordinal}: there are {count}")]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: i32,
    },
    /// No kernels.
    #[error("{name} is of compute capability {}.{}; there are kernels for {}", capability.0, capability.1, image::NAMES)]
    NoKernels {
        /// What its maker calls it.
        name: String,
        /// Before and behind the dot.
        capability: (i32, i32),
    },
    /// Kernels that are not there, or not good.
    #[error("the kernels for {image} cannot be unpacked")]
    Image {
        /// Of which architecture.
        image: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What else the driver said.
    #[error("{call}")]
    Driver {
        /// What was asked of it.
        call: &'static str,
        /// Its answer.
        #[source]
        source: DriverError,
    },
}

/// Memory of the host that what is copied passes through.
const STAGING_BYTES: usize = 4 << 20;

/// A stream of work on a GPU.
pub struct Cuda {
    // Before the GPU, whose memory they are.
    staging: Staging,
    allocated: AllocatedBytes,
    memory: Vec<sys::CUdeviceptr>,
    functions: HashMap<&'static str, sys::CUfunction>,
    stream: Arc<CudaStream>,
    gpu: Arc<Gpu>,
}

/// What all streams of work share.
struct Gpu {
    name: String,
    memory_bytes: u64,
    num_multiprocessors: u32,
    has_bf16: bool,
    has_sm90: bool,
    module: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: a handle of the driver, which may be used by any thread that has made its context its own.
unsafe impl Send for Gpu {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Gpu {}

// SAFETY: handles of the driver, which may be used by any thread that has made their context its own, as
// every method does first.
unsafe impl Send for Cuda {}
// SAFETY: as above; without `&mut` nothing is asked of the stream.
unsafe impl Sync for Cuda {}

impl fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cuda").field("name", &self.gpu.name).finish_non_exhaustive()
    }
}

impl Gpu {
    fn open(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: what that library does when it is loaded is what the driver is there for.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let mut version = 0;
        // SAFETY: writes one number, to where it is.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        asked.map_err(of("cuDriverGetVersion"))?;
        if version < OLDEST_DRIVER {
            return Err(CudaError::OldDriver { version });
        }
        result::init().map_err(of("cuInit"))?;
        let count = CudaContext::device_count().map_err(of("cuDeviceGetCount"))?;
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(of("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: for memory that cudarc looks after; none is.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(of("cuDeviceGetName"))?;
        let capability = context.compute_capability().map_err(of("cuDeviceGetAttribute"))?;
        let num_multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(of("cuDeviceGetAttribute"))?;
        let (_, memory_bytes) = result::mem_get_info().map_err(of("cuMemGetInfo"))?;
        let Some(image) = Image::choose(capability) else {
            return Err(CudaError::NoKernels { name, capability });
        };
        let code = image
            .unpack()
            .map_err(|source| CudaError::Image { image: image.architecture, source })?;
        // SAFETY: a cubin, or PTX that ends with a zero.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = module.map_err(of("cuModuleLoadData"))?;
        tracing::info!(device = %name, kernels = image.architecture, driver = version, "GPU opened");
        Ok(Self {
            name,
            memory_bytes: memory_bytes as u64,
            num_multiprocessors: num_multiprocessors.unsigned_abs(),
            has_bf16: capability >= (8, 0),
            has_sm90: image.architecture == "sm_90a",
            module,
            context,
        })
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(of("cuCtxSetCurrent"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // After a fault this fails, and the end of the process frees what is left.
        let _ = self.bind();
        // SAFETY: it was loaded once, and who could run it is gone.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Memory of the host that does not move, so that the GPU copies from it and to it by itself.
struct Staging {
    memory: *mut c_void,
    /// Bytes from the first on that the stream may still have to copy.
    used: usize,
}

impl Staging {
    /// In the context of this thread.
    fn allocate() -> Result<Self, CudaError> {
        // SAFETY: memory that nobody knows of yet.
        let memory = unsafe { result::malloc_host(STAGING_BYTES, 0) };
        Ok(Self { memory: memory.map_err(of("cuMemHostAlloc"))?, used: 0 })
    }

    /// So many bytes that nobody uses any more.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    fn take(&mut self, num_bytes: usize) -> &mut [u8] {
        assert!(self.used + num_bytes <= STAGING_BYTES);
        let first = self.memory.cast::<u8>().wrapping_add(self.used);
        self.used += num_bytes;
        // SAFETY: a part of the memory that the stream has copied, or was never asked to.
        unsafe { slice::from_raw_parts_mut(first, num_bytes) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: it was allocated once, and the stream that copies it has come to its end.
        let _ = unsafe { result::free_host(self.memory) };
    }
}

impl Cuda {
    /// Opens GPU `ordinal`, of those that the process may see, and loads its kernels.
    ///
    /// # Errors
    ///
    /// As [`CudaError`] says.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Self::on(Arc::new(Gpu::open(ordinal)?))
    }

    fn on(gpu: Arc<Gpu>) -> Result<Self, CudaError> {
        gpu.bind()?;
        Ok(Self {
            staging: Staging::allocate()?,
            allocated: AllocatedBytes::default(),
            memory: Vec::new(),
            functions: HashMap::new(),
            stream: gpu.context.new_stream().map_err(of("cuStreamCreate"))?,
            gpu,
        })
    }

    /// Waits until all has happened.
    fn synchronize(&mut self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(of("cuStreamSynchronize"))?;
        self.staging.used = 0;
        Ok(())
    }

    fn function(&mut self, launch: &Launch) -> Result<sys::CUfunction, DeviceError> {
        let Launch { kernel: name, shared_bytes, .. } = *launch;
        if let Some(function) = self.functions.get(name) {
            return Ok(*function);
        }
        // SAFETY: the module is unloaded behind `self`.
        let function =
            unsafe { result::module::get_function(self.gpu.module, CString::new(name)?) };
        let function = function.map_err(of("cuModuleGetFunction"))?;
        // The driver loads a kernel when it is asked something of it; not in the midst of a graph.
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: a function of the module.
        let loaded = unsafe { result::function::get_function_attribute(function, attribute) };
        loaded.map_err(of("cuFuncGetAttribute"))?;
        if shared_bytes > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let num_bytes = i32::try_from(shared_bytes)?;
            // SAFETY: as above.
            let set =
                unsafe { result::function::set_function_attribute(function, attribute, num_bytes) };
            set.map_err(of("cuFuncSetAttribute"))?;
        }
        self.functions.insert(name, function);
        Ok(function)
    }
}

/// Makes an error of what the driver answered to `call`.
fn of(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |source| CudaError::Driver { call, source }
}

/// Launches, as the driver keeps them.
pub struct Graph(CudaGraph);

// SAFETY: only the thread that has the device starts it, one at a time.
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Device for Cuda {
    type Graph = Graph;

    fn another(&self) -> Result<Self, DeviceError> {
        Ok(Self::on(self.gpu.clone())?)
    }

    fn name(&self) -> &str {
        &self.gpu.name
    }

    fn num_multiprocessors(&self) -> u32 {
        self.gpu.num_multiprocessors
    }

    fn has_bf16(&self) -> bool {
        self.gpu.has_bf16
    }

    fn has_sm90(&self) -> bool {
        self.gpu.has_sm90
    }

    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap, DeviceError> {
        self.gpu.bind()?;
        let Boxes { matrix, num_rows, stride, dtype, box_rows } = *boxes;
        // Innermost first.
        let size = [u64::from(stride), u64::from(num_rows)];
        let row_bytes = u64::from(stride) * dtype.num_bytes() as u64;
        let (box_size, steps) = ([Boxes::COLUMNS, box_rows], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: two dimensions, and the bytes between two rows; the map is read by kernels alone, which
        // run as long as the memory at `matrix` is there.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                match dtype {
                    Dtype::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    Dtype::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                },
                2,
                ptr::with_exposed_provenance_mut(usize::try_from(matrix.0)?),
                size.as_ptr(),
                &raw const row_bytes,
                box_size.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        made.result().map_err(of("cuTensorMapEncodeTiled"))?;
        Ok(TensorMap(map.opaque))
    }

    fn memory_bytes(&self) -> u64 {
        self.gpu.memory_bytes
    }

    fn allocate(&mut self, num_bytes: usize) -> Result<Address, DeviceError> {
        self.gpu.bind()?;
        // SAFETY: memory that nobody knows of yet. None would have no address.
        let memory = unsafe { result::malloc_sync(num_bytes.max(1)) };
        let memory = memory.map_err(of("cuMemAlloc"))?;
        self.memory.push(memory);
        self.allocated.add(num_bytes);
        Ok(Address(memory))
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.gpu.bind()?;
        let mut to = to.0;
        for part in bytes.chunks(STAGING_BYTES) {
            if self.staging.used + part.len() > STAGING_BYTES {
                self.synchronize()?;
            }
            let staged = self.staging.take(part.len());
            staged.copy_from_slice(part);
            // SAFETY: `to` has room; what is staged is left alone until the stream has come this far.
            let copied = unsafe { result::memcpy_htod_async(to, staged, self.stream.cu_stream()) };
            copied.map_err(of("cuMemcpyHtoDAsync"))?;
            to += part.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.gpu.bind()?;
        let mut from = from.0;
        for part in bytes.chunks_mut(STAGING_BYTES) {
            if self.staging.used + part.len() > STAGING_BYTES {
                self.synchronize()?;
            }
            let staged = self.staging.take(part.len());
            // SAFETY: there is as much at `from`, and nobody reads it before the stream has come this far.
            let copied =
                unsafe { result::memcpy_dtoh_async(staged, from, self.stream.cu_stream()) };
            copied.map_err(of("cuMemcpyDtoHAsync"))?;
            self.stream.synchronize().map_err(of("cuStreamSynchronize"))?;
            part.copy_from_slice(staged);
            self.staging.used = 0;
            from += part.len() as u64;
        }
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.gpu.bind()?;
        let function = self.function(launch)?;
        let [x, y, z] = launch.grid;
        let args: *const u8 = launch.args.as_ptr();
        // SAFETY: the kernel's struct of arguments, which is read before this returns; what it points to is
        // memory of this device, as large as the kernel's description says.
        let started = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.num_threads, 1, 1),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut [args.cast::<c_void>().cast_mut()],
            )
        };
        Ok(started.map_err(of("cuLaunchKernel"))?)
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Graph, DeviceError> {
        self.gpu.bind()?;
        for launch in &launches {
            self.function(launch)?;
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(of("cuStreamBeginCapture"))?;
        let launched = launches.iter().try_for_each(|launch| self.launch(launch));
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        match graph.map_err(of("cuStreamEndCapture"))? {
            Some(graph) => Ok(Graph(graph)),
            None => Err("a graph of no launches".into()),
        }
    }

    fn start(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        Ok(graph.0.launch().map_err(of("cuGraphLaunch"))?)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // After a fault all of this fails, and the end of the process frees what is left.
        let _ = self.gpu.bind();
        let _ = self.stream.synchronize();
        for memory in self.memory.drain(..) {
            // SAFETY: nothing runs that could use it.
            let _ = unsafe { result::free_sync(memory) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        // SAFETY: as in `open`.
        if unsafe { sys::is_culib_present() } {
            return;
        }
        let error = Cuda::open(0).unwrap_err();
        assert_eq!(error.to_string(), "no driver of a GPU: libcuda.so.1 is not there");
    }

    #[test]
    fn a_gpu_without_kernels_is_told_which_there_are() {
        let error = CudaError::NoKernels { name: "Tesla V100".to_owned(), capability: (7, 0) };
        assert_eq!(
            error.to_string(),
            "Tesla V100 is of compute capability 7.0; there are kernels for sm_75, sm_80, sm_86, sm_89, \
             sm_90a, sm_100a, sm_120, and compute_75 by the driver's compiler"
        );
        let error = CudaError::OldDriver { version: 11_080 };
        assert_eq!(
            error.to_string(),
            "the driver knows CUDA 11.8; 12.0 is the oldest that will do"
        );
    }
}
