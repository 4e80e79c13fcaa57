//! `libcuda.so.1` without a GPU: the calls that engine-gpu makes, with the kernels on the emulator.
//!
//! What is asked of a stream happens as late as it may: when somebody waits for the stream. What a driver
//! would refuse is refused; a fault of a kernel stays, as on a GPU; reasons go to standard error.
//!
//! | Variable | Default | |
//! |---|---|---|
//! | `EMULATED_CAPABILITY` | 9.0 | which kernels are loaded |
//! | `EMULATED_PASSES` | no limit | graphs that are started before the device is lost |
#![allow(
    unsafe_code,
    clippy::disallowed_methods,
    clippy::missing_safety_doc,
    clippy::multiple_unsafe_ops_per_block,
    clippy::print_stderr,
    clippy::too_many_arguments,
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    reason = "the driver's interface in C, for tests: whoever calls it promises what CUDA's documentation says"
)]

mod device;
mod stream;

use std::{
    cell::Cell,
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use emulator::{Memory, tensor_map};
use engine_gpu::kernel::{Address, Boxes, Launch};

use crate::{
    device::Device,
    stream::{Stream, Work},
};

/// What a call answers.
type Status = c_int;
/// A context, module, function, stream or graph.
type Handle = *mut c_void;

const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const INVALID_CONTEXT: Status = 201;
const INVALID_HANDLE: Status = 400;
const NOT_FOUND: Status = 500;
const ILLEGAL_ADDRESS: Status = 700;
const CAPTURE_UNSUPPORTED: Status = 900;
const UNKNOWN: Status = 999;

/// CUDA 12.0, as it counts.
const VERSION: c_int = 12_000;
const CONTEXT: Handle = ptr::dangling_mut();
/// Of shared memory, which a launch may ask for without further ado.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(Mutex::default);

thread_local! {
    static HAS_CONTEXT: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
struct Driver {
    device: Device,
    num_contexts: usize,
    num_handles: usize,
    memory: Memory,
    /// Of the host, page-locked.
    pinned: BTreeMap<usize, Vec<u8>>,
    modules: BTreeMap<usize, Vec<u8>>,
    functions: BTreeMap<usize, Function>,
    streams: BTreeMap<usize, Stream>,
    graphs: BTreeMap<usize, Arc<Vec<Launch>>>,
    /// What all calls answer since the device is lost.
    fault: Option<Status>,
}

#[derive(Clone, Copy)]
struct Function {
    module: usize,
    kernel: &'static str,
    args_size: usize,
    max_shared_bytes: u32,
}

impl Driver {
    fn handle(&mut self) -> usize {
        self.num_handles += 1;
        // Small numbers are streams that are always there.
        0x1000 + self.num_handles
    }

    fn is_pinned(&self, start: usize, num_bytes: usize) -> bool {
        let last = self.pinned.range(..=start).next_back();
        last.is_some_and(|(first, memory)| start + num_bytes <= first + memory.len())
    }

    fn stream(&mut self, stream: Handle) -> Result<&mut Stream, Status> {
        self.streams.get_mut(&stream.addr()).ok_or(INVALID_HANDLE)
    }

    /// Asks a stream for a copy, which is none that a graph could have.
    fn copy(&mut self, stream: Handle, work: Work) -> Result<(), Status> {
        let (host, device, num_bytes) = match work {
            Work::ToDevice { from, to, num_bytes } => (from, to, num_bytes),
            Work::ToHost { from, to, num_bytes } => (to, from, num_bytes),
            Work::Launch(_) | Work::Graph(_) => return Err(INVALID_VALUE),
        };
        let is_there = self.memory.holds(Address(device), num_bytes);
        if !is_there || !self.is_pinned(host, num_bytes) {
            eprintln!("emulated driver: a copy of {num_bytes} bytes that are not there");
            return Err(INVALID_VALUE);
        }
        let stream = self.stream(stream)?;
        if stream.captured.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        stream.work.push(work);
        Ok(())
    }
}

fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that needs no context.
fn answer(call: impl FnOnce(&mut Driver) -> Result<(), Status>) -> Status {
    let called = catch_unwind(AssertUnwindSafe(|| call(&mut lock())));
    called.unwrap_or(Err(UNKNOWN)).err().unwrap_or(SUCCESS)
}

/// A call that needs the context of this thread, and a device that is not lost.
fn in_context(call: impl FnOnce(&mut Driver) -> Result<(), Status>) -> Status {
    answer(|driver| match driver.fault {
        Some(fault) => Err(fault),
        None if HAS_CONTEXT.get() && driver.num_contexts > 0 => call(driver),
        None => Err(INVALID_CONTEXT),
    })
}

/// Puts `value` where a caller wants it.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Status> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    unsafe { place.write(value) };
    Ok(())
}

unsafe fn put_handle(place: *mut Handle, handle: usize) -> Result<(), Status> {
    unsafe { put(place, ptr::without_provenance_mut(handle)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: Status, name: *mut *const c_char) -> Status {
    let text: &CStr = match error {
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    answer(|_| unsafe { put(name, text.as_ptr()) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: Status, text: *mut *const c_char) -> Status {
    unsafe { cuGetErrorName(error, text) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    answer(|_| unsafe { put(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Status {
    if flags == 0 { SUCCESS } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    answer(|_| unsafe { put(count, 1) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    answer(|_| match ordinal {
        0 => unsafe { put(device, 0) },
        _ => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _: c_int) -> Status {
    let text = c"emulated GPU".to_bytes_with_nul();
    answer(|_| {
        if usize::try_from(len).is_ok_and(|len| len >= text.len()) {
            unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
            return Ok(());
        }
        Err(INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    _: c_int,
) -> Status {
    answer(|driver| {
        let said = driver.device.attribute(attribute).ok_or(INVALID_VALUE)?;
        unsafe { put(value, said) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _: c_int) -> Status {
    answer(|driver| {
        driver.num_contexts += 1;
        unsafe { put(context, CONTEXT) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> Status {
    answer(|driver| {
        driver.num_contexts = driver.num_contexts.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if driver.num_contexts == 0 {
            let Driver { memory, pinned, modules, streams, .. } = driver;
            let left = [memory.num_bytes(), pinned.len(), modules.len(), streams.len()];
            if left != [0; 4] {
                eprintln!("emulated driver: memory, pinned, modules, streams left: {left:?}");
                return Err(UNKNOWN);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> Status {
    let current = if HAS_CONTEXT.get() { CONTEXT } else { ptr::null_mut() };
    answer(|_| unsafe { put(context, current) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    HAS_CONTEXT.set(context == CONTEXT);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    in_context(|driver| {
        unsafe { put(free, device::MEMORY_BYTES - driver.memory.num_bytes()) }?;
        unsafe { put(total, device::MEMORY_BYTES) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(memory: *mut u64, num_bytes: usize) -> Status {
    in_context(|driver| match num_bytes {
        0 => Err(INVALID_VALUE),
        _ if driver.memory.num_bytes() + num_bytes > device::MEMORY_BYTES => Err(OUT_OF_MEMORY),
        _ => unsafe { put(memory, driver.memory.allocate(num_bytes).0) },
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(memory: u64) -> Status {
    in_context(|driver| match driver.memory.free(Address(memory)) {
        true => Ok(()),
        false => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(
    memory: *mut *mut c_void,
    num_bytes: usize,
    _: c_uint,
) -> Status {
    in_context(|driver| {
        let mut bytes = vec![0xff_u8; num_bytes];
        unsafe { put(memory, bytes.as_mut_ptr().cast()) }?;
        driver.pinned.insert(bytes.as_ptr().expose_provenance(), bytes);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(memory: *mut c_void) -> Status {
    in_context(|driver| driver.pinned.remove(&memory.addr()).map(drop).ok_or(INVALID_VALUE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> Status {
    in_context(|driver| {
        let code = unsafe { device::code(image.cast()) }.ok_or(INVALID_VALUE)?;
        let handle = driver.handle();
        driver.modules.insert(handle, code);
        unsafe { put_handle(module, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: Handle) -> Status {
    in_context(|driver| {
        driver.functions.retain(|_, function| function.module != module.addr());
        driver.modules.remove(&module.addr()).map(drop).ok_or(INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Status {
    in_context(|driver| {
        let name = unsafe { CStr::from_ptr(name) };
        let code = driver.modules.get(&module.addr()).ok_or(INVALID_HANDLE)?;
        let is_there =
            code.windows(name.count_bytes() + 1).any(|at| at == name.to_bytes_with_nul());
        let kernel = name.to_str().ok().filter(|_| is_there).ok_or(NOT_FOUND)?;
        let args_size = emulator::args_size(kernel).ok_or(NOT_FOUND)?;
        let kernel = Box::leak(kernel.to_owned().into_boxed_str());
        let max_shared_bytes = PLAIN_SHARED_BYTES;
        let handle = driver.handle();
        let found = Function { module: module.addr(), kernel, args_size, max_shared_bytes };
        driver.functions.insert(handle, found);
        unsafe { put_handle(function, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    _: c_int,
    function: Handle,
) -> Status {
    in_context(|driver| match driver.functions.contains_key(&function.addr()) {
        true => unsafe { put(value, 1) },
        false => Err(INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(
    function: Handle,
    attribute: c_int,
    value: c_int,
) -> Status {
    in_context(|driver| {
        let function = driver.functions.get_mut(&function.addr()).ok_or(INVALID_HANDLE)?;
        let value = u32::try_from(value).ok().filter(|&bytes| bytes <= device::MAX_SHARED_BYTES);
        if attribute != device::MAX_DYNAMIC_SHARED_SIZE_BYTES {
            return Err(INVALID_VALUE);
        }
        function.max_shared_bytes = value.ok_or(INVALID_VALUE)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _: c_uint) -> Status {
    in_context(|driver| {
        let handle = driver.handle();
        driver.streams.insert(handle, Stream::default());
        unsafe { put_handle(stream, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    in_context(|driver| driver.streams.remove(&stream.addr()).map(drop).ok_or(INVALID_HANDLE))
}

/// Does what the stream was asked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    let mut taken = Vec::new();
    let status = in_context(|driver| {
        let stream = driver.stream(stream)?;
        if stream.captured.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        taken = std::mem::take(&mut stream.work);
        Ok(())
    });
    // Others may ask for something meanwhile.
    for work in taken {
        if let Err(reason) = unsafe { work.run() } {
            if !reason.is_empty() {
                eprintln!("emulated driver: {reason}");
            }
            lock().fault = Some(ILLEGAL_ADDRESS);
            return ILLEGAL_ADDRESS;
        }
    }
    status
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    num_bytes: usize,
    stream: Handle,
) -> Status {
    let work = Work::ToDevice { from: from.expose_provenance(), to, num_bytes };
    in_context(|driver| driver.copy(stream, work))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    num_bytes: usize,
    stream: Handle,
) -> Status {
    let work = Work::ToHost { from, to: to.expose_provenance(), num_bytes };
    in_context(|driver| driver.copy(stream, work))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    x: c_uint,
    y: c_uint,
    z: c_uint,
    num_threads: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    arguments: *mut *mut c_void,
    _: *mut *mut c_void,
) -> Status {
    in_context(|driver| {
        let Function { kernel, args_size, max_shared_bytes, .. } =
            *driver.functions.get(&function.addr()).ok_or(INVALID_HANDLE)?;
        let is_grid = x > 0 && (1..=65_535).contains(&y) && (1..=65_535).contains(&z);
        let is_block = (1..=1024).contains(&num_threads) && [threads_y, threads_z] == [1, 1];
        if !is_grid || !is_block || shared_bytes > max_shared_bytes {
            eprintln!("emulated driver: {kernel} cannot be started like that");
            return Err(INVALID_VALUE);
        }
        let args = unsafe { slice::from_raw_parts(arguments.read().cast::<u8>(), args_size) };
        let args = args.to_vec();
        let launch = Launch { kernel, grid: [x, y, z], num_threads, shared_bytes, args };
        let stream = driver.stream(stream)?;
        match &mut stream.captured {
            Some(captured) => captured.push(launch),
            None => stream.work.push(Work::Launch(launch)),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: Handle, _: c_int) -> Status {
    in_context(|driver| match &mut driver.stream(stream)?.captured {
        Some(_) => Err(CAPTURE_UNSUPPORTED),
        none => {
            *none = Some(Vec::new());
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> Status {
    in_context(|driver| {
        let captured = driver.stream(stream)?.captured.take().ok_or(INVALID_VALUE)?;
        let handle = driver.handle();
        driver.graphs.insert(handle, Arc::new(captured));
        unsafe { put_handle(graph, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut Handle,
    graph: Handle,
    _: c_ulonglong,
) -> Status {
    in_context(|driver| {
        let launches = driver.graphs.get(&graph.addr()).ok_or(INVALID_HANDLE)?.clone();
        let handle = driver.handle();
        driver.graphs.insert(handle, launches);
        unsafe { put_handle(executable, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(graph: Handle, stream: Handle) -> Status {
    in_context(|driver| {
        let launches = driver.graphs.get(&graph.addr()).ok_or(INVALID_HANDLE)?.clone();
        let is_last = driver.device.is_last_pass();
        let work = Work::Graph(if is_last { None } else { Some(launches) });
        driver.stream(stream)?.work.push(work);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(graph: Handle) -> Status {
    answer(|driver| driver.graphs.remove(&graph.addr()).map(drop).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    unsafe { cuGraphExecDestroy(graph) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    element: c_int,
    rank: u32,
    matrix: *mut c_void,
    size: *const [u64; 2],
    row_bytes: *const u64,
    box_size: *const [u32; 2],
    steps: *const [u32; 2],
    interleave: c_int,
    swizzle: c_int,
    _: c_int,
    fill: c_int,
) -> Status {
    in_context(|driver| {
        let ([stride, num_rows], row_bytes, [box_columns, box_rows]) =
            unsafe { (size.read(), row_bytes.read(), box_size.read()) };
        let dtype = device::dtype(element).ok_or(INVALID_VALUE)?;
        let is_plain =
            rank == 2 && interleave == 0 && fill == 0 && unsafe { steps.read() } == [1, 1];
        let is_box = (1..=256).contains(&box_rows) && box_columns == Boxes::COLUMNS;
        let is_row = row_bytes == stride * 2 && row_bytes.is_multiple_of(16);
        let num_bytes = usize::try_from(row_bytes * num_rows).map_err(|_| INVALID_VALUE)?;
        let matrix = Address(matrix.expose_provenance() as u64);
        let is_there = matrix.0.is_multiple_of(16) && driver.memory.holds(matrix, num_bytes);
        if !is_plain || !is_box || !is_row || !is_there || swizzle != device::SWIZZLE_128B {
            eprintln!("emulated driver: boxes that cannot be copied");
            return Err(INVALID_VALUE);
        }
        let fits = |size: u64| u32::try_from(size).map_err(|_| INVALID_VALUE);
        let (num_rows, stride) = (fits(num_rows)?, fits(stride)?);
        let boxes = Boxes { matrix, num_rows, stride, dtype, box_rows };
        unsafe { put(map, tensor_map(&boxes).0) }
    })
}
