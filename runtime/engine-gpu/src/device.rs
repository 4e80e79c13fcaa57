use std::{error::Error, fmt};

use crate::kernel::{Address, Launch};

/// What went wrong on a device.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// What runs kernels: a GPU, or what stands in for one in tests. All that is asked of it happens in order.
pub trait Device: fmt::Debug + Send + 'static {
    /// Launches that were prepared, to be started together.
    type Graph: fmt::Debug + Send;

    /// As its maker calls it.
    fn name(&self) -> &str;

    /// How many blocks run at once, at least.
    fn num_multiprocessors(&self) -> u32;

    /// Whether there are kernels for bf16.
    fn has_bf16(&self) -> bool;

    /// Memory for as long as the device lives, aligned to 16 bytes. It holds anything.
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
