//! Requests while the model is on its way.

use std::{thread, time::Duration};

use crate::{
    function::eventually,
    model::{WEIGHTS, int8},
    stored::Stored,
};

/// A server that sends the weights in some two seconds.
fn slow(test: &str) -> Stored {
    let stored = Stored::with(test, int8());
    stored.server.set_bits_per_second(Some(100_000_000));
    stored
}

#[test]
fn a_request_waits_for_the_model() {
    let stored = slow("waits");
    let function = stored.function().start();
    let health = function.health();
    assert_eq!((health.status, health.header("retry-after")), (503, Some("1")));
    assert_eq!(health.body["status"], "loading");
    int8().must_answer(&function);
    assert_eq!(function.health().status, 200);
}

#[test]
fn a_request_that_cannot_wait_is_told_to_come_back() {
    let stored = slow("comes-back");
    let function = stored.function().with("REQUEST_TIMEOUT_MS", "200").start();
    let answer = function.predict("good movie");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.body["error"]["code"], "loading");
    eventually("it is healthy", || function.health().status == 200);
    int8().must_answer(&function);
}

/// When the stage began and ended, in milliseconds since the process began.
fn stage(timing: &str, name: &str) -> (f64, f64) {
    let stages = timing.split(", ").map(|stage| stage.split(';').collect::<Vec<_>>());
    let mut stages = stages.filter(|stage| stage[0] == name);
    let number = |part: &str, key: &str| part.strip_prefix(key).unwrap().parse::<f64>().unwrap();
    let stage = stages.next().unwrap_or_else(|| panic!("no {name} in {timing}"));
    let [duration, start] = [number(stage[1], "dur="), number(stage[2], "start=")];
    (start, start + duration)
}

#[test]
fn the_first_layers_run_while_others_arrive() {
    let stored = slow("overlap");
    let function = stored.function().start();
    eventually("it is healthy", || function.health().status == 200);
    // The first answer to a text tells of the start; all of it is over by now.
    thread::sleep(Duration::from_millis(100));
    let answer = function.predict("good movie");
    assert_eq!(answer.status, 200);
    let timing = &answer.headers("server-timing").join(", ");
    let [warm_up, weights] = ["warm_up", "weights"].map(|name| stage(timing, name));
    assert!(warm_up.0 < (weights.0 + weights.1) / 2.0, "{timing}");
    let (bundle, engine) = (stage(timing, "bundle"), stage(timing, "engine"));
    assert!(bundle.1 < weights.1 && engine.1 < weights.1, "{timing}");
    let later = function.predict("bad movie").headers("server-timing").join(", ");
    assert!(later.contains("forward;dur=") && !later.contains("warm_up"), "{later}");
}

#[test]
fn a_process_that_is_stopped_while_it_loads_ends() {
    let stored = slow("stopped");
    let function = stored.function().start();
    eventually("weights arrive", || !stored.reads(WEIGHTS).is_empty());
    function.stop();
}
