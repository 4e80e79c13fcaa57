//! Tokens, what they claim, and the key sets of their issuers.
//!
//! The first line of a seed says what the rest is: `token`; `claims`, which the target signs, after
//! a line of its header; or `keys`.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use admission::{AuthError, AuthOptions, Caller, Verifier};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use libfuzzer_sys::{Corpus, fuzz_target};
use ring::hmac;
use serde_json::Value;
use telemetry::Secret;
use tokio::runtime::{Builder, Runtime};

const SECRET: &str = "the secret of the tokens in tests/fuzz, and of nothing else";
const LEEWAY: Duration = Duration::from_secs(5);

/// The only tokens that anybody has signed, and the keys to check them with; the private ones are
/// gone.
const GENUINE: [&str; 4] = [
    include_str!("../seeds/token/token-hs256"),
    include_str!("../seeds/token/token-rs256"),
    include_str!("../seeds/token/token-es256"),
    include_str!("../seeds/token/token-eddsa"),
];
const KEY_SET: &str = include_str!("../seeds/token/keys-all");

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let (_, keys) = KEY_SET.split_once('\n').expect("a key set");
    let verifier = verifier(keys.as_bytes()).expect("a key set");
    for token in genuine() {
        authenticate(&verifier, token).expect("a genuine token");
    }
    verifier
});

fuzz_target!(|input: &[u8]| -> Corpus {
    match split(input) {
        Some((b"token", token)) => refuse(token),
        Some((b"claims", parts)) => claim(parts),
        Some((b"keys", keys)) => know(keys),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

/// The first line, and what comes after it.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((&input[..end], &input[end + 1..]))
}

fn verifier(keys: &[u8]) -> Option<Verifier> {
    let secrets = vec![Secret::new(SECRET.to_owned())];
    Verifier::with_key_set(AuthOptions { secrets, leeway: LEEWAY, ..AuthOptions::default() }, keys)
}

fn authenticate(verifier: &Verifier, token: &str) -> Result<Caller, AuthError> {
    RUNTIME.block_on(verifier.authenticate(Some(token), None))
}

fn genuine() -> impl Iterator<Item = &'static str> {
    GENUINE.iter().filter_map(|seed| seed.strip_prefix("token\n"))
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Nobody has signed it, unless it is one of ours to the last bit.
fn refuse(token: &[u8]) {
    let Ok(token) = str::from_utf8(token) else { return };
    let is_genuine = genuine().any(|genuine| genuine == token);
    assert_eq!(authenticate(&VERIFIER, token).is_ok(), is_genuine, "{token:?}");
}

/// Whatever it claims is signed. It lets in whom it names, while it holds; a change to it nobody.
fn claim(parts: &[u8]) {
    let Some((header, claims)) = split(parts) else { return };
    let message = format!("{}.{}", base64(header), base64(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let token = format!("{message}.{}", base64(hmac::sign(&key, message.as_bytes())));
    let Ok(caller) = authenticate(&VERIFIER, &token) else { return };

    let [header, claims]: [Value; 2] =
        [header, claims].map(|part| serde_json::from_slice(part).expect("JSON"));
    let of = |name: &str| claims.get(name).filter(|value| !value.is_null());
    assert_eq!(header["alg"], "HS256");
    assert!(header["crit"].is_null() && of("aud").is_none(), "{header} {claims}");
    let subject = of("sub").or(of("user_id")).map(|subject| match subject {
        Value::String(text) => text.clone(),
        number => number.to_string(),
    });
    assert!(subject.as_ref().is_some_and(|subject| !subject.is_empty()), "{claims}");
    assert_eq!(caller.subject, subject);
    assert_eq!(caller.role, of("role").and_then(Value::as_str).unwrap_or_default());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let secs = |name: &str| of(name).and_then(Value::as_f64);
    assert!(secs("exp").is_some_and(|exp| now < exp + LEEWAY.as_secs_f64()), "{claims}");
    assert!(secs("nbf").is_none_or(|nbf| nbf <= now + LEEWAY.as_secs_f64()), "{claims}");

    let place = parts.iter().map(|byte| usize::from(*byte)).sum::<usize>() % token.len();
    let mut forged = token.into_bytes();
    forged[place] ^= 1;
    let forged = String::from_utf8(forged).expect("ASCII");
    assert!(authenticate(&VERIFIER, &forged).is_err(), "{forged} was taken");
}

/// A key set lets in nobody who has not signed.
fn know(keys: &[u8]) {
    let Some(verifier) = verifier(keys) else { return };
    for token in genuine() {
        let _ = authenticate(&verifier, token);
    }
    let claims = base64(r#"{"sub":"ada","role":"user","exp":99999999999}"#);
    for (algorithm, num_bytes) in
        [("RS256", 256), ("ES256", 64), ("EdDSA", 64), ("HS256", 32), ("none", 0)]
    {
        let signature = base64(vec![1; num_bytes]);
        for kid in ["", r#","kid":"RS256""#, r#","kid":"ES256""#, r#","kid":"EdDSA""#] {
            let header = base64(format!(r#"{{"alg":"{algorithm}"{kid}}}"#));
            let token = format!("{header}.{claims}.{signature}");
            assert!(authenticate(&verifier, &token).is_err(), "{token} was taken");
        }
    }
}
