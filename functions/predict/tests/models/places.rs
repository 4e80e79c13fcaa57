//! Where models come from and go to: hubs, web servers, disks that are full or only read.

use std::fs;

use object_store::{Effect, Fault};

use crate::{
    function::eventually,
    model::{EXPORT, WEIGHTS, int8},
    stored::Stored,
};

const EXPORTED: [&str; 3] = ["model.onnx", "tokenizer.json", "config.json"];

/// A server with the export at `org/<place>`.
fn exported(test: &str, place: &str) -> Stored {
    let stored = Stored::nothing(test);
    let folder = stored.file("org").join(place);
    fs::create_dir_all(&folder).unwrap();
    for file in EXPORTED {
        fs::copy(format!("{EXPORT}/{file}"), folder.join(file)).unwrap();
    }
    stored
}

#[test]
fn a_model_of_the_hub_is_found_behind_redirects() {
    let stored = exported("hub", "name/resolve/main");
    let resolved = stored.file("org/name/resolve/main");
    fs::create_dir_all(stored.file("org/blobs")).unwrap();
    fs::rename(resolved.join("model.onnx"), stored.file("org/blobs/onnx")).unwrap();
    for method in ["GET", "HEAD"] {
        let to = "/org/blobs/onnx".to_owned();
        let redirect = Fault::on("main/model.onnx", Effect::Redirect { to });
        stored.server.fault(redirect.method(method));
    }
    let endpoint = stored.server.endpoint();
    let function = stored.function_at("hf://org/name").with("HF_ENDPOINT", endpoint);
    let first = function.start();
    int8().must_answer(&first);
    first.stop();

    // What was fetched is not fetched again.
    stored.server.clear_requests();
    int8().must_answer(&function.start());
    let sent: u64 = stored.reads("").iter().map(|request| request.bytes_sent).sum();
    assert!(sent < 10_000, "{sent} bytes");
}

#[test]
fn an_export_that_is_replaced_is_fetched_again() {
    let stored = exported("replaced-export", "m");
    let function = stored.function_at(&stored.s3("org/m"));
    let old = function.start();
    int8().must_answer(&old);
    let config = stored.file("org/m/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let swapped = text.replace("\"0\": \"NEGATIVE\"", "\"0\": \"BAD\"");
    assert_ne!(swapped, text);
    fs::write(config, swapped).unwrap();
    let new = function.start();
    assert_eq!(new.predict("bad movie").body[0]["label"], "BAD");
    int8().must_answer(&old);
}

#[test]
fn a_web_server_needs_no_ranges() {
    let stored = Stored::nothing("web");
    int8().put(&stored.file("org/m"));
    let uri = format!("{}/org/m", stored.server.endpoint());
    let ignore = || Fault::on(WEIGHTS, Effect::IgnoreRange);
    let cut = || Fault::on(WEIGHTS, Effect::Cut { after_bytes: 900_000 }).first(2);
    let cases = [
        ("ranges", vec![]),
        ("ranges, cut", vec![cut()]),
        ("no ranges", vec![ignore()]),
        ("no ranges, cut", vec![ignore(), cut()]),
    ];
    for (case, faults) in cases {
        stored.server.clear_faults();
        faults.into_iter().for_each(|fault| stored.server.fault(fault));
        let cache = stored.path().join(case);
        let function = stored.function_at(&uri).with("CACHE_DIR", cache.to_str().unwrap());
        let function = function.start();
        int8().must_answer(&function);
        eventually(case, || cache.join(&int8().sha256).exists());
        int8().must_be_in(&cache.join(&int8().sha256));
    }
}

#[test]
fn a_web_server_that_ignores_some_ranges_is_an_error_or_nothing() {
    let stored = Stored::nothing("some-ranges");
    int8().put(&stored.file("org/m"));
    stored.server.fault(Fault::on(WEIGHTS, Effect::IgnoreRange).after(3).first(2));
    let uri = format!("{}/org/m", stored.server.endpoint());
    let function = stored.function_at(&uri).start();
    if function.predict("good movie").status == 200 {
        int8().must_answer(&function);
    } else {
        let error = function.refuses();
        let expected = format!("cannot transfer {uri}/weights.bin: ");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_pinned_version_is_served_whatever_is_the_latest() {
    let [pinned, latest] = ["pinned", "latest"].map(|name| int8().renamed(name));
    let stored = Stored::with_versions("pinned-version", &[&latest, &pinned]);
    let folder = stored.file("models/m").to_str().unwrap().to_owned();
    for place in [stored.s3("models/m"), folder] {
        let function = stored.function_at(&format!("{place}#sha256={}", pinned.sha256)).start();
        function.serves(pinned.version());
        pinned.must_answer(&function);
    }
}

/// Commands that mount a disk of so many bytes on the cache folder of `stored`.
fn disk(stored: &Stored, bytes: u64) -> String {
    let cache = stored.cache();
    fs::create_dir_all(&cache).unwrap();
    format!("mount -t tmpfs -o size={bytes} tmpfs {}", cache.display())
}

#[test]
fn a_full_disk_does_not_keep_a_bundle_from_answering() {
    let stored = Stored::with("full", int8());
    let weights_bytes = int8().weights_bytes();
    // Room for nothing, for less than the weights, and for them alone.
    for bytes in [4096, 8 << 20, weights_bytes.next_multiple_of(4096) + 64 * 1024] {
        let function = stored.function().after_mounts(disk(&stored, bytes)).start();
        int8().must_answer(&function);
        let on_disk = if bytes > weights_bytes { 0 } else { 1 };
        let moved = function.num_logged("the cache takes no more; the model stays in memory")
            + function.num_logged("the cache takes nothing; the model stays in memory");
        assert_eq!(moved, on_disk, "{bytes} bytes");
        assert_eq!(function.num_logged("no model"), 0);
        function.stop();
    }
}

#[test]
fn a_full_disk_is_an_error_for_an_export() {
    let stored = exported("full-export", "m");
    let function = stored.function_at(&stored.s3("org/m"));
    let error = function.after_mounts(disk(&stored, 8 << 20)).start().refuses();
    assert!(error.starts_with("cannot write "), "{error}");
    assert!(error.ends_with("No space left on device (os error 28)"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_keeps_no_bundle_from_answering() {
    let stored = Stored::with("no-cache", int8());
    fs::write(stored.path().join("file"), "").unwrap();
    let cache = stored.path().join("file/cache");
    let function = stored.function().with("CACHE_DIR", cache.to_str().unwrap()).start();
    int8().must_answer(&function);
    assert_eq!(function.num_logged("the cache takes nothing; the model stays in memory"), 1);
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_for_an_export() {
    let stored = exported("no-cache-export", "m");
    fs::write(stored.path().join("file"), "").unwrap();
    let cache = stored.path().join("file/cache");
    let function = stored.function_at(&stored.s3("org/m"));
    let error = function.with("CACHE_DIR", cache.to_str().unwrap()).start().refuses();
    assert!(error.starts_with("cannot write the cache's export-"), "{error}");
    assert!(error.ends_with("Not a directory (os error 20)"), "{error}");
}

#[test]
fn a_bundle_and_a_cache_that_are_only_read_answer() {
    let stored = Stored::with("read-only", int8());
    let folder = stored.file("models/m").display().to_string();
    let mounts =
        format!("mount --bind {folder} {folder}; mount -o remount,ro,bind {folder} {folder}");
    let function = stored.function_at(&folder).with("CACHE_DIR", &format!("{folder}/cache"));
    int8().must_answer(&function.clone().after_mounts(mounts.clone()).start());
    let pinned = function.with("MODEL_URI", &format!("{folder}#sha256={}", int8().sha256));
    int8().must_answer(&pinned.after_mounts(mounts).start());
}
