//! The public keys of an issuer: fetched when they are needed, kept while the issuer cannot be reached.
//!
//! Source: RFC 7517.

use std::{
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::{Client, redirect::Policy};
use serde::Deserialize;
use serde_json::Value;
use telemetry::{Causes, trace::TraceContext, trace_context};
use tokio::sync::{Mutex, OnceCell};

use super::{
    AuthError, invalid,
    jws::{Algorithm, VerifyingKey},
};

/// How long keys are believed before they are looked up again, behind the back of whoever calls. A key
/// that the issuer has withdrawn is believed no longer than that while the issuer answers.
const FRESH: Duration = Duration::from_secs(300);

/// Least time between two fetches, however many tokens name keys that nobody knows.
const PAUSE: Duration = Duration::from_secs(10);

/// The same while no key is known at all.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest that a fetch takes, and whoever waits for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);

const MAX_SET_BYTES: usize = 256 << 10;
const MAX_KEYS: usize = 100;

/// The keys behind a URL.
#[derive(Debug)]
pub(super) struct Jwks {
    url: String,
    client: OnceCell<Client>,
    known: RwLock<Known>,
    /// Whoever holds it fetches.
    fetching: Mutex<()>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    keys: Option<Arc<Keys>>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

impl Known {
    fn may_fetch(&self) -> bool {
        let pause = if self.keys.is_some() { PAUSE } else { FIRST_PAUSE };
        self.tried.is_none_or(|tried| tried.elapsed() >= pause)
    }

    fn is_fresh(&self) -> bool {
        self.fetched.is_some_and(|fetched| fetched.elapsed() < FRESH)
    }

    fn key(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<VerifyingKey> {
        self.keys.as_ref()?.find(algorithm, kid).cloned()
    }
}

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer")]
    Http(#[from] reqwest::Error),
    #[error("the answer is over {MAX_SET_BYTES} bytes")]
    TooLarge,
    #[error("the answer is no key set")]
    NoSet(#[from] serde_json::Error),
    #[error("none of the {0} keys is of use")]
    NoKeys(usize),
}

impl Jwks {
    pub(super) fn new(url: String) -> Self {
        let known = RwLock::default();
        Self { url, client: OnceCell::new(), known, fetching: Mutex::new(()) }
    }

    /// As if `json` had just been fetched, however long ago that was.
    #[cfg(fuzzing)]
    pub(super) fn of_key_set(json: &[u8]) -> Option<Self> {
        let keys = Some(Arc::new(Keys::parse(json).ok()?));
        let always = Some(Instant::now() + Duration::from_secs(1 << 32));
        let known = RwLock::new(Known { keys, fetched: always, tried: always });
        Some(Self { known, ..Self::new(String::new()) })
    }

    /// Fetches the keys if nobody has, for the request that has its span in `trace`, if one asks.
    pub(super) async fn prefetch(self: Arc<Self>, trace: Option<TraceContext>) {
        let _turn = self.fetching.lock().await;
        if self.known().may_fetch() {
            self.fetch(trace).await;
        }
    }

    /// The key by the name of `kid`; without one, the only key of that algorithm.
    pub(super) async fn key(
        self: &Arc<Self>,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<VerifyingKey, AuthError> {
        let known = self.known();
        if let Some(key) = known.key(algorithm, kid) {
            if !known.is_fresh() && known.may_fetch() && self.fetching.try_lock().is_ok() {
                tokio::spawn(self.clone().prefetch(trace_context()));
            }
            return Ok(key);
        }
        if known.may_fetch() || self.fetching.try_lock().is_err() {
            // All who come now wait for one fetch, which goes on if they hang up.
            let _ = tokio::spawn(self.clone().prefetch(trace_context())).await;
        }
        let known = self.known();
        match known.key(algorithm, kid) {
            Some(key) => Ok(key),
            None if known.keys.is_none() => Err(AuthError::KeysUnavailable),
            None => Err(invalid("its key is unknown")),
        }
    }

    fn known(&self) -> Known {
        self.known.read().map(|known| known.clone()).unwrap_or_default()
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        if let Ok(mut known) = self.known.write() {
            change(&mut known);
        }
    }

    async fn fetch(&self, trace: Option<TraceContext>) {
        self.note(|known| known.tried = Some(Instant::now()));
        match tokio::time::timeout(FETCH_TIMEOUT, self.download(trace)).await {
            Ok(Ok(keys)) => self.note(|known| {
                known.fetched = Some(Instant::now());
                known.keys = Some(Arc::new(keys));
            }),
            Ok(Err(error)) => {
                tracing::warn!(exception = %Causes(&error), url = self.url, "no key set");
            }
            Err(_) => tracing::warn!(url = self.url, "no key set in time"),
        }
    }

    async fn download(&self, trace: Option<TraceContext>) -> Result<Keys, FetchError> {
        let client = self.client.get_or_try_init(async || {
            // One provider of cryptography for the process; a second call changes nothing.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Client::builder().redirect(Policy::none()).build()
        });
        let mut request = client.await?.get(&self.url);
        if let Some(trace) = trace {
            request = request.header("traceparent", trace.to_string());
        }
        let mut response = request.send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_SET_BYTES {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Keys::parse(&body)
    }
}

/// A key set.
#[derive(Debug, Default)]
struct Keys(Vec<(Option<String>, VerifyingKey)>);

impl Keys {
    fn parse(json: &[u8]) -> Result<Self, FetchError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let Set { keys } = serde_json::from_slice(json)?;
        // A set may have keys for other ends; those are no reason to refuse it.
        let usable = keys.iter().take(MAX_KEYS).filter_map(|key| Jwk::deserialize(key).ok()?.key());
        let usable: Vec<_> = usable.collect();
        if usable.is_empty() { Err(FetchError::NoKeys(keys.len())) } else { Ok(Self(usable)) }
    }

    fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&VerifyingKey> {
        let mut keys = self.0.iter().filter(|(_, key)| key.algorithm() == algorithm);
        match kid {
            Some(_) => keys.find(|(name, _)| name.as_deref() == kid).map(|(_, key)| key),
            None => keys.next().filter(|_| keys.next().is_none()).map(|(_, key)| key),
        }
    }
}

/// A key as a set writes it.
#[derive(Debug, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// Its name and the key, if it checks signatures by an algorithm of ours. A shared secret (`oct`)
    /// never does: whoever can read the set could sign with it.
    fn key(self) -> Option<(Option<String>, VerifyingKey)> {
        let bytes = |base64: Option<String>| BASE64_URL_SAFE_NO_PAD.decode(base64?).ok();
        let key = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", _) => VerifyingKey::Rs256 { n: bytes(self.n)?, e: bytes(self.e)? },
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(self.x)?, bytes(self.y)?);
                VerifyingKey::Es256([&[4], &x[..], &y[..]].concat())
            }
            ("OKP", Some("Ed25519")) => VerifyingKey::EdDsa(bytes(self.x)?),
            _ => return None,
        };
        let is_for_signatures = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        let is_for_algorithm = self
            .alg
            .as_deref()
            .is_none_or(|name| Algorithm::from_name(name) == Some(key.algorithm()));
        (is_for_signatures && is_for_algorithm).then_some((self.kid, key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(set: Value) -> Vec<Option<String>> {
        let keys = Keys::parse(set.to_string().as_bytes()).unwrap_or_default();
        keys.0.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_public_keys_for_our_algorithms_are_taken() {
        let okp = |more: Value| {
            let mut key = json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "a" });
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            key
        };
        let none: [Option<String>; 0] = [];
        assert_eq!(names(json!({ "keys": [okp(json!({}))] })), [Some("a".to_owned())]);
        assert_eq!(
            names(json!({ "keys": [okp(json!({ "alg": "EdDSA", "use": "sig" }))] })).len(),
            1
        );
        for key in [
            okp(json!({ "use": "enc" })),
            okp(json!({ "alg": "HS256" })),
            okp(json!({ "alg": "RS256" })),
            okp(json!({ "crv": "X25519" })),
            okp(json!({ "x": "A" })),
            okp(json!({ "kid": 7 })),
            json!({ "kty": "oct", "k": "AAAA", "kid": "a" }),
            json!({ "kty": "RSA", "n": "AA" }),
            json!({ "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA" }),
            json!("AAAA"),
        ] {
            assert_eq!(names(json!({ "keys": [key] })), none, "{key}");
        }
    }

    #[test]
    fn a_token_without_a_name_gets_the_only_key() {
        let key = |kid, crv| json!({ "kty": "OKP", "crv": crv, "x": "AA", "kid": kid });
        let parse = |set: Value| Keys::parse(set.to_string().as_bytes()).unwrap();
        let one = parse(json!({ "keys": [key("a", "Ed25519"), key("b", "X25519")] }));
        assert!(one.find(Algorithm::EdDsa, None).is_some());
        assert!(one.find(Algorithm::Rs256, Some("a")).is_none());
        let two = parse(json!({ "keys": [key("a", "Ed25519"), key("b", "Ed25519")] }));
        assert!(two.find(Algorithm::EdDsa, None).is_none());
        assert!(two.find(Algorithm::EdDsa, Some("b")).is_some());
    }
}
