use std::{error::Error, fmt};

use telemetry::METRICS;

use crate::kernel::{Address, Boxes, Launch, TensorMap};

/// What went wrong on a device.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// What runs kernels: a GPU, or what stands in for one in tests. All that is asked of it happens in order.
pub trait Device: fmt::Debug + Send + Sync + Sized + 'static {
    /// Launches that were prepared, to be started together.
    type Graph: fmt::Debug + Send;

    /// The same device once more: what is asked of the one and of the other happens in any order.
    ///
    /// # Errors
    ///
    /// If the device has failed, or has no room.
    fn another(&self) -> Result<Self, DeviceError>;

    /// As its maker calls it.
    fn name(&self) -> &str;

    /// How many blocks run at once, at least.
    fn num_multiprocessors(&self) -> u32;

    /// Whether there are kernels for bf16.
    fn has_bf16(&self) -> bool;

    /// Whether there are kernels of sm_90a.
    fn has_sm90(&self) -> bool;

    /// What a kernel of sm_90a needs to copy boxes of a matrix.
    ///
    /// # Errors
    ///
    /// If they are not as the device can copy them.
    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap, DeviceError>;

    /// Bytes of its memory.
    fn memory_bytes(&self) -> u64;

    /// Memory for as long as `self` lives, aligned to 16 bytes. It holds anything. Whoever is
    /// [`Device::another`] may use it, too.
    ///
    /// # Errors
    ///
    /// If there is none.
    fn allocate(&mut self, num_bytes: usize) -> Result<Address, DeviceError>;

    /// Copies `bytes` to the memory at `to`; they may change afterwards.
    ///
    /// # Errors
    ///
    /// If the device has failed.
    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Fills `bytes` from the memory at `from`, and waits for it.
    ///
    /// # Errors
    ///
    /// If the device has failed, now or in anything that was asked of it before.
    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Starts a kernel.
    ///
    /// # Errors
    ///
    /// If there is no such kernel, or the device has failed.
    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError>;

    /// Prepares `launches`.
    ///
    /// # Errors
    ///
    /// As [`Device::launch`].
    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Self::Graph, DeviceError>;

    /// Starts what was prepared.
    ///
    /// # Errors
    ///
    /// If the device has failed.
    fn start(&mut self, graph: &Self::Graph) -> Result<(), DeviceError>;
}

/// Bytes that a device has allocated, as [`METRICS`] count them while it lives.
#[derive(Debug, Default)]
pub struct AllocatedBytes(f64);

impl AllocatedBytes {
    /// Counts so many more.
    pub fn add(&mut self, num_bytes: usize) {
        self.0 += num_bytes as f64;
        METRICS.gpu_memory_allocated_bytes.with([]).add(num_bytes as f64);
    }
}

impl Drop for AllocatedBytes {
    fn drop(&mut self) {
        METRICS.gpu_memory_allocated_bytes.with([]).add(-self.0);
    }
}
