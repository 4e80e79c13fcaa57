//! Checks see mistakes: of each kind, one is made on purpose.

use engine::Pooling;
use engine_gpu::kernel::Tile;
use half::f16;
use sanderling_emulator::{MUTANTS, Mutant, check};

/// What is checked of a kernel with a mistake: less than of one without.
fn check(mutant: &Mutant, seed: u64) -> Result<(), String> {
    let variant = mutant.name;
    match mutant.kernels {
        "norm" => check::norm::<f16>(variant, 5, 40, seed),
        "embeddings" => check::embeddings::<f16>(variant, 5, 40, seed),
        "linear" => Tile::ALL
            .into_iter()
            .try_for_each(|tile| check::linear::<f16>(variant, tile, 20, [300, 64], seed)),
        "attention" => check::attention::<f16>(variant, &[20, 150], 2, 64, seed),
        "pool" => check::pool::<f16>(variant, &[3, 1], 40, Pooling::Mean, seed),
        other => Err(format!("nothing is checked of {other}")),
    }
}

#[test]
fn every_mistake_is_found() {
    for mutant in &MUTANTS {
        let found = (0..5).find_map(|seed| check(mutant, seed).err()).unwrap_or_default();
        assert!(found.contains(mutant.seen_as), "\"{}\": \"{found}\"", mutant.name);
    }
}

#[test]
fn without_a_mistake_the_same_checks_pass() {
    for mutant in &MUTANTS {
        for seed in 0..5 {
            let plain = Mutant { name: "", ..*mutant };
            assert_eq!(check(&plain, seed), Ok(()), "{}", mutant.kernels);
        }
    }
}
