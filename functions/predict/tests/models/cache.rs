//! What is fetched once and kept, whoever asks for it and however they end.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, thread, time::Duration};

use object_store::{Effect, Fault};

use crate::{
    function::{Running, eventually},
    model::{Model, WEIGHTS, int8},
    stored::{Stored, damage, range},
};

/// A server with the model, and a cache that has it.
fn with_cache(test: &str) -> Stored {
    let stored = Stored::with(test, int8());
    let function = stored.function().start();
    int8().must_answer(&function);
    stored.keeps(int8());
    function.stop();
    stored.server.clear_requests();
    stored
}

#[test]
fn a_second_start_reads_no_weights() {
    let stored = with_cache("second");
    int8().must_answer(&stored.function().start());
    assert_eq!(stored.reads("manifest.json").iter().filter(|read| read.status == 200).count(), 1);
    assert!(stored.reads("tokenizer.json").is_empty() && stored.reads(WEIGHTS).is_empty());
}

#[test]
fn a_pinned_model_in_the_cache_needs_no_request() {
    let stored = with_cache("offline");
    let pinned = format!("{}#sha256={}", stored.s3("models/m"), int8().sha256);
    int8().must_answer(&stored.function_at(&pinned).start());
    assert_eq!(stored.server.requests(), []);
}

#[test]
fn two_processes_fetch_each_byte_once() {
    let stored = Stored::with("together", int8());
    stored.server.set_bits_per_second(Some(200_000_000));
    let both = [stored.function().start(), stored.function().start()];
    both.iter().for_each(|function| int8().must_answer(function));

    let mut ranges: Vec<_> = stored.reads(WEIGHTS).iter().map(range).collect();
    ranges.sort_by_key(|range| range.start);
    let mut end = 0;
    for range in ranges {
        assert_eq!(range.start, end);
        end = range.end;
    }
    assert_eq!(end, int8().weights_bytes());
    assert_eq!(stored.reads("tokenizer.json").len(), 1);
}

#[test]
fn a_process_takes_over_what_another_one_did_not_end() {
    let stored = Stored::with("taken-over", int8());
    stored.server.fault(Fault::on(WEIGHTS, Effect::Stall { after_bytes: 0 }).after(9));
    let first = stored.function().start();
    eventually("it waits", || stored.reads(WEIGHTS).len() > 9);
    let second = stored.function().start();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(second.health().body["status"], "loading");
    first.kill();
    stored.server.clear_faults();
    int8().must_answer(&second);
}

#[test]
fn what_came_before_a_kill_is_not_fetched_again() {
    let stored = Stored::with("killed", int8());
    // Nine reads of 2 MiB come, the others wait.
    stored.server.fault(Fault::on(WEIGHTS, Effect::Stall { after_bytes: 0 }).after(9));
    let function = stored.function().start();
    eventually("nine reads are done", || {
        stored.reads(WEIGHTS).iter().filter(|read| read.bytes_sent == 2 << 20).count() == 9
    });
    // What was sent is soon written.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(function.health().body["status"], "loading");
    function.kill();
    assert_eq!(stored.kept(), [format!(".{}.partial", int8().sha256)]);

    stored.server.clear_faults();
    stored.server.clear_requests();
    int8().must_answer(&stored.function().start());
    // The tensor that the last of them ends in comes again, and so do those behind it.
    let (sent, missing) = (stored.weights_sent(), int8().weights_bytes() - 9 * (2 << 20));
    assert!((missing..missing + (6 << 20)).contains(&sent), "{sent} bytes for {missing}");
}

#[test]
fn kills_at_any_time_leave_a_cache_that_answers() {
    let stored = Stored::with("killed-often", int8());
    stored.server.set_bits_per_second(Some(160_000_000));
    for millis in [0, 10, 100, 300, 500, 900] {
        let function = stored.function().start();
        thread::sleep(Duration::from_millis(millis));
        function.kill();
    }
    stored.server.set_bits_per_second(None);
    let function = stored.function().start();
    int8().must_answer(&function);
    stored.keeps(int8());
}

#[test]
fn the_version_that_was_used_longest_ago_is_evicted() {
    let [first, second, third] = ["first", "second", "third"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("evicted", &[&first, &second, &third]);
    let limit = int8().weights_bytes() * 5 / 2;
    let function = stored.function().with("MAX_CACHE_BYTES", &limit.to_string());
    for version in [&first, &second, &first, &third] {
        stored.promote(version);
        let running = function.start();
        version.must_answer(&running);
        stored.keeps(version);
        running.stop();
    }
    let mut kept = [first, third].map(|version| version.sha256);
    kept.sort();
    eventually("the second is evicted", || stored.kept() == kept);
}

#[test]
fn no_version_that_is_used_is_evicted() {
    let [first, second, third] = ["one", "two", "three"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("used", &[&first, &second, &third]);
    let function = stored.function().with("MAX_CACHE_BYTES", "1");
    let start = |version: &Model| -> Running {
        stored.promote(version);
        let running = function.start();
        version.must_answer(&running);
        stored.keeps(version);
        running
    };
    let runs_first = start(&first);
    let runs_second = start(&second);
    runs_second.logged("the cache is over its limit; all of it is in use");
    first.must_answer(&runs_first);
    let mut kept = [&first, &second].map(|version| version.sha256.clone());
    kept.sort();
    assert_eq!(stored.kept(), kept);

    runs_second.stop();
    let _runs_third = start(&third);
    let mut kept = [&first, &third].map(|version| version.sha256.clone());
    kept.sort();
    eventually("the second is evicted", || stored.kept() == kept);
    first.must_answer(&runs_first);
}

#[test]
fn processes_share_the_pages_of_a_model() {
    let stored = with_cache("shared");
    let both = [stored.function().start(), stored.function().start()];
    both.iter().for_each(|function| int8().must_answer(function));
    for function in &both {
        let [resident, proportional] = ["Rss", "Pss"].map(|sum| function.memory(sum));
        // Layers are ten million bytes or more; each has half of them.
        assert!(
            proportional + (4 << 20) < resident,
            "{proportional} bytes of {resident} are its own share"
        );
        assert_eq!(function.num_mapped(WEIGHTS), 1);
    }
}

#[test]
fn files_of_the_cache_that_are_damaged_are_fetched_again() {
    type Damage = fn(PathBuf);
    let damages: [(&str, Damage); 5] = [
        ("a wrong byte of the tokenizer", |entry| damage(&entry.join("tokenizer.json"), 1000)),
        ("a tokenizer that is gone", |entry| {
            fs::remove_file(entry.join("tokenizer.json")).unwrap()
        }),
        ("weights cut short", |entry| {
            let weights = fs::File::options().write(true).open(entry.join(WEIGHTS)).unwrap();
            weights.set_len(1 << 20).unwrap();
        }),
        ("a broken manifest", |entry| fs::write(entry.join("manifest.json"), "{").unwrap()),
        ("nothing", |entry| {
            fs::remove_dir_all(&entry).and_then(|()| fs::create_dir(entry)).unwrap()
        }),
    ];
    let stored = with_cache("damaged");
    let pinned = format!("{}#sha256={}", stored.s3("models/m"), int8().sha256);
    for (case, damage) in damages {
        for uri in [&stored.s3("models/m"), &pinned] {
            damage(stored.entry(int8()));
            stored.server.clear_requests();
            let function = stored.function_at(uri).start();
            int8().must_answer(&function);
            assert_eq!(stored.weights_sent(), int8().weights_bytes(), "{case}");
            stored.keeps(int8());
            function.stop();
        }
    }
}

#[test]
fn a_manifest_of_the_cache_that_is_another_is_fetched_again() {
    let stored = with_cache("swapped-labels");
    let pinned = format!("{}#sha256={}", stored.s3("models/m"), int8().sha256);
    for uri in [&stored.s3("models/m"), &pinned] {
        let path = stored.entry(int8()).join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let swapped = text.replacen("NEGATIVE", "-", 1).replacen("POSITIVE", "NEGATIVE", 1);
        let swapped = swapped.replacen("\"-\"", "\"POSITIVE\"", 1);
        assert_ne!(swapped, text);
        fs::write(&path, swapped).unwrap();
        let function = stored.function_at(uri).start();
        int8().must_answer(&function);
        function.serves(int8().version());
        stored.keeps(int8());
        function.stop();
    }
}

#[test]
fn a_cache_that_others_could_write_is_not_trusted() {
    let stored = with_cache("writable");
    damage(&stored.entry(int8()).join(WEIGHTS), 1000);
    fs::set_permissions(stored.entry(int8()), fs::Permissions::from_mode(0o777)).unwrap();
    int8().must_answer(&stored.function().start());
    assert_eq!(stored.weights_sent(), int8().weights_bytes());
}
