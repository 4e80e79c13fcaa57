//! What breaks on the way. The function answers rightly, or says what is wrong with which object.

use std::{fs, time::Duration};

use object_store::{Effect, Fault};

use crate::{
    function::eventually,
    model::{WEIGHTS, int8},
    stored::{Stored, range},
};

/// Bytes of a read.
const CHUNK_BYTES: u64 = 2 << 20;

/// Asserts that the function answers though weights arrive with `faults`.
fn answers_with(test: &str, faults: impl IntoIterator<Item = Fault>) -> Stored {
    let stored = Stored::with(test, int8());
    faults.into_iter().for_each(|fault| stored.server.fault(fault));
    let function = stored.function().start();
    int8().must_answer(&function);
    stored.keeps(int8());
    stored
}

/// Asserts that the function has no model when objects arrive with `fault`, and gives the reason.
fn refuses_with(test: &str, fault: Fault) -> (Stored, String) {
    let stored = Stored::with(test, int8());
    stored.server.fault(fault);
    let error = stored.function().start().refuses();
    (stored, error)
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_broke() {
    let cut = Fault::on(WEIGHTS, Effect::Cut { after_bytes: 300_000 }).first(6);
    let stored = answers_with("cut", [cut]);
    let within = |start| start % CHUNK_BYTES == 300_000;
    let resumed = stored.reads(WEIGHTS).iter().filter(|read| within(range(read).start)).count();
    assert_eq!(resumed, 6);
    assert_eq!(stored.weights_sent(), int8().weights_bytes());
}

#[test]
fn a_connection_that_always_breaks_is_an_error_that_names_the_object() {
    let (_stored, error) =
        refuses_with("cut-for-ever", Fault::on(WEIGHTS, Effect::Cut { after_bytes: 1000 }));
    assert!(error.contains("cannot transfer s3://models/m/weights.bin: "), "{error}");
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let faults = ["manifest.json", "tokenizer.json", WEIGHTS].map(|file| {
        [Effect::SlowDown, Effect::InternalError].map(|effect| Fault::on(file, effect).first(2))
    });
    let stored = answers_with("busy", faults.into_iter().flatten());
    let refused = |status| {
        let requests = stored.server.requests();
        requests.iter().filter(|request| request.status == status).count()
    };
    // Where both faults meet a request, the first of them answers.
    assert_eq!((refused(503), refused(500)), (6, 0));
}

#[test]
fn a_server_that_fails_now_and_then_is_asked_again() {
    let fault = |file, after| Fault::on(file, Effect::InternalError).after(after).first(2);
    answers_with("flaky", [fault("manifest.json", 0), fault(WEIGHTS, 3), fault(WEIGHTS, 10)]);
}

#[test]
fn a_server_that_is_always_busy_is_an_error_that_names_the_object() {
    let (_stored, error) = refuses_with("always-busy", Fault::on(WEIGHTS, Effect::SlowDown));
    let expected = "cannot transfer s3://models/m/weights.bin: 503 SlowDown: ";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn weights_that_drip_arrive() {
    let pause = Duration::from_millis(10);
    answers_with("drip", [Fault::on(WEIGHTS, Effect::Drip { bytes: 16 << 10, pause })]);
}

#[test]
fn a_stream_that_stalls_is_given_up_and_read_again() {
    let stall = Fault::on(WEIGHTS, Effect::Stall { after_bytes: 100_000 }).first(1);
    let stored = answers_with("stall", [stall]);
    let again = |start| start % CHUNK_BYTES == 100_000;
    assert_eq!(stored.reads(WEIGHTS).iter().filter(|read| again(range(read).start)).count(), 1);
}

#[test]
fn bodies_that_are_always_too_short_are_an_error_that_names_the_object() {
    for (file, reason) in [
        (WEIGHTS, "cannot transfer s3://models/m/weights.bin: the answer ended early"),
        ("tokenizer.json", "s3://models/m/tokenizer.json is damaged: "),
        ("manifest.json", "s3://models/m/manifest.json: EOF while parsing"),
    ] {
        let (_stored, error) =
            refuses_with("short", Fault::on(file, Effect::Shorten { by_bytes: 5000 }));
        assert!(error.contains(reason), "{file}: {error}");
    }
}

#[test]
fn a_wrong_byte_is_an_error_that_names_the_tensor_and_leaves_nothing() {
    for offset in [0, 13_000_001, int8().weights_bytes() - 1] {
        let (stored, error) =
            refuses_with("flipped", Fault::on(WEIGHTS, Effect::FlipBit { offset }));
        assert!(error.contains("tensor "), "{error}");
        assert!(error.contains(" is damaged: its sha256 is "), "{error}");
        eventually("the cache is empty", || stored.kept().is_empty());

        stored.server.clear_faults();
        int8().must_answer(&stored.function().start());
    }
}

#[test]
fn a_wrong_byte_elsewhere_is_an_error_that_names_the_object() {
    let fault = Fault::on("tokenizer.json", Effect::FlipBit { offset: 1000 });
    let (stored, error) = refuses_with("flipped-tokenizer", fault);
    assert!(error.contains("s3://models/m/tokenizer.json is damaged: "), "{error}");
    stored.server.clear_faults();
    int8().must_answer(&stored.function().start());
}

#[test]
fn an_object_that_is_replaced_while_it_is_read_is_an_error() {
    let same_size: Vec<u8> = int8().file(WEIGHTS).iter().map(|byte| !byte).collect();
    let shorter = same_size[..same_size.len() - 1].to_vec();
    for content in [same_size, shorter] {
        let stored = Stored::with("replaced", int8());
        // The last reads begin long after the first has its answer.
        stored.server.set_bits_per_second(Some(160_000_000));
        stored.server.fault(Fault::on(WEIGHTS, Effect::Replace { content }).first(1));
        let error = stored.function().start().refuses();
        let expected = "s3://models/m/weights.bin was replaced while it was read";
        assert!(error.contains(expected), "{error}");

        // What was read before is not mixed with what comes later.
        stored.server.set_bits_per_second(None);
        fs::write(stored.file("models/m").join(WEIGHTS), int8().file(WEIGHTS)).unwrap();
        int8().must_answer(&stored.function().start());
    }
}
