use std::fmt;

use ring::{
    digest, hmac,
    rand::SystemRandom,
    rsa,
    signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use telemetry::Secret;

use super::IssuerError;
use crate::auth::base64;

/// Most keys that are read.
const MAX_KEYS: usize = 16;

/// Signs by one algorithm.
pub(super) enum SigningKey {
    Hs256(hmac::Key),
    Rs256 { pair: Box<rsa::KeyPair>, kid: String },
    EdDsa { pair: Ed25519KeyPair, kid: String },
}

impl SigningKey {
    pub(super) fn hs256(secret: &Secret) -> Self {
        Self::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()))
    }

    /// Of a private key in DER.
    fn from_der(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let bytes = der.secret_der();
        if let PrivateKeyDer::Pkcs8(_) = der
            // Files of OpenSSL leave the public half out.
            && let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes)
        {
            let kid = thumbprint(&okp(&pair));
            return Some(Self::EdDsa { pair, kid });
        }
        let pair = match der {
            PrivateKeyDer::Pkcs8(_) => rsa::KeyPair::from_pkcs8(bytes).ok()?,
            PrivateKeyDer::Pkcs1(_) => rsa::KeyPair::from_der(bytes).ok()?,
            _ => return None,
        };
        let kid = thumbprint(&rsa_public(&pair));
        Some(Self::Rs256 { pair: Box::new(pair), kid })
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Rs256 { .. } => "RS256",
            Self::EdDsa { .. } => "EdDSA",
        }
    }

    /// The name under which it is published.
    pub(super) fn kid(&self) -> Option<&str> {
        match self {
            Self::Hs256(_) => None,
            Self::Rs256 { kid, .. } | Self::EdDsa { kid, .. } => Some(kid),
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Hs256(key) => hmac::sign(key, message).as_ref().to_vec(),
            Self::EdDsa { pair, .. } => pair.sign(message).as_ref().to_vec(),
            Self::Rs256 { pair, .. } => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed =
                    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
                // It fails without randomness only; what is not signed, nobody takes.
                if signed.is_err() {
                    signature.clear();
                }
                signature
            }
        }
    }

    /// The public half; a shared secret has none.
    fn public(&self) -> Option<Value> {
        let mut jwk = match self {
            Self::Hs256(_) => return None,
            Self::Rs256 { pair, .. } => rsa_public(pair),
            Self::EdDsa { pair, .. } => okp(pair),
        };
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm().into();
        jwk["kid"] = self.kid().into();
        Some(jwk)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.algorithm()).finish()
    }
}

fn okp(pair: &Ed25519KeyPair) -> Value {
    json!({ "crv": "Ed25519", "kty": "OKP", "x": base64(pair.public_key().as_ref()) })
}

fn rsa_public(pair: &rsa::KeyPair) -> Value {
    let components: rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
    json!({ "e": base64(&components.e), "kty": "RSA", "n": base64(&components.n) })
}

/// The name of a public key: a digest of its members in the order of their names, as RFC 7638 says.
fn thumbprint(jwk: &Value) -> String {
    base64(digest::digest(&digest::SHA256, jwk.to_string().as_bytes()).as_ref())
}

/// The keys of a PEM file.
pub(super) fn read(pem: &Secret) -> Result<Vec<SigningKey>, IssuerError> {
    let ders = PrivateKeyDer::pem_slice_iter(pem.expose().as_bytes()).take(MAX_KEYS).enumerate();
    let key = |(index, der): (usize, Result<PrivateKeyDer<'_>, _>)| {
        der.ok().and_then(|der| SigningKey::from_der(&der)).ok_or(IssuerError::BadKey(index + 1))
    };
    let keys = ders.map(key).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(IssuerError::NoKey) } else { Ok(keys) }
}

/// The set of the public halves of `keys`.
pub(super) fn jwks(keys: &[SigningKey]) -> String {
    let keys: Vec<Value> = keys.iter().filter_map(SigningKey::public).collect();
    json!({ "keys": keys }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbprint_is_that_of_the_standard() {
        // RFC 8037, appendix A.3.
        let jwk = json!({
            "crv": "Ed25519", "kty": "OKP", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        });
        assert_eq!(thumbprint(&jwk), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn what_is_no_key_is_told_by_its_number() {
        let read = |pem: &str| read(&Secret::new(pem.to_owned())).map(|keys| keys.len());
        assert_eq!(read(""), Err(IssuerError::NoKey));
        assert_eq!(
            read("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            Err(IssuerError::BadKey(1))
        );
    }
}
