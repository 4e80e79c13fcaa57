//! Checks see mistakes: of each kind, one is made on purpose.

use emulator::{
    Emulated, MUTANTS, Mutant,
    check::{self, Form},
};
use engine::Pooling;
use engine_gpu::{
    DeviceError,
    kernel::{Tile, WideTile},
};
use half::f16;

/// What is checked of a kernel with a mistake: less than of one without.
fn check(mutant: &Mutant, seed: u64) -> Result<(), DeviceError> {
    let device = &mut Emulated::new(mutant.name, seed);
    match mutant.kernels {
        "norm" => check::norm::<f16>(device, 5, 40, seed),
        "embeddings" => check::embeddings::<f16>(device, 5, 40, seed),
        "linear" => Tile::ALL.into_iter().try_for_each(|tile| {
            check::linear::<f16>(device, Form::Any(tile), 20, [300, 64], seed)
        }),
        "sm90_linear" => {
            let form = Form::Wide(WideTile::Columns256);
            check::linear::<f16>(device, form, 150, [400, 300], seed)
        }
        "attention" => check::attention::<f16>(device, &[20, 150], 2, 64, seed),
        "pool" => check::pool::<f16>(device, &[3, 1], 40, Pooling::Mean, seed),
        other => Err(format!("nothing is checked of {other}").into()),
    }
}

/// What the check says, which is nothing if it passes.
fn said(mutant: &Mutant, seed: u64) -> Option<String> {
    check(mutant, seed).err().map(|error| error.to_string())
}

#[test]
fn every_mistake_is_found() {
    for mutant in &MUTANTS {
        let found = (0..5).find_map(|seed| said(mutant, seed)).unwrap_or_default();
        assert!(found.contains(mutant.seen_as), "\"{}\": \"{found}\"", mutant.name);
    }
}

#[test]
fn without_a_mistake_the_same_checks_pass() {
    for mutant in &MUTANTS {
        for seed in 0..5 {
            let plain = Mutant { name: "", ..*mutant };
            assert_eq!(said(&plain, seed), None, "{}", mutant.kernels);
        }
    }
}
