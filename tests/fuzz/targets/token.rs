//! Tokens, what they claim, and the key sets of their issuers.
//!
//! The first line of a seed says what the rest is: `token`; `claims`, which the target signs, after
//! a line of its header; or `keys`.

#![no_main]

use std::{sync::LazyLock, time::Duration};

use admission::{AuthOptions, Verifier};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use libfuzzer_sys::{Corpus, fuzz_target};
use ring::hmac;
use telemetry::Secret;
use tokio::runtime::{Builder, Runtime};

const SECRET: &str = "a secret that no input can know, since it is in no seed";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static BY_SECRET: LazyLock<Verifier> = LazyLock::new(|| {
    Verifier::new(AuthOptions {
        secrets: vec![Secret::new(SECRET.to_owned())],
        leeway: Duration::from_secs(5),
        ..AuthOptions::default()
    })
});

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return Corpus::Reject };
    let (kind, rest) = (&input[..end], &input[end + 1..]);
    match kind {
        b"token" => refuse(rest),
        b"claims" => claim(rest),
        b"keys" => know(rest),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

/// Nobody has signed it.
fn refuse(token: &[u8]) {
    let Ok(token) = str::from_utf8(token) else { return };
    let outcome = RUNTIME.block_on(BY_SECRET.authenticate(Some(token), None));
    assert!(outcome.is_err(), "{token:?} was taken");
}

/// Whatever it claims is signed. A change to what was signed is a forgery.
fn claim(parts: &[u8]) {
    let Some(end) = parts.iter().position(|byte| *byte == b'\n') else { return };
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", part(&parts[..end]), part(&parts[end + 1..]));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hmac::sign(&key, message.as_bytes());
    let token = format!("{message}.{}", part(signature.as_ref()));
    let authenticate = |token: &str| RUNTIME.block_on(BY_SECRET.authenticate(Some(token), None));
    let Ok(caller) = authenticate(&token) else { return };
    assert!(caller.subject.is_some_and(|subject| !subject.is_empty()), "nobody was let in");

    let place = token.len() / 2 - usize::from(token.as_bytes()[token.len() / 2] == b'.');
    let other = if token.as_bytes()[place] == b'A' { "B" } else { "A" };
    let mut forged = token.clone();
    forged.replace_range(place..=place, other);
    assert!(authenticate(&forged).is_err(), "{forged} was taken");
}

/// A key set lets in nobody who has not signed.
fn know(key_set: &[u8]) {
    let Some(verifier) = Verifier::of_key_set(key_set) else { return };
    for algorithm in ["RS256", "ES256", "EdDSA", "HS256", "none"] {
        for kid in ["", r#","kid":"k""#] {
            let header = format!(r#"{{"alg":"{algorithm}"{kid}}}"#);
            let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
            let claims = part(r#"{"sub":"ada","role":"user","exp":99999999999}"#);
            let token = format!("{}.{claims}.{}", part(&header), part(&"s".repeat(64)));
            let outcome = RUNTIME.block_on(verifier.authenticate(Some(&token), None));
            assert!(outcome.is_err(), "{token} was taken");
        }
    }
}
