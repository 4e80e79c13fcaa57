//! `sanderling inspect`, `push`, `pull`, `promote` and `rollback`, as they are called, with folders
//! and a server that speaks S3.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod command;

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use command::{Folder, MODEL, files, run, sanderling};
use object_store::{Buckets, Effect, Fault, Options, Request, Server};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Sizes of the tensors of a bundle that takes several parts, and several reads.
const LARGE: [usize; 8] = [20 << 20, 5 << 20, 999_999, 6 << 20, 64, 7 << 20, 1 << 20, 3 << 20];
const SMALL: [usize; 2] = [100, 1000];

/// A server with the bucket `models`, which anyone may read, and a folder for the rest.
struct Fixture {
    server: Server,
    folder: Folder,
}

impl Fixture {
    fn start(test: &str) -> Self {
        let folder = Folder::new(test);
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("models")).unwrap();
        fs::create_dir_all(root.join("organization")).unwrap();
        let options = Options { public: Buckets::All, ..Options::default() };
        Self { server: Server::start(&root, options).unwrap(), folder }
    }

    fn s3(&self, prefix: &str) -> String {
        let endpoint = self.server.endpoint();
        format!("s3://models/{prefix}?endpoint={endpoint}&path_style=true")
    }

    /// Where the server has the files of `prefix`.
    fn stored(&self, prefix: &str) -> String {
        self.folder.join(&format!("root/models/{prefix}"))
    }

    /// What was asked of `weights.bin`, by method.
    fn requests(&self, method: &str) -> Vec<Request> {
        let mut requests = self.server.requests();
        requests
            .retain(|request| request.path.ends_with("/weights.bin") && request.method == method);
        requests
    }
}

/// Standard output of a command that must not fail.
fn succeed(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = run(&mut sanderling(arguments));
    assert_eq!((code, &*stderr), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

/// Standard error of a command that must fail with one line, and without its first word.
fn refusal(command: &mut Command) -> String {
    let (code, stdout, stderr) = run(command);
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().strip_prefix("error: ").unwrap().to_owned()
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a bundle with tensors of these sizes, and returns its version.
fn write_bundle(folder: &str, name: &str, sizes: &[usize]) -> String {
    let seed = name.bytes().fold(1_u64, |seed, byte| seed * 31 + u64::from(byte));
    let (mut weights, mut tensors, mut state) = (Vec::new(), Vec::new(), seed);
    for (index, &size) in sizes.iter().enumerate() {
        let offset = weights.len();
        while weights.len() < offset + size {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            weights.extend_from_slice(&state.to_le_bytes());
        }
        weights.truncate(offset + size);
        tensors.push(json!({
            "name": format!("layers.{index}"),
            "dtype": "f32",
            "shape": [size / 4],
            "offset": offset,
            "length": size,
            "sha256": sha256(&weights[offset..]),
        }));
        weights.resize(weights.len().next_multiple_of(64), 0);
    }
    let tokenizer = b"{}";
    let manifest = json!({
        "format": 1,
        "name": name,
        "source_sha256": "0".repeat(64),
        "precision": "f32",
        "labels": ["NEGATIVE", "POSITIVE"],
        "max_position_embeddings": 512,
        "weights_bytes": weights.len(),
        "files": {"tokenizer.json": sha256(tokenizer)},
        "encoder": {},
        "tensors": tensors,
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    fs::create_dir_all(folder).unwrap();
    let folder = Path::new(folder);
    fs::write(folder.join("weights.bin"), weights).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    fs::write(folder.join("manifest.json"), &manifest).unwrap();
    sha256(&manifest)
}

/// Changes a byte of a file.
fn damage(path: &str, offset: usize) {
    let mut content = fs::read(path).unwrap();
    content[offset] ^= 1;
    fs::write(path, content).unwrap();
}

/// Runs `arguments` on a server that answers `num_answers` requests for `weights.bin` and refuses the
/// others, and ends the command there; or lets it give up.
fn interrupt(
    fixture: &Fixture,
    method: &str,
    num_answers: usize,
    arguments: &[&str],
    is_killed: bool,
) {
    let fault = Fault::on("weights.bin", Effect::InternalError).method(method);
    fixture.server.fault(fault.after(num_answers as u64));
    let mut command = sanderling(arguments);
    if !is_killed {
        let error = refusal(&mut command);
        // The refusal, or, of what is still being sent when it comes, the closed connection.
        assert!(error.starts_with("cannot transfer s3://models/"), "{error}");
        assert!(error.contains("/weights.bin: "), "{error}");
        return;
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        let mut requests = fixture.requests(method);
        requests.retain(|request| request.end.is_some());
        let num_refused = requests.iter().filter(|request| request.status == 500).count();
        if num_refused > 0 && requests.len() - num_refused == num_answers {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{requests:?}");
        thread::sleep(Duration::from_millis(1));
    }
    // What is in the buffers of the sockets arrives, too.
    thread::sleep(Duration::from_millis(50));
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_packed_model_travels_there_and_back() {
    let fixture = Fixture::start("travel");
    let (uri, packed) = (fixture.s3("sst2"), fixture.folder.join("packed"));
    succeed(&["pack", MODEL, &packed]);
    let version = sha256(&fs::read(Path::new(&packed).join("manifest.json")).unwrap());

    let pushed = succeed(&["push", &packed, &uri]);
    assert_eq!(pushed, format!("{version}\n"));
    let promoted = succeed(&["promote", &uri, &version]);
    assert_eq!(promoted, format!("before  none\nlatest  {version}\n"));

    let report = succeed(&["inspect", &uri, "--verify"]);
    assert!(report.starts_with("name           minilm-l6-h384-sst2\n"), "{report}");
    for line in [
        &format!("version        {version}"),
        "precision      f32",
        "labels         NEGATIVE, POSITIVE",
        "max positions  512",
    ] {
        assert!(report.lines().any(|is| is == line), "{line}: {report}");
    }
    let last = report.lines().last().unwrap();
    assert!(last.starts_with("verified: 2 files and "), "{last}");

    // As the latest, as a version, as the bundle itself, and from a web server.
    let web = format!("{}/models/sst2", fixture.server.endpoint());
    let stored = fixture.stored("sst2");
    let pinned = format!("{uri}#sha256={version}");
    let itself = format!("{web}/{version}");
    for (index, uri) in [&uri, &pinned, &itself, &web, &stored].into_iter().enumerate() {
        let target = fixture.folder.join(&format!("pulled-{index}"));
        assert_eq!(succeed(&["pull", uri, &target]), format!("{version}\n"));
        assert!(files(&target) == files(&packed), "{uri}");
    }

    let target = fixture.folder.join("pulled-0");
    let error = refusal(&mut sanderling(&["pull", &uri, &target]));
    assert_eq!(error, format!("cannot write {target}: entity already exists"));
    let other = format!("{uri}#sha256={}", "0".repeat(64));
    let error = refusal(&mut sanderling(&["pull", &other, &fixture.folder.join("other")]));
    assert!(error.starts_with("there is no s3://models/sst2/"), "{error}");
}

#[test]
fn an_interrupted_push_sends_the_rest() {
    for is_killed in [false, true] {
        let fixture = Fixture::start(&format!("push-{is_killed}"));
        let (uri, folder) = (fixture.s3("large"), fixture.folder.join("large"));
        let version = write_bundle(&folder, "large", &LARGE);
        let parts = |requests: Vec<Request>, is_kept: bool| {
            let requests = requests.into_iter().filter(|request| !is_kept || request.status == 200);
            let pairs = requests.flat_map(|request| {
                let pairs = request.query.split('&').map(str::to_owned).collect::<Vec<_>>();
                pairs.into_iter().filter_map(|pair| pair.strip_prefix("partNumber=")?.parse().ok())
            });
            pairs.collect::<Vec<u32>>()
        };
        interrupt(&fixture, "PUT", 3, &["push", &folder, &uri], is_killed);
        assert!(!Path::new(&fixture.stored(&format!("large/{version}/manifest.json"))).exists());

        let kept = parts(fixture.requests("PUT"), true);
        assert_eq!(kept.len(), 3, "{kept:?}");
        fixture.server.clear_faults();
        fixture.server.clear_requests();
        assert_eq!(succeed(&["push", &folder, &uri]), format!("{version}\n"));
        let sent = parts(fixture.requests("PUT"), false);
        let all: BTreeSet<u32> = kept.iter().chain(&sent).copied().collect();
        assert_eq!((all.len(), all.last()), (kept.len() + sent.len(), Some(&6)), "{sent:?}");
        assert!(files(fixture.stored(&format!("large/{version}"))) == files(&folder));
        let requests = fixture.server.requests();
        let written = requests.iter().rfind(|request| request.method == "PUT").unwrap();
        assert!(written.path.ends_with("/manifest.json"), "{written:?}");

        fixture.server.clear_requests();
        let again = succeed(&["push", &folder, &uri]);
        assert_eq!(again, format!("{version}\nwas there already\n"));
        let requests = fixture.server.requests();
        assert!(requests.iter().all(|request| request.method == "GET"), "{requests:?}");
    }
}

#[test]
fn an_interrupted_pull_reads_the_rest() {
    for is_killed in [false, true] {
        let fixture = Fixture::start(&format!("pull-{is_killed}"));
        let (uri, folder) = (fixture.s3("large"), fixture.folder.join("large"));
        let version = write_bundle(&folder, "large", &LARGE);
        succeed(&["push", &folder, &uri, "--promote"]);

        let target = fixture.folder.join("pulled");
        interrupt(&fixture, "GET", 15, &["pull", &uri, &target], is_killed);
        assert!(!Path::new(&target).exists());

        // What is whole, though not in order, is kept.
        let partial = fs::read(fixture.folder.join(".pulled.partial/weights.bin")).unwrap();
        let manifest = fs::read(Path::new(&folder).join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let tensors = manifest["tensors"].as_array().unwrap().iter();
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let kept: Vec<Range<usize>> = tensors
            .map(|tensor| {
                let offset = number(&tensor["offset"]);
                (offset..offset + number(&tensor["length"]), tensor["sha256"].as_str().unwrap())
            })
            .filter(|(range, digest)| sha256(&partial[range.clone()]) == *digest)
            .map(|(range, _)| range)
            .collect();
        assert!((1..LARGE.len()).contains(&kept.len()), "{kept:?}");

        fixture.server.clear_faults();
        fixture.server.clear_requests();
        assert_eq!(succeed(&["pull", &uri, &target]), format!("{version}\n"));
        for request in fixture.requests("GET") {
            let range = request.range.unwrap();
            let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            let again = kept.iter().find(|kept| kept.start <= end && start < kept.end);
            assert_eq!(again, None, "{range}");
        }
        assert!(files(&target) == files(&folder));
        assert!(!Path::new(&fixture.folder.join(".pulled.partial")).exists());
    }
}

#[test]
fn a_pull_keeps_what_two_versions_have_in_common() {
    let fixture = Fixture::start("common");
    let (uri, folder) = (fixture.s3("large"), fixture.folder.join("large"));
    write_bundle(&folder, "large", &LARGE);
    let partial = fixture.folder.join(".pulled.partial");
    fs::create_dir(&partial).unwrap();
    fs::copy(format!("{folder}/weights.bin"), format!("{partial}/weights.bin")).unwrap();
    fs::write(format!("{partial}/graph.onnx"), "of another version").unwrap();
    damage(&format!("{partial}/weights.bin"), 0);

    succeed(&["push", &folder, &uri, "--promote"]);
    fixture.server.clear_requests();
    let target = fixture.folder.join("pulled");
    succeed(&["pull", &uri, &target]);
    assert!(files(&target) == files(&folder));
    let sent: u64 = fixture.requests("GET").iter().map(|request| request.bytes_sent).sum();
    assert_eq!(sent, LARGE[0] as u64);
}

#[test]
fn versions_are_promoted_and_rolled_back() {
    let fixture = Fixture::start("versions");
    let [first, second] = ["first", "second"].map(|name| {
        let folder = fixture.folder.join(name);
        (write_bundle(&folder, name, &SMALL), folder)
    });
    for uri in [fixture.s3("versions"), fixture.folder.join("versions")] {
        let uri = &*uri;
        let moved = |from: &str, to: &str| format!("before  {from}\nlatest  {to}\n");
        let latest = || {
            let report = succeed(&["inspect", uri]);
            let line = report.lines().find(|line| line.starts_with("version ")).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        let pushed = succeed(&["push", &first.1, uri, "--promote"]);
        assert_eq!(pushed, format!("{}\n{}", first.0, moved("none", &first.0)));
        succeed(&["push", &second.1, uri]);
        assert_eq!(latest(), first.0);
        assert_eq!(succeed(&["promote", uri, &second.0]), moved(&first.0, &second.0));
        assert_eq!(succeed(&["promote", uri, &second.0]), moved(&second.0, &second.0));
        assert_eq!(latest(), second.0);
        assert_eq!(succeed(&["rollback", uri]), moved(&second.0, &first.0));
        assert_eq!(latest(), first.0);

        let error = refusal(&mut sanderling(&["rollback", uri]));
        assert!(error.ends_with("/latest: there is no version before this one"), "{error}");
        let other = "0".repeat(64);
        let error = refusal(&mut sanderling(&["promote", uri, &other]));
        assert!(error.starts_with("there is no "), "{error}");
        assert!(error.ends_with(&format!("/{other}/manifest.json")), "{error}");
        assert_eq!(latest(), first.0);
    }
    let (code, _, stderr) = run(&mut sanderling(&["promote", "versions", &first.0[..12]]));
    assert_eq!(code, 2);
    assert!(stderr.contains("a version is 64 hexadecimal digits"), "{stderr}");
}

/// Promotes all of `versions` at the same time, and says of each whether it was.
fn promote_at_once(uri: &str, versions: [&str; 2]) -> [bool; 2] {
    let promotes = versions.map(|version| {
        let mut command = sanderling(&["promote", uri, version]);
        thread::spawn(move || run(&mut command))
    });
    promotes.map(|promote| {
        let (code, _, stderr) = promote.join().unwrap();
        assert!(
            code == 0 || stderr.ends_with("/latest was replaced while it was read\n"),
            "{stderr}"
        );
        code == 0
    })
}

#[test]
fn of_two_promotes_at_once_none_is_lost() {
    let fixture = Fixture::start("race");
    let [(old, old_folder), (first, first_folder), (second, second_folder)] =
        ["old", "first", "second"].map(|name| {
            let folder = fixture.folder.join(name);
            (write_bundle(&folder, name, &SMALL), folder)
        });
    let folders = [&*old_folder, &first_folder, &second_folder];
    for round in 0..5 {
        let name = format!("race-{round}");
        let uris = [fixture.s3(&name), fixture.folder.join(&name)];
        let pointers = [fixture.stored(&name), fixture.folder.join(&name)];
        for (uri, pointer) in uris.iter().zip(pointers) {
            for folder in folders {
                succeed(&["push", folder, uri]);
            }
            let outcomes = promote_at_once(uri, [&first, &second]);
            let pointer = fs::read(Path::new(&pointer).join("latest")).unwrap();
            let pointer: Value = serde_json::from_slice(&pointer).unwrap();
            let previous = pointer["previous"].as_array().unwrap().iter();
            let remembered: Vec<_> = previous.chain([&pointer["sha256"]]).collect();
            let are_there = [&first, &second].map(|version| remembered.contains(&&json!(version)));
            assert_eq!(are_there, outcomes);
        }
    }

    // Where the pointer comes slowly, both have read it before one of them writes it.
    let uri = fixture.s3("race-0");
    succeed(&["promote", &uri, &old]);
    let slowly = Effect::Drip { bytes: 1, pause: Duration::from_millis(5) };
    fixture.server.fault(Fault::on("/latest", slowly));
    let outcomes = promote_at_once(&uri, [&first, &second]);
    assert_eq!(outcomes.iter().filter(|is_done| **is_done).count(), 1);
}

#[test]
fn damage_is_found_and_named() {
    let fixture = Fixture::start("damage");
    let (uri, folder) = (fixture.s3("damaged"), fixture.folder.join("bundle"));
    let version = write_bundle(&folder, "damaged", &LARGE);
    succeed(&["push", &folder, &uri, "--promote"]);
    let verified = "\nverified: 2 files and 8 tensors have their digests\n";
    for place in [&uri, &folder] {
        assert!(succeed(&["inspect", place, "--verify"]).ends_with(verified));
    }

    let stored = fixture.stored(&format!("damaged/{version}"));
    damage(&format!("{stored}/weights.bin"), (20 << 20) + 5);
    damage(&format!("{folder}/weights.bin"), (20 << 20) + 5);
    for place in [&uri, &stored, &folder] {
        succeed(&["inspect", place]);
        let error = refusal(&mut sanderling(&["inspect", place, "--verify"]));
        assert!(error.starts_with("tensor layers.1 is damaged: its sha256 is "), "{error}");
    }
    let target = fixture.folder.join("pulled");
    let error = refusal(&mut sanderling(&["pull", &uri, &target]));
    assert!(error.starts_with("tensor layers.1 is damaged: "), "{error}");
    assert!(!Path::new(&target).exists());

    fixture.server.clear_requests();
    let error = refusal(&mut sanderling(&["push", &folder, &fixture.s3("other")]));
    assert!(error.starts_with("tensor layers.1 is damaged: "), "{error}");
    let requests = fixture.server.requests();
    assert!(requests.iter().all(|request| request.method == "GET"), "{requests:?}");

    damage(&format!("{stored}/tokenizer.json"), 0);
    let error = refusal(&mut sanderling(&["inspect", &uri, "--verify"]));
    assert!(error.contains("/tokenizer.json is damaged: "), "{error}");
    fs::write(format!("{stored}/weights.bin"), "short").unwrap();
    let error = refusal(&mut sanderling(&["inspect", &uri]));
    assert!(error.contains("/weights.bin: 5 bytes; the manifest says "), "{error}");
    damage(&format!("{stored}/manifest.json"), 0);
    let error = refusal(&mut sanderling(&["inspect", &uri]));
    assert!(error.contains("/manifest.json is damaged: "), "{error}");
}

#[test]
fn what_cannot_be_written_is_refused_in_a_line() {
    let fixture = Fixture::start("refused");
    let (uri, folder) = (fixture.s3("model"), fixture.folder.join("bundle"));
    let version = write_bundle(&folder, "bundle", &SMALL);
    for uri in ["http://127.0.0.1:1/model", "hf://organization/model"] {
        let expected = format!("cannot transfer {uri}: web servers and the hub are only read");
        assert_eq!(refusal(&mut sanderling(&["push", &folder, uri])), expected);
        assert_eq!(refusal(&mut sanderling(&["promote", uri, &version])), expected);
        assert_eq!(refusal(&mut sanderling(&["rollback", uri])), expected);
    }

    let wrong = |arguments: &[&str]| {
        refusal(sanderling(arguments).env("AWS_SECRET_ACCESS_KEY", "another-secret"))
    };
    let error = wrong(&["push", &folder, &uri]);
    let denied = format!("no permission for s3://models/model/{version}/tokenizer.json: 403 ");
    assert!(error.starts_with(&denied) && error.contains("SignatureDoesNotMatch"), "{error}");
    let error = wrong(&["inspect", &uri]);
    assert!(
        error.starts_with("no permission for s3://models/model/manifest.json: 403 "),
        "{error}"
    );
    let error = wrong(&["promote", &uri, &version]);
    assert!(error.starts_with("no permission for s3://models/model/"), "{error}");

    let mut without = sanderling(&["push", &folder, &uri]);
    without.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let error = refusal(&mut without);
    let expected = "/tokenizer.json: no variables, profile or role give credentials; a public \
                    bucket is read with anonymous=true";
    assert!(error.ends_with(expected), "{error}");

    let other = uri.replace("models", "others");
    let error = refusal(&mut sanderling(&["push", &folder, &other]));
    let expected = format!("there is no bucket for s3://others/model/{version}/tokenizer.json");
    assert_eq!(error, expected);

    let error = refusal(&mut sanderling(&["push", MODEL, &uri]));
    assert_eq!(error, format!("there is no {MODEL}/manifest.json: only packed models are pushed"));
}

#[test]
fn an_export_is_inspected_and_pulled() {
    let fixture = Fixture::start("export");
    let hub = Path::new(&fixture.folder.join("root/organization/model/resolve/main")).to_owned();
    let stored = fixture.stored("export");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    fs::create_dir_all(&stored).unwrap();
    let mut parts = Vec::new();
    for file in ["model.onnx", "tokenizer.json", "config.json"] {
        let content = fs::read(Path::new(MODEL).join(file)).unwrap();
        fs::write(Path::new(&stored).join(file), &content).unwrap();
        let folder = if file == "model.onnx" { hub.join("onnx") } else { hub.clone() };
        fs::write(folder.join(file), &content).unwrap();
        parts.extend(content);
    }
    let version = sha256(&parts);

    let report = succeed(&["inspect", MODEL, "--verify"]);
    assert!(report.contains(&format!("\nversion        {version}\n")), "{report}");
    assert!(report.ends_with("\nnothing to verify: an export names no digests\n"), "{report}");

    let s3 = fixture.s3("export");
    let report = succeed(&["inspect", &s3]);
    assert!(report.contains("\nversion        unknown until it is read"), "{report}");
    let pinned = format!("{s3}#sha256={version}");
    let report = succeed(&["inspect", &pinned, "--verify"]);
    assert!(report.ends_with("\nverified: its version is the one that is pinned\n"), "{report}");

    // The hub is where the environment says, or an option.
    let hub = "hf://organization/model";
    let endpoint = fixture.server.endpoint();
    let report = run(sanderling(&["inspect", hub]).env("HF_ENDPOINT", endpoint));
    assert_eq!(report.0, 0, "{report:?}");
    assert!(report.1.contains("\nonnx/model.onnx "), "{report:?}");
    for (index, uri) in [&*s3, &pinned, MODEL, hub].into_iter().enumerate() {
        let target = fixture.folder.join(&format!("pulled-{index}"));
        let pulled = succeed(&["pull", uri, &target, "--hf-endpoint", endpoint]);
        assert_eq!(pulled, format!("{version}\n"));
        assert!(files(&target) == files(&stored), "{uri}");
    }
    let other = format!("{s3}#sha256={}", "0".repeat(64));
    let target = fixture.folder.join("other");
    let error = refusal(&mut sanderling(&["pull", &other, &target]));
    assert!(error.starts_with(&format!("model has sha256 {version}, ")), "{error}");
    assert!(!Path::new(&target).exists());
}

#[test]
fn the_token_of_the_hub_is_not_shown() {
    let help = run(sanderling(&["pull", "--help"]).env("HF_TOKEN", "hf_secret")).1;
    assert!(help.contains("HF_TOKEN") && !help.contains("hf_secret"), "{help}");
}
