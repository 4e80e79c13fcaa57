//! Models that are replaced while they answer.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use object_store::{Effect, Fault};

use crate::{
    function::{Running, eventually},
    model::{Model, WEIGHTS, bf16, int8},
    stored::{Stored, damage},
};

/// Of `{}`: the name of a version that is none.
const EMPTY_SHA256: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// Runs `change` while requests come without a pause, each of which `versions` must answer; gives
/// how many there were.
fn under_requests(function: &Running, versions: [&Model; 2], change: impl FnOnce()) -> usize {
    let is_over = AtomicBool::new(false);
    let ask = || {
        let mut num_requests = 0;
        while !is_over.load(Ordering::Relaxed) {
            let text = ["good movie", "bad movie"][num_requests % 2];
            let answer = function.predict(text);
            let is_right = versions.iter().any(|version| version.gives(text, &answer.body));
            assert!(answer.status == 200 && is_right, "{answer:?}");
            num_requests += 1;
        }
        num_requests
    };
    thread::scope(|scope| {
        let asking = [scope.spawn(ask), scope.spawn(ask)];
        // Whatever goes wrong, the others stop.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change));
        is_over.store(true, Ordering::Relaxed);
        let num_requests = asking.map(|asking| asking.join().unwrap()).iter().sum();
        changed.unwrap();
        num_requests
    })
}

#[test]
fn a_promoted_version_takes_over_and_no_request_fails() {
    let stored = Stored::with_versions("promoted", &[int8(), bf16()]);
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    int8().must_answer(&function);
    function.serves(int8().version());
    let num_requests = under_requests(&function, [int8(), bf16()], || {
        stored.promote(bf16());
        function.serves(bf16().version());
        bf16().must_answer(&function);
    });
    assert!(num_requests > 10, "{num_requests} requests");
    eventually("the old weights are let go", || function.num_mapped(WEIGHTS) == 1);

    // And back, without reading it again.
    stored.server.clear_requests();
    under_requests(&function, [int8(), bf16()], || {
        stored.promote(int8());
        function.serves(int8().version());
        int8().must_answer(&function);
    });
    assert!(stored.reads(WEIGHTS).is_empty());
    function.stop();
}

#[test]
fn a_version_that_is_bad_is_refused_and_the_old_one_goes_on() {
    let [old, flipped, next] = ["old", "flipped", "next"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("bad", &[&old, &flipped, &next]);
    damage(&stored.file("models/m").join(&flipped.sha256).join(WEIGHTS), 20_000_000);
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    old.must_answer(&function);

    stored.promote(&flipped);
    under_requests(&function, [&old, &old], || {
        let event = function.logged("no model");
        let error = event["exception"].as_str().unwrap();
        assert!(error.contains("tensor ") && error.contains(" is damaged: "), "{error}");
        function.logged("the version before goes on");
    });
    function.serves(old.version());
    // It is bad for good: nobody fetches it again and again.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(function.num_logged("no model"), 1);
    assert!(!stored.kept().iter().any(|kept| kept.contains(&flipped.sha256)));

    stored.promote(&next);
    function.serves(next.version());
    next.must_answer(&function);
}

#[test]
fn what_is_no_bundle_is_refused_and_the_old_one_goes_on() {
    let [old, next] = ["before", "after"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("no-bundle", &[&old, &next]);
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    old.must_answer(&function);

    stored.point_at(&"0".repeat(64));
    function.logged("no newer model is found");

    let folder = stored.file("models/m").join(EMPTY_SHA256);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("manifest.json"), "{}").unwrap();
    stored.point_at(EMPTY_SHA256);
    function.logged("the version before goes on");
    let latest = stored.file("models/m/latest");
    fs::write(&latest, "{").unwrap();
    let num_before = function.num_logged("no newer model is found");
    eventually("the pointer is refused", || {
        function.num_logged("no newer model is found") > num_before
    });
    function.serves(old.version());
    old.must_answer(&function);

    stored.promote(&next);
    function.serves(next.version());
    next.must_answer(&function);
}

#[test]
fn a_signal_looks_for_a_newer_version() {
    let [old, flipped, next] = ["sig-old", "sig-bad", "sig-new"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("signal", &[&old, &flipped, &next]);
    damage(&stored.file("models/m").join(&flipped.sha256).join(WEIGHTS), 1_000_000);
    let function = stored.function().with("MODEL_RELOAD", "sighup").start();
    old.must_answer(&function);

    stored.promote(&flipped);
    function.hang_up();
    function.logged("the version before goes on");
    old.must_answer(&function);

    stored.promote(&next);
    stored.server.clear_requests();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(stored.server.requests(), [], "nobody asked for it");
    function.serves(old.version());
    under_requests(&function, [&old, &next], || {
        function.hang_up();
        function.serves(next.version());
    });
    next.must_answer(&function);
}

#[test]
fn a_signal_while_the_model_loads_is_not_lost() {
    let [old, next] = ["early-old", "early-new"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("early-signal", &[&old, &next]);
    stored.server.set_bits_per_second(Some(100_000_000));
    let function = stored.function().with("MODEL_RELOAD", "sighup").start();
    eventually("weights arrive", || !stored.reads(WEIGHTS).is_empty());
    stored.promote(&next);
    function.hang_up();
    stored.server.set_bits_per_second(None);
    function.serves(next.version());
    next.must_answer(&function);
}

#[test]
fn a_model_that_appears_heals_a_function_without_one() {
    let stored = Stored::nothing("appears");
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    function.refuses();
    let started = Instant::now();
    int8().put(&stored.file("models/m"));
    function.serves(int8().version());
    int8().must_answer(&function);
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Weights that never arrive.
fn cut() -> Fault {
    Fault::on(WEIGHTS, Effect::Cut { after_bytes: 0 })
}

#[test]
fn weights_that_did_not_arrive_at_the_start_are_tried_again() {
    let stored = Stored::with("heals", int8());
    stored.server.fault(cut());
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    let error = function.refuses();
    assert!(error.contains("cannot transfer s3://models/m/weights.bin: "), "{error}");
    stored.server.clear_faults();
    function.serves(int8().version());
    int8().must_answer(&function);
}

#[test]
fn weights_of_a_newer_version_that_did_not_arrive_are_tried_again() {
    let [old, next] = ["reached", "unreached"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("heals-later", &[&old, &next]);
    let function = stored.function().with("MODEL_RELOAD", "poll:1s").start();
    old.must_answer(&function);
    stored.server.fault(cut());
    stored.promote(&next);
    function.logged("the version before goes on");
    old.must_answer(&function);
    stored.server.clear_faults();
    function.serves(next.version());
    next.must_answer(&function);
}

#[test]
fn a_folder_of_versions_is_followed() {
    let [old, next] = ["folder-old", "folder-new"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("folder", &[&old, &next]);
    let folder = stored.file("models/m").to_str().unwrap().to_owned();
    let function = stored.function_at(&folder).with("MODEL_RELOAD", "poll:1s").start();
    old.must_answer(&function);
    stored.promote(&next);
    function.serves(next.version());
    next.must_answer(&function);
    assert_eq!(stored.server.requests(), []);
}

#[test]
fn a_function_that_does_not_reload_keeps_its_version() {
    let [old, next] = ["kept-old", "kept-new"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("off", &[&old, &next]);
    let function = stored.function().start();
    old.must_answer(&function);
    stored.promote(&next);
    stored.server.clear_requests();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(stored.server.requests(), []);
    function.serves(old.version());
}
