//! Every kernel computes what its answer key does.

use emulator::{
    Emulated,
    cases::{self, Case},
    check::Form,
};
use engine_gpu::kernel::{Tile, WideTile};

fn pass(cases: Vec<Case<Emulated>>) {
    for (seed, case) in (0..).zip(cases) {
        let outcome = (case.check)(Emulated::new("", seed)).map_err(|error| error.to_string());
        assert_eq!(outcome, Ok(()), "{}", case.name);
    }
}

#[test]
fn norm_of_each_row() {
    pass(cases::norm());
}

#[test]
fn embeddings_are_sums_of_rows_normalized() {
    pass(cases::embeddings());
}

#[test]
fn linear_by_large_tiles() {
    pass(cases::linear(Form::Any(Tile::Large)));
}

#[test]
fn linear_by_medium_tiles() {
    pass(cases::linear(Form::Any(Tile::Medium)));
}

#[test]
fn linear_by_small_tiles() {
    pass(cases::linear(Form::Any(Tile::Small)));
}

#[test]
fn linear_of_sm90_by_256_columns() {
    pass(cases::linear(Form::Wide(WideTile::Columns256)));
}

#[test]
fn linear_of_sm90_by_192_columns() {
    pass(cases::linear(Form::Wide(WideTile::Columns192)));
}

#[test]
fn attention_of_heads_up_to_32() {
    pass(cases::attention(32));
}

#[test]
fn attention_of_heads_up_to_64() {
    pass(cases::attention(64));
}

#[test]
fn attention_of_heads_up_to_96() {
    pass(cases::attention(96));
}

#[test]
fn attention_of_heads_up_to_128() {
    pass(cases::attention(128));
}

#[test]
fn each_sequence_is_pooled_by_itself() {
    pass(cases::pool());
}

#[test]
fn weights_are_unpacked_to_the_last_bit() {
    pass(cases::unpack());
}
