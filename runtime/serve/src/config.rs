//! Settings of a function: one table of names, defaults and bounds; read once, checked together.

mod admission;
mod reader;
mod settings;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ::admission::{AuthOptions, InputRules, IssuerOptions, Proxies, RateLimits, RedisOptions};
use engine::{Options, Pooling, Precision};
use pipeline::{BatchLimits, TokenLimits, Truncation};
use telemetry::{LogFormat, push, trace};

pub(crate) use self::settings::Help;
use self::{
    reader::Reader,
    settings::{
        ALLOW_TOKEN_IDS, AWS_CA_BUNDLE, CACHE_DIR, HEADER_TIMEOUT_MS, HF_ENDPOINT, HF_TOKEN,
        HF_TOKEN_FILE, IDLE_TIMEOUT_MS, LOG_FORMAT, MAX_BATCH_REQUESTS, MAX_BATCH_TOKENS,
        MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_CACHE_BYTES, MAX_CLIENT_BATCH_SIZE,
        MAX_CONCURRENT_REQUESTS, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_INPUT_CHARS,
        MAX_INPUT_TOKENS, MAX_QUEUE_REQUESTS, MAX_QUEUE_WAIT_MS, METRICS_NAMESPACE, METRICS_PORT,
        MODEL_RELOAD, MODEL_URI, NUM_THREADS, POOLING, PORT, PRECISION, REQUEST_TIMEOUT_MS,
        RUST_LOG, TOKEN, TRUNCATION, settings,
    },
};

/// Settings of one function, as the environment gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Where requests come from.
    pub platform: Platform,
    /// `METRICS_PORT`: where `GET /metrics` is answered, unless with all else.
    pub metrics_port: Option<u16>,
    /// `MODEL_URI`: where the model is. Default: the first folder that exists of those that
    /// `--help` names.
    pub model_uri: String,
    /// `MODEL_RELOAD`: when a newer version is looked for.
    pub model_reload: Reload,
    /// `CACHE_DIR`, `MAX_CACHE_BYTES`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_FILE`, `AWS_CA_BUNDLE`.
    pub model_options: weights::Options,
    /// `NUM_THREADS` (default: the CPU quota, else the cores), `PRECISION`, `POOLING`.
    pub engine_options: Options,
    /// `MAX_BATCH_TOKENS`, `MAX_BATCH_REQUESTS`, `MAX_QUEUE_WAIT_MS`, `MAX_QUEUE_REQUESTS`.
    pub batch_limits: BatchLimits,
    /// `MAX_INPUT_TOKENS`, `TRUNCATION`.
    pub token_limits: TokenLimits,
    /// `MAX_CLIENT_BATCH_SIZE`: most texts in one request.
    pub max_client_batch_size: usize,
    /// `MAX_INPUT_CHARS`: longest text, in Unicode characters.
    pub max_input_chars: usize,
    /// `INPUT_DENY`: what no text may hold.
    pub input_rules: InputRules,
    /// `ALLOW_TOKEN_IDS`: whether token ids are taken in the place of a text.
    pub allow_token_ids: bool,
    /// `AUTH`, `ALLOWED_ROLES`, `JWT_…`: whose tokens are taken; `None` if none is needed.
    pub auth: Option<AuthOptions>,
    /// `RATE_LIMITS`: how much callers may ask, by their role.
    pub rate_limits: RateLimits,
    /// `REDIS_URL`, `REDIS_TIMEOUT_MS`, `REDIS_FAILURE`: where processes share these limits.
    pub redis: Option<RedisOptions>,
    /// `TRUSTED_PROXIES`: whose word on a caller's address is taken.
    pub trusted_proxies: Proxies,
    /// Of the function that issues tokens.
    pub token: Option<TokenOptions>,
    /// `MAX_BODY_BYTES`: longest body of a request.
    pub max_body_bytes: usize,
    /// `MAX_BODIES_BYTES`: bodies that are held at once, together; at least one.
    pub max_bodies_bytes: usize,
    /// `MAX_HEADER_BYTES`: request line and headers of a request; the URI may take half of it.
    pub max_header_bytes: usize,
    /// `MAX_CONNECTIONS`: most connections that are open, if the limit on files allows as many.
    pub max_connections: usize,
    /// `MAX_CONCURRENT_REQUESTS`: most requests that are being answered, those included whose body
    /// is still arriving.
    pub max_concurrent_requests: usize,
    /// `REQUEST_TIMEOUT_MS`: longest a request may take, loading the model included. SIGTERM
    /// waits for requests in flight no longer than that.
    pub request_timeout: Duration,
    /// `HEADER_TIMEOUT_MS`: longest from the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    /// `IDLE_TIMEOUT_MS`: longest a connection stays open without a request.
    pub idle_timeout: Duration,
    /// `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `RUST_LOG`: which events are logged.
    pub log_filter: String,
    /// `METRICS_NAMESPACE`: CloudWatch's, of metrics that are written as lines, if they are.
    pub metrics_namespace: Option<String>,
    /// `OTEL_…`: how metrics are sent, if they are.
    pub metrics_push: Option<push::Settings>,
    /// `OTEL_…`: how traces are sent, if they are.
    pub traces: Option<trace::Settings>,
}

/// How tokens are issued.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenOptions {
    /// `USERS_FILE`: who may log in.
    pub users_file: PathBuf,
    /// `JWT_SECRET`, `JWT_PRIVATE_KEY`, `JWT_ISSUER`, `JWT_AUDIENCE`, `TOKEN_LIFETIME_SECS`.
    pub issuer: IssuerOptions,
    /// `LOGIN_LIMIT`: most log-ins from an address, and of a name.
    pub login_limit: RateLimits,
}

/// Where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// `PORT`: HTTP/1.1 and h2c on this port of all addresses; 0 takes any free one.
    Http {
        /// TCP port.
        port: u16,
    },
    /// The Lambda Runtime API, as `AWS_LAMBDA_RUNTIME_API` says.
    Lambda,
}

/// When a newer version of the model is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// Never.
    Off,
    /// Every so often.
    Poll(Duration),
    /// When SIGHUP comes.
    Sighup,
}

/// What `lambda_runtime` cannot do without.
const LAMBDA_VARS: [&str; 3] =
    ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION"];

/// Every setting that could not be read, in one message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad settings: {}", .mistakes.join("; "))]
pub struct ConfigError {
    mistakes: Vec<String>,
}

impl Config {
    /// Reads the environment of the process.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all mistakes at once.
    pub fn from_env(function: &str) -> Result<Self, ConfigError> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        Self::from_vars(function, |name| std::env::var(name).ok())
    }

    /// Reads settings from `var`, which gives the value of a variable.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all mistakes at once.
    pub fn from_vars(
        function: &str,
        var: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let is_token = function == TOKEN;
        let mut reader = Reader { var, known: settings(function), mistakes: Vec::new() };
        let on_lambda = reader.on_lambda();
        let port = reader.number(&PORT, 0..=u16::MAX.into());
        let mut config = Self {
            platform: if on_lambda {
                Platform::Lambda
            } else {
                Platform::Http { port: port as u16 }
            },
            metrics_port: reader
                .optional_number(&METRICS_PORT, 0..=u16::MAX.into())
                .map(|port| port as u16),
            model_uri: reader.text(&MODEL_URI),
            model_reload: reader.model_reload(),
            model_options: reader.model_options(),
            engine_options: Options {
                precision: reader
                    .optional(&PRECISION, &Precision::ALL.map(|each| (each.as_str(), each))),
                pooling: reader.optional(&POOLING, &Pooling::ALL.map(|each| (each.as_str(), each))),
                num_threads: reader.number_or(&NUM_THREADS, 1..=1024, quota_threads),
            },
            batch_limits: BatchLimits {
                max_batch_tokens: reader.number(&MAX_BATCH_TOKENS, 1..=1 << 24),
                max_batch_requests: reader.number(&MAX_BATCH_REQUESTS, 1..=1 << 16),
                max_queue_wait: Duration::from_millis(
                    reader.number(&MAX_QUEUE_WAIT_MS, 0..=1000) as u64
                ),
                max_queue_requests: reader.number(&MAX_QUEUE_REQUESTS, 1..=1 << 20),
            },
            token_limits: TokenLimits {
                max_input_tokens: reader.number(&MAX_INPUT_TOKENS, 1..=1 << 20),
                truncation: reader.choice(
                    &TRUNCATION,
                    &[
                        ("right", Truncation::Right),
                        ("left", Truncation::Left),
                        ("off", Truncation::Off),
                    ],
                ),
            },
            max_client_batch_size: reader.number_or(&MAX_CLIENT_BATCH_SIZE, 1..=1 << 16, || 32),
            max_input_chars: reader.number(&MAX_INPUT_CHARS, 1..=1 << 30),
            input_rules: reader.input_rules(),
            allow_token_ids: reader.choice(&ALLOW_TOKEN_IDS, &[("false", false), ("true", true)]),
            auth: if is_token { None } else { reader.auth() },
            token: is_token.then(|| reader.token()),
            rate_limits: reader.rate_limits(),
            redis: reader.redis(),
            trusted_proxies: reader.trusted_proxies(),
            max_body_bytes: reader.number(&MAX_BODY_BYTES, 1..=1 << 30),
            max_bodies_bytes: reader.number_or(&MAX_BODIES_BYTES, 1..=1 << 40, || 128 << 20),
            max_header_bytes: reader.number(&MAX_HEADER_BYTES, 8192..=1 << 20),
            max_connections: reader.number(&MAX_CONNECTIONS, 1..=1 << 20),
            max_concurrent_requests: reader.number(&MAX_CONCURRENT_REQUESTS, 1..=1 << 20),
            request_timeout: reader.millis(&REQUEST_TIMEOUT_MS),
            header_timeout: reader.millis(&HEADER_TIMEOUT_MS),
            idle_timeout: reader.millis(&IDLE_TIMEOUT_MS),
            log_format: reader.log_format(),
            log_filter: reader.text(&RUST_LOG),
            metrics_namespace: reader.metrics_namespace(),
            metrics_push: reader.open_telemetry(|var| push::Settings::from_vars(var)),
            traces: reader.open_telemetry(|var| trace::Settings::from_vars(var)),
        };
        let most = config.batch_limits.max_queue_requests;
        if config.max_client_batch_size > most {
            let size = config.max_client_batch_size;
            // A request that never finds places for its texts would be told to come back for ever.
            if !reader.text(&MAX_CLIENT_BATCH_SIZE).is_empty() {
                reader.mistakes.push(format!(
                    "MAX_CLIENT_BATCH_SIZE: {size} is above MAX_QUEUE_REQUESTS, {most}"
                ));
            }
            config.max_client_batch_size = most;
        }
        let one = config.max_body_bytes;
        if config.max_bodies_bytes < one {
            let many = config.max_bodies_bytes;
            if !reader.text(&MAX_BODIES_BYTES).is_empty() {
                let mistake = format!("MAX_BODIES_BYTES: {many} is below MAX_BODY_BYTES, {one}");
                reader.mistakes.push(mistake);
            }
            config.max_bodies_bytes = one;
        }
        if !reader.mistakes.is_empty() {
            return Err(ConfigError { mistakes: reader.mistakes });
        }
        if config.model_uri.is_empty() {
            return Ok(Self { model_uri: default_model(function), ..config });
        }
        Ok(config)
    }
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// Whether Lambda started this process; it then says all that `lambda_runtime` asks for.
    fn on_lambda(&mut self) -> bool {
        let on_lambda = (self.var)("AWS_LAMBDA_RUNTIME_API").is_some();
        for name in LAMBDA_VARS.into_iter().filter(|_| on_lambda) {
            if (self.var)(name).is_none() {
                self.mistakes.push(format!("{name}: not set, though AWS_LAMBDA_RUNTIME_API is"));
            }
        }
        on_lambda
    }

    fn model_options(&mut self) -> weights::Options {
        let set = |text: String| (!text.is_empty()).then_some(text);
        let cache_dir = set(self.text(&CACHE_DIR)).map(PathBuf::from);
        weights::Options {
            cache_dir: cache_dir.unwrap_or_else(|| std::env::temp_dir().join("sanderling")),
            max_cache_bytes: self.number(&MAX_CACHE_BYTES, 0..=1 << 50) as u64,
            access: weights::Access {
                hf_endpoint: self.text(&HF_ENDPOINT),
                hf_token: self.secret(&HF_TOKEN, &HF_TOKEN_FILE),
                ca_bundle: set(self.text(&AWS_CA_BUNDLE)).map(PathBuf::from),
            },
        }
    }

    fn model_reload(&mut self) -> Reload {
        let text = self.text(&MODEL_RELOAD);
        match text.as_str() {
            "off" => return Reload::Off,
            "sighup" => return Reload::Sighup,
            _ => {}
        }
        let interval = text.strip_prefix("poll:").and_then(|interval| {
            let (number, unit) = interval.split_at_checked(interval.len().checked_sub(1)?)?;
            let secs = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            number.parse::<u64>().ok().filter(|number| *number > 0)?.checked_mul(secs)
        });
        if let Some(secs) = interval.filter(|secs| *secs <= 7 * 24 * 3600) {
            return Reload::Poll(Duration::from_secs(secs));
        }
        let name = MODEL_RELOAD.name;
        self.mistakes
            .push(format!("{name}: \"{text}\" is not off, sighup or poll:30s (s, m or h)"));
        Reload::Off
    }

    fn metrics_namespace(&mut self) -> Option<String> {
        let text = self.text(&METRICS_NAMESPACE);
        let allowed =
            |character: char| character.is_ascii_alphanumeric() || ".-_/#: ".contains(character);
        if text.len() > 255 || text.starts_with("AWS/") || !text.chars().all(allowed) {
            self.mistakes.push(format!(
                "METRICS_NAMESPACE: \"{text}\" is not 1 to 255 of A-Z a-z 0-9 . - _ / # : and blanks, \
                 or is AWS' own"
            ));
        }
        (!text.is_empty()).then_some(text)
    }

    fn open_telemetry<T>(
        &mut self,
        read: impl FnOnce(&F) -> Result<Option<T>, Vec<String>>,
    ) -> Option<T> {
        read(&self.var).unwrap_or_else(|mistakes| {
            // Both read some variables.
            let new = mistakes.into_iter().filter(|mistake| !self.mistakes.contains(mistake));
            let new: Vec<String> = new.collect();
            self.mistakes.extend(new);
            None
        })
    }

    fn log_format(&mut self) -> LogFormat {
        if self.text(&LOG_FORMAT).is_empty() {
            return LogFormat::for_stdout();
        }
        self.choice(&LOG_FORMAT, &[("json", LogFormat::Json), ("text", LogFormat::Text)])
    }
}

/// What the kernel lets this process use at once; Rust reads cgroup quota and affinity.
pub(crate) fn quota_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where a function looks for its model when nothing is set.
fn default_models(function: &str) -> [PathBuf; 3] {
    let beside_binary = std::env::current_exe()
        .ok()
        .and_then(|binary| Some(binary.parent()?.join("model")))
        .unwrap_or_else(|| PathBuf::from("model"));
    [beside_binary, PathBuf::from("/model"), Path::new("functions").join(function).join("model")]
}

/// The first default folder that holds a model, else the last, whose absence is then reported.
fn default_model(function: &str) -> String {
    let [beside_binary, root, in_repository] = default_models(function);
    let is_model = |path: &PathBuf| {
        ["config.json", "manifest.json"].iter().any(|file| path.join(file).is_file())
    };
    let found = [beside_binary, root].into_iter().find(is_model);
    found.unwrap_or(in_repository).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    pub(super) fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_vars("predict", |name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = read(&[]).unwrap();
        assert_eq!(config.platform, Platform::Http { port: 8080 });
        assert_eq!(config.batch_limits.max_batch_tokens, 16_384);
        assert_eq!(config.token_limits.truncation, Truncation::Right);
        assert_eq!(config.request_timeout, Duration::from_secs(30));
        assert!(config.engine_options.num_threads >= 1);
        assert_eq!(config, read(&[("PORT", ""), ("RUST_LOG", " ")]).unwrap(), "empty is unset");
    }

    #[test]
    fn every_bad_setting_is_named_at_once() {
        let error = read(&[
            ("PORT", "http"),
            ("MAX_BATCH_TOKENS", "0"),
            ("REQUEST_TIMEOUT_MS", "3600001"),
            ("MODEL_RELOAD", "poll:0s"),
            ("MAX_CACHE_BYTES", "10GB"),
            ("PRECISION", "fp8"),
            ("TRUNCATION", "middle"),
            ("LOG_FORMAT", "xml"),
        ]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "bad settings: PORT: \"http\" is not a whole number; \
             MODEL_RELOAD: \"poll:0s\" is not off, sighup or poll:30s (s, m or h); \
             MAX_CACHE_BYTES: \"10GB\" is not a whole number; \
             PRECISION: \"fp8\" is not one of f32, bf16, int8; MAX_BATCH_TOKENS: 0 is below 1; \
             TRUNCATION: \"middle\" is not one of right, left, off; \
             REQUEST_TIMEOUT_MS: 3600001 is above 3600000; \
             LOG_FORMAT: \"xml\" is not one of json, text"
        );
    }

    #[test]
    fn a_request_has_no_more_texts_than_may_wait() {
        let size = |vars: &[(&str, &str)]| read(vars).map(|config| config.max_client_batch_size);
        assert_eq!(size(&[]), Ok(32));
        assert_eq!(size(&[("MAX_QUEUE_REQUESTS", "8")]), Ok(8));
        let mistake = size(&[("MAX_QUEUE_REQUESTS", "8"), ("MAX_CLIENT_BATCH_SIZE", "9")]);
        let message = "bad settings: MAX_CLIENT_BATCH_SIZE: 9 is above MAX_QUEUE_REQUESTS, 8";
        assert_eq!(mistake.unwrap_err().to_string(), message);
    }

    #[test]
    fn there_is_room_for_one_body_at_least() {
        let bytes = |vars: &[(&str, &str)]| read(vars).map(|config| config.max_bodies_bytes);
        assert_eq!(bytes(&[]), Ok(128 << 20));
        assert_eq!(bytes(&[("MAX_BODY_BYTES", "200000000")]), Ok(200_000_000));
        let mistake = bytes(&[("MAX_BODY_BYTES", "9"), ("MAX_BODIES_BYTES", "8")]);
        let message = "bad settings: MAX_BODIES_BYTES: 8 is below MAX_BODY_BYTES, 9";
        assert_eq!(mistake.unwrap_err().to_string(), message);
    }

    #[test]
    fn models_are_reloaded_when_the_setting_says() {
        let reload = |value| read(&[("MODEL_RELOAD", value)]).map(|config| config.model_reload);
        assert_eq!(reload(""), Ok(Reload::Off));
        assert_eq!(reload("sighup"), Ok(Reload::Sighup));
        assert_eq!(reload("poll:30s"), Ok(Reload::Poll(Duration::from_secs(30))));
        assert_eq!(reload("poll:2m"), Ok(Reload::Poll(Duration::from_secs(120))));
        for mistake in
            ["on", "poll", "poll:", "poll:s", "poll:1d", "poll:-1s", "poll:169h", "poll:é"]
        {
            assert!(reload(mistake).is_err(), "{mistake}");
        }
    }

    #[test]
    fn lambda_is_recognised_by_its_runtime_api() {
        let mut vars = vec![("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")];
        let message = read(&vars).unwrap_err().to_string();
        assert!(LAMBDA_VARS.iter().all(|name| message.contains(name)), "{message}");
        vars.extend(LAMBDA_VARS.map(|name| (name, "1")));
        assert_eq!(read(&vars).unwrap().platform, Platform::Lambda);
    }

    #[test]
    fn help_names_every_setting_that_is_read() {
        for function in ["predict", "token"] {
            let read = RefCell::new(BTreeSet::new());
            let _ = Config::from_vars(function, |name| {
                read.borrow_mut().insert(name.to_owned());
                None
            });
            let mut read = read.into_inner();
            assert!(read.remove("AWS_LAMBDA_RUNTIME_API"), "Lambda sets it, nobody else");
            // Of OpenTelemetry's many the help names the usual ones.
            read.retain(|name| !name.starts_with("OTEL_"));
            let (opentelemetry, own): (BTreeSet<_>, BTreeSet<_>) = settings(function)
                .into_iter()
                .map(|setting| setting.name.to_owned())
                .partition(|name| name.starts_with("OTEL_"));
            assert_eq!(read, own);
            let help = Help(function).to_string();
            for name in read.union(&opentelemetry) {
                assert!(help.contains(&format!("  {name} ")), "{name}");
            }
        }
    }
}
