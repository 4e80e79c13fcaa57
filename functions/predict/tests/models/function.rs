//! The function as a process: its environment, its log, its answers.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Longest wait for anything; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Calls `is_so` until it is.
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How the function starts.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    variables: BTreeMap<String, String>,
    /// Shell commands that run before it, in a mount namespace of its own.
    mounts: Option<String>,
}

impl Function {
    /// With the key pair of the server for tests, and nothing of the environment of the test.
    pub(crate) fn new(model_uri: &str, cache_dir: &Path) -> Self {
        let function = Self { variables: BTreeMap::new(), mounts: None };
        function
            .with("MODEL_URI", model_uri)
            .with("CACHE_DIR", cache_dir.to_str().unwrap())
            .with("AWS_ACCESS_KEY_ID", "test")
            .with("AWS_SECRET_ACCESS_KEY", "test-secret")
            .with("AWS_EC2_METADATA_DISABLED", "true")
            .with("PORT", "0")
            .with("LOG_FORMAT", "json")
            .with("NUM_THREADS", "1")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Runs `mounts` first; what they mount is gone with the process.
    pub(crate) fn after_mounts(mut self, mounts: String) -> Self {
        self.mounts = Some(mounts);
        self
    }

    fn spawn(&self, arguments: &[&str]) -> Process {
        let binary = env!("CARGO_BIN_EXE_predict");
        let mut command = match &self.mounts {
            None => Command::new(binary),
            Some(mounts) => {
                let mut command = Command::new("unshare");
                let script = format!("set -e; {mounts}; exec \"$@\"");
                command.args(unshare()).args(["sh", "-c", &script, "sh", binary]);
                command
            }
        };
        command.args(arguments).env_clear().envs(&self.variables);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let log = Arc::new(Log::default());
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({"raw": line}));
                lines.events.lock().unwrap().push(event);
                lines.more.notify_all();
            }
        });
        Process { child, log }
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(&self) -> Running {
        let process = self.spawn(&[]);
        let listening = process.logged("listening");
        let (_, port) = listening["address"].as_str().unwrap().rsplit_once(':').unwrap();
        let port = port.parse().unwrap();
        Running { process, port }
    }

    /// Runs `--check`, which must find a mistake, and gives it.
    pub(crate) fn check_fails(&self) -> String {
        let mut process = self.spawn(&["--check"]);
        assert_eq!(process.exit_code(), Some(1));
        process.only_error()
    }
}

/// How this user gets a mount namespace.
fn unshare() -> &'static [&'static str] {
    let ways: [&[&str]; 2] = [&["-m"], &["-r", "-m"]];
    let works = |way: &&[&str]| {
        let mut command = Command::new("unshare");
        command.args(*way).args(["sh", "-c", "mount -t tmpfs tmpfs /tmp"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    ways.into_iter().find(works).unwrap_or_else(|| {
        panic!("this test mounts: it needs root, or user namespaces that are not restricted")
    })
}

#[derive(Debug, Default)]
struct Log {
    events: Mutex<Vec<Value>>,
    more: Condvar,
}

/// A process; dropping it kills it.
#[derive(Debug)]
struct Process {
    child: Child,
    log: Arc<Log>,
}

impl Process {
    /// The first event with this message; waits for it.
    fn logged(&self, message: &str) -> Value {
        let events = self.log.events.lock().unwrap();
        let is_it = |event: &&Value| event["message"] == message;
        let (events, timeout) = self
            .log
            .more
            .wait_timeout_while(events, PATIENCE, |events| {
                !events.iter().any(|event| is_it(&event))
            })
            .unwrap();
        assert!(!timeout.timed_out(), "no \"{message}\" in {events:#?}");
        events.iter().find(is_it).unwrap().clone()
    }

    /// The cause in the one event that is an error.
    fn only_error(&self) -> String {
        let failure = self.logged("no model");
        let events = self.log.events.lock().unwrap();
        let errors = events.iter().filter(|event| event["level"] == "ERROR").count();
        assert_eq!(errors, 1, "{events:#?}");
        failure["exception"].as_str().unwrap().to_owned()
    }

    /// The exit code, once it has one; `None` after a signal.
    fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A function that listens.
#[derive(Debug)]
pub(crate) struct Running {
    process: Process,
    port: u16,
}

/// What came back for a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    pub(crate) body: Value,
}

impl Answer {
    /// Its values, if it comes several times.
    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| *field == name).map(|(_, value)| value).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.process.child.id()
    }

    pub(crate) fn predict(&self, text: &str) -> Answer {
        self.send("POST", "/predict", &json!({ "text": text }).to_string())
    }

    pub(crate) fn health(&self) -> Answer {
        self.send("GET", "/health", "")
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: serde_json::from_str(body).unwrap() }
    }

    /// Waits until the log has an event with this message, and gives the first.
    pub(crate) fn logged(&self, message: &str) -> Value {
        self.process.logged(message)
    }

    /// How many events with this message there are.
    pub(crate) fn num_logged(&self, message: &str) -> usize {
        let events = self.process.log.events.lock().unwrap();
        events.iter().filter(|event| event["message"] == message).count()
    }

    /// Waits until `/health` names `version`.
    pub(crate) fn serves(&self, version: &str) {
        eventually(&format!("version {version}"), || self.health().body["version"] == version);
    }

    /// Asserts that it has no model and says so everywhere, and gives the cause in the log.
    pub(crate) fn refuses(&self) -> String {
        let error = self.process.only_error();
        eventually("it has given up", || self.health().body["status"] != "loading");
        let health = self.health();
        assert_eq!((health.status, &health.body["status"]), (503, &json!("unavailable")));
        let reason = health.body["reason"].as_str().unwrap();
        let reason = reason.strip_prefix("the model could not be loaded: ").unwrap();
        assert!(error.starts_with(reason), "{reason} in /health, {error} in the log");
        let answer = self.predict("good movie");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.body["error"]["code"], "model_unavailable");
        error
    }

    pub(crate) fn hang_up(&self) {
        self.process.signal("HUP");
    }

    /// Ends it as a platform does; it must end well.
    pub(crate) fn stop(mut self) {
        self.process.signal("TERM");
        assert_eq!(self.process.exit_code(), Some(0));
    }

    /// Ends it without a chance to tidy up.
    pub(crate) fn kill(mut self) {
        self.process.child.kill().unwrap();
        assert_eq!(self.process.exit_code(), None);
    }

    /// A sum of `/proc/<pid>/smaps_rollup`, in bytes.
    pub(crate) fn memory(&self, sum: &str) -> u64 {
        let sums = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id())).unwrap();
        let line = sums.lines().find_map(|line| line.strip_prefix(&format!("{sum}:"))).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// How many mappings of files with this name it has.
    pub(crate) fn num_mapped(&self, file: &str) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap();
        maps.lines().filter(|line| line.ends_with(&format!("/{file}"))).count()
    }
}
