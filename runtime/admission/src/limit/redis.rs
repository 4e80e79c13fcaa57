//! Windows that many processes share, in Redis: one round trip a decision, and none while it is away.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, RedisResult, Script, ScriptInvocation,
    aio::MultiplexedConnection,
};
use telemetry::{Causes, METRICS, Secret};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Key, RedisFailure,
    rates::Rate,
    window::{Decision, Use},
};

/// Answers in a row that come too late before nobody waits for the next one.
const MAX_LATE: u32 = 3;

/// Longest that connecting takes, and pauses between attempts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

const SCRIPT: &str = include_str!("redis.lua");

/// Where Redis is, and what becomes of callers without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisOptions {
    url: Secret,
    /// Longest that a caller waits for it. Timers are whole milliseconds, rounded up.
    pub timeout: Duration,
    /// What becomes of callers while it does not answer.
    pub failure: RedisFailure,
}

/// A URL that Redis cannot be reached by. The URL, which may hold a password, is not part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not like redis://user:password@host:6379/0 or rediss://…")]
pub struct RedisError;

impl RedisOptions {
    /// Redis behind `url`.
    ///
    /// # Errors
    ///
    /// [`RedisError`].
    pub fn new(url: Secret, timeout: Duration, failure: RedisFailure) -> Result<Self, RedisError> {
        url.expose().into_connection_info().map_err(|_| RedisError)?;
        Ok(Self { url, timeout, failure })
    }
}

/// A connection to Redis that is made anew when it breaks.
pub(super) struct Redis {
    script: Script,
    timeout: Duration,
    link: watch::Sender<Link>,
    /// Answers in a row that came too late.
    num_late: AtomicU32,
}

#[derive(Clone)]
enum Link {
    /// It is being made for the first time, or has just broken.
    Connecting,
    /// With its number.
    Up(u64, MultiplexedConnection),
    /// Nobody waits for it.
    Down,
}

impl Redis {
    /// Connects in the background, as often as it takes.
    pub(super) fn start(options: RedisOptions) -> Self {
        let link = watch::Sender::new(Link::Connecting);
        let wait = options.timeout;
        tokio::spawn(keep_up(options, link.clone()));
        Self { script: Script::new(SCRIPT), timeout: wait, link, num_late: AtomicU32::new(0) }
    }

    /// How limits stand, as [`super::memory::Memory::take`] says it; `None` if Redis does not in time.
    pub(super) async fn take(
        &self,
        name: &str,
        key: Key,
        rates: &[Rate],
        costs: &[u64],
        whatever: bool,
    ) -> Option<Decision> {
        let mut call = self.script.prepare_invoke();
        call.arg(u8::from(whatever));
        for (rate, cost) in rates.iter().zip(costs) {
            call.key(key_of(name, key, rate));
            call.arg(rate.count).arg(rate.window.as_micros() as u64).arg(*cost);
        }
        match timeout(self.timeout, self.ask(&call)).await {
            Ok(numbers) => {
                self.num_late.store(0, Relaxed);
                decision(&numbers?)
            }
            Err(_) => {
                if self.num_late.fetch_add(1, Relaxed) + 1 >= MAX_LATE {
                    self.give_up(None, Link::Down);
                }
                None
            }
        }
    }

    /// What the script answers. A connection that breaks is tried again when it is made anew.
    async fn ask(&self, call: &ScriptInvocation<'_>) -> Option<Vec<u64>> {
        loop {
            let (number, mut connection) = self.connection().await?;
            match call.invoke_async(&mut connection).await {
                Ok(numbers) => return Some(numbers),
                Err(error) if error.is_io_error() || error.is_unrecoverable_error() => {
                    self.give_up(Some(number), Link::Connecting);
                }
                // Read only, out of memory: what it says for itself.
                Err(error) => {
                    tracing::warn!(exception = %Causes(&error), "Redis refuses");
                    return None;
                }
            }
        }
    }

    /// The connection, when it is made, and its number; `None` if nobody waits for that.
    async fn connection(&self) -> Option<(u64, MultiplexedConnection)> {
        let up = |link: &Link| match link {
            Link::Up(number, connection) => Some((*number, connection.clone())),
            Link::Connecting | Link::Down => None,
        };
        if let Some(up) = up(&self.link.borrow()) {
            return Some(up);
        }
        let mut link = self.link.subscribe();
        up(&*link.wait_for(|link| !matches!(link, Link::Connecting)).await.ok()?)
    }

    /// Lets the connection go, if it is there and has that number.
    fn give_up(&self, broken: Option<u64>, next: Link) {
        self.num_late.store(0, Relaxed);
        self.link.send_if_modified(|link| {
            let Link::Up(number, _) = link else { return false };
            let is_it = broken.is_none_or(|broken| broken == *number);
            if is_it {
                *link = next;
            }
            is_it
        });
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis")
    }
}

/// One limit of a caller. What is in braces says where a cluster keeps it: all limits of a caller together.
fn key_of(name: &str, key: Key, rate: &Rate) -> String {
    let caller = u128::from_be_bytes(key);
    let window_ms = rate.window.as_millis();
    format!("sanderling:limit:{name}:{{{caller:032x}}}:{}:{window_ms}", rate.unit.name())
}

fn decision(numbers: &[u64]) -> Option<Decision> {
    let (counted, uses) = numbers.split_first()?;
    let uses = uses.chunks_exact(3).map(|each| Use {
        used: each[0],
        reset: Duration::from_micros(each[1]),
        wait: Duration::from_micros(each[2]),
    });
    Some(Decision { counted: *counted == 1, uses: uses.collect() })
}

/// Connects whenever there is no connection, until nobody needs one.
async fn keep_up(options: RedisOptions, link: watch::Sender<Link>) {
    let mut changes = link.subscribe();
    let mut pause = FIRST_PAUSE;
    let mut is_told = false;
    let mut number = 0;
    let mut up_since: Option<Instant> = None;
    while changes.wait_for(|link| !matches!(link, Link::Up(..))).await.is_ok() {
        match up_since.take() {
            // One that is too slow is not asked again and again.
            Some(since) if since.elapsed() < LONGEST_PAUSE => {
                link.send_replace(Link::Down);
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(2 * pause);
            }
            Some(_) => pause = FIRST_PAUSE,
            None => {}
        }
        let error = match timeout(CONNECT_TIMEOUT, connect(&options)).await {
            Ok(Ok(connection)) => {
                is_told = false;
                number += 1;
                up_since = Some(Instant::now());
                tracing::info!("connected to Redis");
                METRICS.redis_up.with([]).set(1.0);
                link.send_replace(Link::Up(number, connection));
                continue;
            }
            Ok(Err(error)) => Causes(&error).to_string(),
            Err(_) => "no connection in time".to_owned(),
        };
        METRICS.redis_up.with([]).set(0.0);
        if !is_told {
            tracing::warn!(exception = error, "Redis does not answer");
            is_told = true;
        }
        link.send_replace(Link::Down);
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

/// A connection whose first answer has come, and that has the script.
async fn connect(options: &RedisOptions) -> RedisResult<MultiplexedConnection> {
    // One provider of cryptography for the process; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(CONNECT_TIMEOUT));
    let client = Client::open(options.url.expose())?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    Script::new(SCRIPT).load_async(&mut connection).await?;
    Ok(connection)
}
