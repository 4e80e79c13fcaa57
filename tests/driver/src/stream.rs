//! What is asked of a stream, and how it is done.

use std::{ptr, sync::Arc};

use engine_gpu::kernel::Launch;

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) work: Vec<Work>,
    /// Of the graph that is made of what is asked for, if one is.
    pub(crate) captured: Option<Vec<Launch>>,
}

pub(crate) enum Work {
    ToDevice {
        from: usize,
        to: u64,
        num_bytes: usize,
    },
    ToHost {
        from: u64,
        to: usize,
        num_bytes: usize,
    },
    Launch(Launch),
    /// None is a fault that was asked for.
    Graph(Option<Arc<Vec<Launch>>>),
}

impl Work {
    /// Its memory has to be there still. Fails with the reason, which is nothing if that was asked for.
    pub(crate) unsafe fn run(self) -> Result<(), String> {
        match self {
            Self::ToDevice { from, to, num_bytes } => unsafe { copy(from as u64, to, num_bytes) },
            Self::ToHost { from, to, num_bytes } => unsafe { copy(from, to as u64, num_bytes) },
            Self::Launch(launch) => emulator::run("", &launch, 0)?,
            Self::Graph(Some(launches)) => {
                launches
                    .iter()
                    .zip(0..)
                    .try_for_each(|(launch, seed)| emulator::run("", launch, seed))?;
            }
            Self::Graph(None) => return Err(String::new()),
        }
        Ok(())
    }
}

unsafe fn copy(from: u64, to: u64, num_bytes: usize) {
    let (from, to) = (from as usize, to as usize);
    let from = ptr::with_exposed_provenance::<u8>(from);
    unsafe { ptr::copy(from, ptr::with_exposed_provenance_mut(to), num_bytes) };
}
