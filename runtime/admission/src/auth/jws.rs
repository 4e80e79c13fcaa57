//! Signed tokens in their compact form, `header.payload.signature`, each part in base64url.
//!
//! Source: RFC 7515 (signatures), RFC 7518 (algorithms), RFC 8037 (Ed25519).

use std::fmt;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    hmac,
    signature::{self, RsaPublicKeyComponents, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use telemetry::Secret;

use super::{AuthError, Claims, invalid};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Longest name of a key, in bytes.
const MAX_KID_BYTES: usize = 256;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    /// By its name in a header or a key set.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "HS256" => Some(Self::Hs256),
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// A token taken apart. Nothing in it is true before a key has been found to have signed it.
#[derive(Debug)]
pub(super) struct Jws<'a> {
    pub(super) algorithm: Algorithm,
    kid: Option<String>,
    /// What is signed.
    message: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, AuthError> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: Option<String>,
            crit: Option<IgnoredAny>,
        }

        if token.len() > MAX_TOKEN_BYTES {
            return Err(invalid("too long"));
        }
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            Some((message, header, payload, signature))
        });
        let Some((message, header, payload, signature)) = parts else {
            return Err(invalid("not three parts"));
        };
        let header: Header = json(header).ok_or(invalid("unreadable header"))?;
        if header.crit.is_some() {
            return Err(invalid("asks for an extension"));
        }
        if header.kid.as_ref().is_some_and(|kid| kid.len() > MAX_KID_BYTES) {
            return Err(invalid("the name of its key is too long"));
        }
        let algorithm = Algorithm::from_name(&header.alg).ok_or(invalid("unknown algorithm"))?;
        let signature = decode(signature).ok_or(invalid("unreadable signature"))?;
        Ok(Self { algorithm, kid: header.kid, message, payload, signature })
    }

    /// The name of the key that is said to have signed it.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What it says. Only after a key was found to have signed it.
    pub(super) fn claims(&self) -> Result<Claims, AuthError> {
        json(self.payload).ok_or(invalid("unreadable claims"))
    }
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(base64).ok()
}

/// An object, all of it UTF-8. By itself, Serde takes an array as the fields of a struct, one by
/// one, and any bytes where it reads nothing.
fn json<T: for<'de> Deserialize<'de>>(base64: &str) -> Option<T> {
    let json = String::from_utf8(decode(base64)?).ok()?;
    if !json.trim_ascii_start().starts_with('{') {
        return None;
    }
    serde_json::from_str(&json).ok()
}

/// `bytes` as tokens and key sets write them.
pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Checks signatures of one algorithm.
#[derive(Clone)]
pub(super) enum VerifyingKey {
    Hs256(hmac::Key),
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, uncompressed.
    Es256(Vec<u8>),
    EdDsa(Vec<u8>),
}

impl VerifyingKey {
    pub(super) fn hs256(secret: &Secret) -> Self {
        Self::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()))
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hs256(_) => Algorithm::Hs256,
            Self::Rs256 { .. } => Algorithm::Rs256,
            Self::Es256(_) => Algorithm::Es256,
            Self::EdDsa(_) => Algorithm::EdDsa,
        }
    }

    /// Whether `jws` is of this key's algorithm and by this key.
    pub(super) fn has_signed(&self, jws: &Jws<'_>) -> bool {
        let (message, signature) = (jws.message.as_bytes(), &jws.signature[..]);
        let outcome = match self {
            _ if jws.algorithm != self.algorithm() => return false,
            Self::Hs256(key) => hmac::verify(key, message, signature),
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &signature::RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            Self::Es256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, signature)
            }
            Self::EdDsa(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
        };
        outcome.is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifyingKey").field(&self.algorithm()).finish()
    }
}

/// The first part of a token that we sign.
#[derive(Debug, Serialize)]
pub(crate) struct Header<'a> {
    pub(crate) alg: &'static str,
    pub(crate) typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kid: Option<&'a str>,
}

/// A token with `claims`, signed by `sign`.
pub(crate) fn encode(
    header: &Header<'_>,
    claims: &impl Serialize,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> String {
    // Structs of strings and numbers, which JSON can always write.
    let part = |part: serde_json::Result<Vec<u8>>| base64(&part.unwrap_or_default());
    let header = part(serde_json::to_vec(header));
    let message = format!("{header}.{}", part(serde_json::to_vec(claims)));
    let signature = base64(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}
