//! A GPU, by the calls of its driver. Nothing here knows what it computes.
#![allow(unsafe_code, reason = "the driver's functions take addresses, and trust them")]

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    sync::Arc,
};

use cudarc::driver::{
    CudaContext, CudaGraph, CudaStream, DriverError, result,
    sys::{
        self, CUdevice_attribute, CUfunction_attribute, CUgraphInstantiate_flags,
        CUstreamCaptureMode,
    },
};

use crate::{
    device::{Device, DeviceError},
    image::{self, Image},
    kernel::{Address, Launch},
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

/// A GPU. It belongs to the process: another `Cuda` is another stream of work on it.
pub struct Cuda {
    name: String,
    num_multiprocessors: u32,
    has_bf16: bool,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
    memory: Vec<sys::CUdeviceptr>,
}

// SAFETY: handles of the driver, which may be used by any thread that has made their context its own, as
// every method does first.
unsafe impl Send for Cuda {}

impl fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Cuda").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cuda {
    /// Opens GPU `ordinal`, of those that the process may see, and loads its kernels.
    ///
    /// # Errors
    ///
    /// As [`CudaError`] says.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
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
        let name = context.name().map_err(of("cuDeviceGetName"))?;
        let capability = context.compute_capability().map_err(of("cuDeviceGetAttribute"))?;
        let num_multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(of("cuDeviceGetAttribute"))?;
        let Some(image) = Image::choose(capability) else {
            return Err(CudaError::NoKernels { name, capability });
        };
        let code = image
            .unpack()
            .map_err(|source| CudaError::Image { image: image.architecture, source })?;
        let stream = context.new_stream().map_err(of("cuStreamCreate"))?;
        // SAFETY: a cubin, or PTX that ends with a zero.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = module.map_err(of("cuModuleLoadData"))?;
        tracing::info!(device = %name, kernels = image.architecture, driver = version, "GPU opened");
        Ok(Self {
            name,
            num_multiprocessors: num_multiprocessors.unsigned_abs(),
            has_bf16: capability >= (8, 0),
            context,
            stream,
            module,
            functions: HashMap::new(),
            memory: Vec::new(),
        })
    }

    fn function(&mut self, name: &'static str) -> Result<sys::CUfunction, DeviceError> {
        if let Some(function) = self.functions.get(name) {
            return Ok(*function);
        }
        // SAFETY: the module is unloaded with `self`.
        let function = unsafe { result::module::get_function(self.module, CString::new(name)?) };
        let function = function.map_err(of("cuModuleGetFunction"))?;
        // The driver loads a kernel when it is asked something of it; not in the midst of a graph.
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
        // SAFETY: a function of the module.
        let loaded = unsafe { result::function::get_function_attribute(function, attribute) };
        loaded.map_err(of("cuFuncGetAttribute"))?;
        self.functions.insert(name, function);
        Ok(function)
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(of("cuCtxSetCurrent"))
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

    fn name(&self) -> &str {
        &self.name
    }

    fn num_multiprocessors(&self) -> u32 {
        self.num_multiprocessors
    }

    fn has_bf16(&self) -> bool {
        self.has_bf16
    }

    fn allocate(&mut self, num_bytes: usize) -> Result<Address, DeviceError> {
        self.bind()?;
        // SAFETY: memory that nobody knows of yet. None would have no address.
        let memory = unsafe { result::malloc_sync(num_bytes.max(1)) };
        let memory = memory.map_err(of("cuMemAlloc"))?;
        self.memory.push(memory);
        Ok(Address(memory))
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: `to` has room; `bytes` are in pages that the system may move, so the driver has copied
        // them when it returns.
        let copied = unsafe { result::memcpy_htod_async(to.0, bytes, self.stream.cu_stream()) };
        Ok(copied.map_err(of("cuMemcpyHtoDAsync"))?)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: there is as much at `from`, and nobody reads `bytes` before the stream has come this far.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream.cu_stream()) };
        let arrived = self.stream.synchronize().map_err(of("cuStreamSynchronize"));
        copied.map_err(of("cuMemcpyDtoHAsync"))?;
        Ok(arrived?)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.bind()?;
        let function = self.function(launch.kernel)?;
        let [x, y, z] = launch.grid;
        let args: *const u8 = launch.args.as_ptr();
        // SAFETY: the kernel's struct of arguments, which is read before this returns; what it points to is
        // memory of this device, as large as the kernel's description says.
        let started = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.num_threads, 1, 1),
                0,
                self.stream.cu_stream(),
                &mut [args.cast::<c_void>().cast_mut()],
            )
        };
        Ok(started.map_err(of("cuLaunchKernel"))?)
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Graph, DeviceError> {
        self.bind()?;
        for launch in &launches {
            self.function(launch.kernel)?;
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
        let _ = self.bind();
        let _ = self.stream.synchronize();
        for memory in self.memory.drain(..) {
            // SAFETY: nothing runs that could use it.
            let _ = unsafe { result::free_sync(memory) };
        }
        // SAFETY: as above; it was loaded once.
        let _ = unsafe { result::module::unload(self.module) };
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
