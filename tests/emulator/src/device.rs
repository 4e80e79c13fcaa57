use std::{
    slice,
    sync::{Arc, Mutex},
};

use engine_gpu::{
    AllocatedBytes, Device, DeviceError,
    kernel::{Address, Boxes, Launch, TensorMap},
};

use crate::{Memory, run};

/// A device of which the kernels run on the CPU, when they are started. What it allocates is not a number,
/// and what lies behind it may not be touched.
#[derive(Debug, Default)]
pub struct Emulated {
    /// Its own, and that of all others of the device.
    memory: Arc<Mutex<Memory>>,
    allocated_here: Vec<Address>,
    allocated: AllocatedBytes,
    variant: &'static str,
    seed: u64,
    is_old: bool,
}

impl Emulated {
    /// With kernels of which the names begin with `variant`: nothing, or the name of a
    /// [`Mutant`](crate::Mutant); and warps in an order that `seed` says.
    #[must_use]
    pub fn new(variant: &'static str, seed: u64) -> Self {
        let mut device = Self::default();
        (device.variant, device.seed) = (variant, seed);
        device
    }

    /// One without kernels of sm_90a.
    #[must_use]
    pub fn old() -> Self {
        let mut device = Self::default();
        device.is_old = true;
        device
    }

    /// # Panics
    ///
    /// If that is not memory which was allocated.
    fn check(&self, start: Address, num_bytes: usize) {
        let is_there = self.memory.lock().expect("no panic").holds(start, num_bytes);
        assert!(is_there, "{num_bytes} bytes at {start:?}");
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let mut memory = self.memory.lock().expect("no panic");
        for &address in &self.allocated_here {
            memory.free(address);
        }
    }
}

impl Device for Emulated {
    type Graph = Vec<Launch>;

    fn another(&self) -> Result<Self, DeviceError> {
        Ok(Self {
            memory: self.memory.clone(),
            allocated_here: Vec::new(),
            allocated: AllocatedBytes::default(),
            variant: self.variant,
            seed: self.seed,
            is_old: self.is_old,
        })
    }

    fn name(&self) -> &str {
        "emulator"
    }

    fn num_multiprocessors(&self) -> u32 {
        4
    }

    fn has_bf16(&self) -> bool {
        true
    }

    fn has_sm90(&self) -> bool {
        !self.is_old
    }

    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap, DeviceError> {
        Ok(tensor_map(boxes))
    }

    fn memory_bytes(&self) -> u64 {
        1 << 30
    }

    fn allocate(&mut self, num_bytes: usize) -> Result<Address, DeviceError> {
        let address = self.memory.lock().expect("no panic").allocate(num_bytes);
        self.allocated_here.push(address);
        self.allocated.add(num_bytes);
        Ok(address)
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check(to, bytes.len());
        // SAFETY: it lies in a buffer, and nobody has a reference to what is in it.
        let memory = unsafe { slice::from_raw_parts_mut(to.0 as *mut u8, bytes.len()) };
        memory.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.check(from, bytes.len());
        // SAFETY: as above.
        let memory = unsafe { slice::from_raw_parts(from.0 as *const u8, bytes.len()) };
        bytes.copy_from_slice(memory);
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.seed += 1;
        run(self.variant, launch, self.seed).map_err(Into::into)
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Vec<Launch>, DeviceError> {
        Ok(launches)
    }

    fn start(&mut self, graph: &Vec<Launch>) -> Result<(), DeviceError> {
        graph.iter().try_for_each(|launch| self.launch(launch))
    }
}

/// As the kernels read it in `sm90.h`.
#[must_use]
pub fn tensor_map(boxes: &Boxes) -> TensorMap {
    let Boxes { matrix, num_rows, stride, dtype, box_rows } = *boxes;
    let stride = u64::from(stride);
    let row_bytes = stride * dtype.num_bytes() as u64;
    let mut map = [0; 16];
    map[..5].copy_from_slice(&[matrix.0, num_rows.into(), stride, row_bytes, box_rows.into()]);
    TensorMap(map)
}
