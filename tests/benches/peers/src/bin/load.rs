//! Keeps a server on a loopback address busy over HTTP/1.1, and says how it answered.
//!
//! ```text
//! load http://127.0.0.1:8080/predict --bodies texts.jsonl --callers 16 --secs 5
//! load http://127.0.0.1:8080/predict --bodies texts.jsonl --rate 300 --secs 5
//! load http://127.0.0.1:8080/health --rate 20 --secs 60
//!
//! measuring                 after --warm-up-secs
//! measured                  --secs later; what was begun is still awaited
//! {"ok_per_s":…,…}          see `Seen::report`
//! ```
//!
//! `--callers`: a closed loop; each caller has a connection and sends its next request when it has
//! its answer. `--rate`: an open loop; requests are due at equal intervals whatever comes back, and
//! their latency counts from when they were due, so a server that stalls cannot hide behind callers
//! that wait. Bodies are the lines of a file, in order, again and again; without one it is GET.
//!
//! | Option | Default | |
//! |---|---|---|
//! | `--secs` | | how long is measured |
//! | `--warm-up-secs` | 0 | how long it runs before |
//! | `--timeout-ms` | 10000 | longest a request may take, with its connection |
//! | `--max-requests` | 10000000 | the end, if it comes before the time is up |
//! | `--max-connections` | 4096 | requests at once in an open loop; one that finds none fails |
//! | `--expect` | | what an answer of 200 must hold |
//! | `--hang-up-every` | 0 | each so many requests one leaves without its answer, in turns after half of its body |
//! | `--hang-up-after-ms` | 5 | how long it stays |

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Uri,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use sanderling_bench_peers::Failure;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::Semaphore,
    task::yield_now,
    time::{sleep, sleep_until, timeout},
};

/// Between two connections that are opened first: workers that share a port each get some.
const STAGGER: Duration = Duration::from_millis(3);
/// Before a caller tries again whose connection was refused or broke.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);
const TICKS_PER_SEC: f64 = 100.0;

type Connection = SendRequest<Full<Bytes>>;

#[derive(Debug, Clone, Copy)]
enum Mode {
    Closed { callers: usize },
    Open { rate: f64 },
}

#[derive(Debug)]
struct Plan {
    address: SocketAddr,
    host: HeaderValue,
    path: Uri,
    /// None: GET.
    bodies: Vec<Bytes>,
    mode: Mode,
    warm_up: Duration,
    measured: Duration,
    timeout: Duration,
    max_requests: u64,
    max_connections: usize,
    expected: String,
    hang_up_every: u64,
    hang_up_after: Duration,
}

impl Plan {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let url: Uri = words.next().ok_or("usage: load <url> [options]")?.parse()?;
        let mut options = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("no option: {word:?}"))?;
            let value = words.next().ok_or_else(|| format!("{word} without a value"))?;
            options.insert(name.to_owned(), value);
        }
        let mut take = |name: &str| options.remove(name);
        let mut number = |name: &str, default: f64| -> Result<f64, Failure> {
            let number = take(name).map_or(Ok(default), |text| text.parse())?;
            if number >= 0.0 { Ok(number) } else { Err(format!("--{name}: {number}").into()) }
        };
        let (callers, rate) = (number("callers", 0.0)?, number("rate", 0.0)?);
        let mode = match (callers >= 1.0, rate > 0.0) {
            (true, false) => Mode::Closed { callers: callers as usize },
            (false, true) => Mode::Open { rate },
            _ => return Err("either --callers or --rate".into()),
        };
        let (host, path) = (url.authority(), url.path_and_query());
        let host = host.ok_or("the url has no host")?;
        let address: SocketAddr = host.as_str().parse()?;
        if !address.ip().is_loopback() {
            return Err(format!("{address} is not a loopback address").into());
        }
        let plan = Self {
            address,
            host: host.as_str().parse()?,
            path: path.map_or("/", |path| path.as_str()).parse()?,
            mode,
            warm_up: Duration::from_secs_f64(number("warm-up-secs", 0.0)?),
            measured: Duration::from_secs_f64(number("secs", 0.0)?),
            timeout: Duration::from_secs_f64(number("timeout-ms", 10_000.0)? / 1e3),
            max_requests: number("max-requests", 1e7)? as u64,
            max_connections: number("max-connections", 4096.0)? as usize,
            hang_up_every: number("hang-up-every", 0.0)? as u64,
            hang_up_after: Duration::from_secs_f64(number("hang-up-after-ms", 5.0)? / 1e3),
            bodies: take("bodies").map_or(Ok(Vec::new()), |path| read_bodies(&path))?,
            expected: take("expect").unwrap_or_default(),
        };
        match options.keys().next() {
            Some(unknown) => Err(format!("unknown option --{unknown}").into()),
            None => Ok(plan),
        }
    }
}

fn read_bodies(path: &str) -> Result<Vec<Bytes>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let bodies: Vec<_> = text.lines().map(|line| Bytes::from(line.to_owned())).collect();
    if bodies.is_empty() { Err(format!("{path} is empty").into()) } else { Ok(bodies) }
}

/// What was seen of the requests begun while it was measured.
#[derive(Debug, Default)]
struct Seen {
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    first_error: Option<String>,
    /// Answers of 200 without what was expected of them.
    wrong: u64,
    hang_ups: u64,
    ok_us: Vec<u32>,
    refused_us: Vec<u32>,
    refusals_without_retry_after: u64,
    /// How much later than due requests of an open loop were sent.
    late_us: Vec<u32>,
    /// Right answers that came while it was measured, whenever they were asked for.
    ok_in_time: u64,
    connections: u64,
}

impl Seen {
    /// Latencies are of requests begun in the measured time; `ok_per_s` counts the right answers
    /// that came in it. Refusals are 429 and 503.
    fn report(mut self, begun: u64, secs: f64, cpu_secs: f64) -> Value {
        let statuses = self.statuses.iter().map(|(status, count)| (status.to_string(), *count));
        json!({
            "secs": secs,
            "begun": begun,
            "answers": statuses.collect::<BTreeMap<_, _>>(),
            "errors": self.errors,
            "first_error": self.first_error,
            "wrong": self.wrong,
            "hang_ups": self.hang_ups,
            "ok_per_s": self.ok_in_time as f64 / secs,
            "ok_ms": percentiles(&mut self.ok_us),
            "refused_ms": percentiles(&mut self.refused_us),
            "refusals_without_retry_after": self.refusals_without_retry_after,
            "late_ms": percentiles(&mut self.late_us),
            "connections": self.connections,
            "cpu_secs": cpu_secs,
        })
    }
}

/// None if there is nothing.
fn percentiles(times_us: &mut [u32]) -> Option<Value> {
    times_us.sort_unstable();
    let max_ms = f64::from(*times_us.last()?) / 1e3;
    let at = |share: f64| {
        let rank = (share * times_us.len() as f64).ceil() as usize;
        f64::from(times_us[rank.max(1) - 1]) / 1e3
    };
    Some(json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": max_ms }))
}

struct Answer {
    status: u16,
    has_retry_after: bool,
    body: Bytes,
}

/// An error and what kind it is.
struct Error(&'static str, Failure);

struct Load {
    plan: Plan,
    /// When measuring begins and ends.
    from: Instant,
    until: Instant,
    begun: AtomicU64,
    seen: Mutex<Seen>,
    idle: Mutex<Vec<Connection>>,
}

impl Load {
    fn new(plan: Plan) -> Self {
        let from = Instant::now() + plan.warm_up;
        let until = from + plan.measured;
        Self {
            plan,
            from,
            until,
            begun: AtomicU64::new(0),
            seen: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    /// The number of the request that is due at `time`; None if that is after the end.
    fn next(&self, time: Instant) -> Option<u64> {
        let has_ended = || self.begun.load(Ordering::Relaxed) >= self.plan.max_requests;
        if time >= self.until || has_ended() {
            return None;
        }
        Some(self.begun.fetch_add(1, Ordering::Relaxed))
    }

    async fn caller(self: Arc<Self>) {
        let mut connection = None;
        while let Some(number) = self.next(Instant::now()) {
            connection = self.request(number, Instant::now(), connection).await;
            if connection.is_none() && !self.hangs_up(number) {
                sleep(FAILURE_PAUSE).await;
            }
        }
    }

    async fn run_closed(self: Arc<Self>, callers: usize) {
        let mut tasks = Vec::new();
        for _ in 0..callers {
            tasks.push(tokio::spawn(Arc::clone(&self).caller()));
            sleep(STAGGER).await;
        }
        for task in tasks {
            // A caller that panicked has said so.
            let _ = task.await;
        }
    }

    async fn run_open(self: Arc<Self>, rate: f64) {
        let began = Instant::now();
        let max_connections = self.plan.max_connections;
        let places = Arc::new(Semaphore::new(max_connections));
        let due = |number: u64| began + Duration::from_secs_f64(number as f64 / rate);
        while let Some(number) = self.next(due(self.begun.load(Ordering::Relaxed))) {
            let due = due(number);
            if due > Instant::now() {
                sleep_until(due.into()).await;
            } else {
                yield_now().await;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                let error = Error("no connection free", "--max-connections".into());
                self.record(due, Err(error));
                continue;
            };
            let load = Arc::clone(&self);
            tokio::spawn(async move {
                let connection = lock(&load.idle).pop();
                if let Some(connection) = load.request(number, due, connection).await {
                    lock(&load.idle).push(connection);
                }
                drop(place);
            });
        }
        let _ = places.acquire_many(max_connections as u32).await;
    }

    fn hangs_up(&self, number: u64) -> bool {
        let every = self.plan.hang_up_every;
        every > 0 && number % every == every - 1
    }

    /// One request, over `connection` if there is one; gives the connection if it can be used again.
    async fn request(
        &self,
        number: u64,
        due: Instant,
        mut connection: Option<Connection>,
    ) -> Option<Connection> {
        let body = match self.plan.bodies.len() {
            0 => Bytes::new(),
            len => self.plan.bodies[(number % len as u64) as usize].clone(),
        };
        if matches!(self.plan.mode, Mode::Open { .. }) && self.measures(due) {
            lock(&self.seen).late_us.push(micros(due.elapsed()));
        }
        if self.hangs_up(number) {
            let is_half = (number / self.plan.hang_up_every).is_multiple_of(2);
            match timeout(self.plan.timeout, self.hang_up(&body, is_half)).await {
                Ok(Ok(())) if self.measures(due) => lock(&self.seen).hang_ups += 1,
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.record(due, Err(error)),
                Err(elapsed) => self.record(due, Err(Error("timeout", elapsed.into()))),
            }
            return connection;
        }
        let outcome = timeout(self.plan.timeout, self.exchange(&mut connection, body)).await;
        let outcome = outcome.unwrap_or_else(|elapsed| {
            // Its answer may still come, to somebody else's question.
            connection = None;
            Err(Error("timeout", elapsed.into()))
        });
        self.record(due, outcome);
        connection
    }

    async fn exchange(
        &self,
        connection: &mut Option<Connection>,
        body: Bytes,
    ) -> Result<Answer, Error> {
        if let Some(mut kept) = connection.take()
            && let Some(outcome) = self.send(&mut kept, body.clone()).await
        {
            return outcome.inspect(|_| *connection = Some(kept));
        }
        // There was none, or the server had closed it before the request was sent.
        let mut fresh = self.connect().await?;
        let outcome = self.send(&mut fresh, body).await;
        let closed = || Err(Error("closed", "at once".into()));
        outcome.unwrap_or_else(closed).inspect(|_| *connection = Some(fresh))
    }

    /// None if the connection was closed before anything was sent.
    async fn send(
        &self,
        connection: &mut Connection,
        body: Bytes,
    ) -> Option<Result<Answer, Error>> {
        if connection.ready().await.is_err() {
            return None;
        }
        match self.answer(connection, body).await {
            Err(error) if error.is_canceled() => None,
            outcome => Some(outcome.map_err(|error| Error("broken", error.into()))),
        }
    }

    async fn answer(&self, connection: &mut Connection, body: Bytes) -> hyper::Result<Answer> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = self.plan.path.clone();
        request.headers_mut().insert(HOST, self.plan.host.clone());
        if !self.plan.bodies.is_empty() {
            *request.method_mut() = Method::POST;
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        let response = connection.send_request(request).await?;
        let (head, body) = response.into_parts();
        let has_retry_after = head.headers.contains_key(RETRY_AFTER);
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), has_retry_after, body })
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let refused = |error: Failure| Error("connect", error);
        let stream = TcpStream::connect(self.plan.address).await.map_err(|e| refused(e.into()))?;
        stream.set_nodelay(true).map_err(|e| refused(e.into()))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|e| refused(e.into()))?;
        // How it ends is seen by the request that runs over it.
        tokio::spawn(async { drop(connection.await) });
        lock(&self.seen).connections += 1;
        Ok(sender)
    }

    /// Sends a request, or half of its body, stays for a moment, and leaves.
    async fn hang_up(&self, body: &[u8], is_half: bool) -> Result<(), Error> {
        let broken = |error: std::io::Error| Error("hang-up", error.into());
        let mut stream = TcpStream::connect(self.plan.address).await.map_err(broken)?;
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.plan.path,
            self.plan.address,
            body.len()
        );
        let end = if is_half { body.len() / 2 } else { body.len() };
        stream.write_all(&[head.as_bytes(), &body[..end]].concat()).await.map_err(broken)?;
        sleep(self.plan.hang_up_after).await;
        Ok(())
    }

    fn measures(&self, time: Instant) -> bool {
        (self.from..self.until).contains(&time)
    }

    fn record(&self, due: Instant, outcome: Result<Answer, Error>) {
        let latency_us = micros(due.elapsed());
        let mut seen = lock(&self.seen);
        let is_right = matches!(&outcome, Ok(answer) if self.is_right(answer));
        if is_right && self.measures(Instant::now()) {
            seen.ok_in_time += 1;
        }
        if !self.measures(due) {
            return;
        }
        match outcome {
            Ok(answer) => {
                *seen.statuses.entry(answer.status).or_default() += 1;
                match answer.status {
                    200 if is_right => seen.ok_us.push(latency_us),
                    200 => seen.wrong += 1,
                    429 | 503 => {
                        seen.refused_us.push(latency_us);
                        seen.refusals_without_retry_after += u64::from(!answer.has_retry_after);
                    }
                    _ => {}
                }
            }
            Err(Error(kind, error)) => {
                *seen.errors.entry(kind).or_default() += 1;
                seen.first_error.get_or_insert_with(|| format!("{kind}: {error}"));
            }
        }
    }

    fn is_right(&self, answer: &Answer) -> bool {
        let expected = self.plan.expected.as_bytes();
        let holds = |body: &[u8]| body.windows(expected.len()).any(|part| part == expected);
        answer.status == 200 && (expected.is_empty() || holds(&answer.body))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// CPU time of this process so far.
fn cpu_secs() -> Result<f64, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SEC)
}

async fn run(plan: Plan) -> Result<(), Failure> {
    let (mode, warm_up, measured) = (plan.mode, plan.warm_up, plan.measured);
    let load = Arc::new(Load::new(plan));
    let requests = Arc::clone(&load);
    let requests = tokio::spawn(async move {
        match mode {
            Mode::Closed { callers } => requests.run_closed(callers).await,
            Mode::Open { rate } => requests.run_open(rate).await,
        }
    });
    sleep(warm_up).await;
    println!("measuring");
    let cpu_before = cpu_secs()?;
    sleep(measured).await;
    let cpu_secs = cpu_secs()? - cpu_before;
    println!("measured");
    requests.await?;
    let seen = std::mem::take(&mut *lock(&load.seen));
    let begun = load.begun.load(Ordering::Relaxed);
    println!("{}", seen.report(begun, measured.as_secs_f64(), cpu_secs));
    Ok(())
}

fn main() -> Result<(), Failure> {
    let plan = Plan::read(env::args().skip(1))?;
    // One thread: it shares the CPUs with what it measures.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(plan))
}
