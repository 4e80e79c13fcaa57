//! The kernels as they are on board, for each architecture. `kernels/compile.py` makes them.

use std::io::{self, Read};

use flate2::read::GzDecoder;

/// Compiled kernels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) architecture: &'static str,
    /// The compute capability that they are for.
    capability: (i32, i32),
    runs_on: RunsOn,
    compressed: &'static [u8],
}

/// What code for one compute capability runs on.
#[derive(Debug, PartialEq, Eq)]
enum RunsOn {
    /// That alone.
    Same,
    /// Later ones as well, with the same number before the dot.
    Major,
    /// All later ones: the driver compiles it.
    Later,
}

/// All of them, as an error lists them.
pub(crate) const NAMES: &str = "sm_75, sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120, and compute_75 by the \
                                driver's compiler";

macro_rules! images {
    ($($architecture:literal $extension:literal $capability:tt $runs_on:ident,)*) => {
        &[$(Image {
            architecture: $architecture,
            capability: $capability,
            runs_on: RunsOn::$runs_on,
            compressed: include_bytes!(
                concat!("../kernels/compiled/", $architecture, $extension, ".gz")
            ),
        },)*]
    };
}

/// Best first.
static IMAGES: &[Image] = images! {
    "sm_120" ".cubin" (12, 0) Major,
    "sm_100a" ".cubin" (10, 0) Same,
    "sm_90a" ".cubin" (9, 0) Same,
    "sm_89" ".cubin" (8, 9) Major,
    "sm_86" ".cubin" (8, 6) Major,
    "sm_80" ".cubin" (8, 0) Major,
    "sm_75" ".cubin" (7, 5) Major,
    "compute_75" ".ptx" (7, 5) Later,
};

impl Image {
    /// The best for a GPU of `capability`.
    pub(crate) fn choose(capability: (i32, i32)) -> Option<&'static Self> {
        IMAGES.iter().find(|image| match image.runs_on {
            RunsOn::Same => capability == image.capability,
            RunsOn::Major => capability.0 == image.capability.0 && capability >= image.capability,
            RunsOn::Later => capability >= image.capability,
        })
    }

    /// The code, with a zero behind it, as the driver wants PTX to end.
    pub(crate) fn unpack(&self) -> io::Result<Vec<u8>> {
        let mut code = Vec::new();
        GzDecoder::new(self.compressed).read_to_end(&mut code)?;
        code.push(0);
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_gets_the_best_that_runs_on_it() {
        let of = |capability| Image::choose(capability).map(|image| image.architecture);
        let cases = [
            ((7, 0), None),
            ((7, 5), Some("sm_75")),
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_86")),
            ((8, 7), Some("sm_86")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("sm_100a")),
            ((10, 3), Some("compute_75")),
            ((11, 0), Some("compute_75")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((13, 0), Some("compute_75")),
        ];
        for (capability, expected) in cases {
            assert_eq!(of(capability), expected, "{capability:?}");
        }
    }

    #[test]
    fn all_on_board_can_be_unpacked_and_are_listed() {
        for image in IMAGES {
            let code = image.unpack().unwrap();
            let is_ptx = image.runs_on == RunsOn::Later;
            let starts =
                if is_ptx { code.starts_with(b"//") } else { code.starts_with(b"\x7fELF") };
            assert!(starts, "{}", image.architecture);
            assert!(NAMES.contains(image.architecture));
        }
    }
}
