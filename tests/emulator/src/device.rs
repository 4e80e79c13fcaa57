use std::slice;

use engine_gpu::{
    Device, DeviceError,
    kernel::{Address, Launch},
};

use crate::{buffer::Buffer, run};

/// A device of which the kernels run on the CPU, when they are started. What it allocates is not a number,
/// and what lies behind it may not be touched.
#[derive(Debug, Default)]
pub struct Emulated {
    memory: Vec<Buffer>,
    variant: &'static str,
    seed: u64,
    /// How many graphs it starts before it is lost.
    num_starts_left: Option<u32>,
}

impl Emulated {
    /// With kernels of which the names begin with `variant`: nothing, or the name of a
    /// [`Mutant`](crate::Mutant); and warps in an order that `seed` says.
    #[must_use]
    pub fn new(variant: &'static str, seed: u64) -> Self {
        Self { variant, seed, ..Self::default() }
    }

    /// One that is lost when it has started so many graphs.
    #[must_use]
    pub fn lost_after(num_starts: u32) -> Self {
        Self { num_starts_left: Some(num_starts), ..Self::default() }
    }

    /// # Panics
    ///
    /// If that is not memory which was allocated.
    fn check(&self, start: Address, num_bytes: usize) {
        let end = start.behind(num_bytes).0;
        let holds = |buffer: &Buffer| {
            let first = buffer.address();
            first.0 <= start.0 && end <= first.behind(buffer.len).0
        };
        assert!(self.memory.iter().any(holds), "{num_bytes} bytes at {start:?}");
    }
}

impl Device for Emulated {
    type Graph = Vec<Launch>;

    fn name(&self) -> &str {
        "emulator"
    }

    fn num_multiprocessors(&self) -> u32 {
        4
    }

    fn has_bf16(&self) -> bool {
        true
    }

    fn allocate(&mut self, num_bytes: usize) -> Result<Address, DeviceError> {
        let buffer = Buffer::new(num_bytes);
        let address = buffer.address();
        self.memory.push(buffer);
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
        if let Some(left) = &mut self.num_starts_left {
            *left = left.checked_sub(1).ok_or("an emulated fault")?;
        }
        graph.iter().try_for_each(|launch| self.launch(launch))
    }
}
