//! Who issues tokens: [`Users`] know passwords, an [`Issuer`] signs.

mod keys;
mod users;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telemetry::Secret;

use self::keys::SigningKey;
pub use self::users::{User, Users, UsersError, hash_password};
use crate::auth::{Audience, Claims, Header, Name, encode};

/// What an issuer signs with, and what its tokens say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IssuerOptions {
    /// Shared with all who check tokens.
    pub secret: Option<Secret>,
    /// PEM. The first key signs; all are published, so that tokens of those before it hold on.
    pub private_keys: Option<Secret>,
    /// What `iss` says.
    pub issuer: Option<String>,
    /// What `aud` says.
    pub audience: Option<String>,
    /// How long a token holds.
    pub lifetime: Duration,
}

/// Keys that cannot sign.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// There is none.
    #[error("there is no key in it, in PEM")]
    NoKey,
    /// It is of another kind; the first one counts as 1.
    #[error("key {0} is neither Ed25519 nor RSA of 2048 to 4096 bits, not encrypted")]
    BadKey(usize),
}

/// Signs tokens.
#[derive(Debug)]
pub struct Issuer {
    key: SigningKey,
    jwks: String,
    issuer: Option<String>,
    audience: Option<String>,
    lifetime: Duration,
}

/// A token that was issued.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// How long it holds.
    pub lifetime: Duration,
}

impl Issuer {
    /// Signs as `options` say: with the private key, if there is one.
    ///
    /// # Errors
    ///
    /// [`IssuerError`].
    pub fn new(options: &IssuerOptions) -> Result<Self, IssuerError> {
        let mut keys = match (&options.private_keys, &options.secret) {
            (Some(pem), _) => keys::read(pem)?,
            (None, Some(secret)) => vec![SigningKey::hs256(secret)],
            (None, None) => return Err(IssuerError::NoKey),
        };
        let jwks = keys::jwks(&keys);
        let IssuerOptions { issuer, audience, lifetime, .. } = options.clone();
        Ok(Self { key: keys.remove(0), jwks, issuer, audience, lifetime })
    }

    /// A token that says that `subject` has `role`, from now on.
    #[must_use]
    pub fn issue(&self, subject: &str, role: &str) -> Issued {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            sub: Some(Name::Text(subject.to_owned())),
            user_id: None,
            role: Some(role.to_owned()),
            iss: self.issuer.clone(),
            aud: self.audience.clone().map(Audience::One),
            iat: Some(now.into()),
            nbf: None,
            exp: (now + self.lifetime.as_secs()).into(),
        };
        let header = Header { alg: self.key.algorithm(), typ: "JWT", kid: self.key.kid() };
        let token = encode(&header, &claims, |message| self.key.sign(message));
        Issued { token, lifetime: self.lifetime }
    }

    /// The public keys, as RFC 7517 writes a set.
    #[must_use]
    pub fn jwks(&self) -> &str {
        &self.jwks
    }
}
