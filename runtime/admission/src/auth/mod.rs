//! Who calls: from a bearer token to a [`Caller`].

mod claims;
mod jwks;
mod jws;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use telemetry::Secret;

use self::{
    claims::Rules,
    jwks::Jwks,
    jws::{Algorithm, Jws, VerifyingKey},
};
pub(crate) use self::{
    claims::{Audience, Claims, Name},
    jws::{Header, base64, encode},
};

/// The role of whoever sends no token.
pub const ANONYMOUS: &str = "anonymous";

/// Whose tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuthOptions {
    /// Shared with whoever issues tokens; any of them may have signed one.
    pub secrets: Vec<Secret>,
    /// Where the issuer publishes its public keys.
    pub jwks_url: Option<String>,
    /// What `iss` has to be.
    pub issuer: Option<String>,
    /// What has to be in `aud`.
    pub audience: Option<String>,
    /// How far clocks may be apart.
    pub leeway: Duration,
    /// Roles that may call, [`ANONYMOUS`] among them if no token is needed; `None`: all that have a
    /// token.
    pub allowed_roles: Option<Vec<String>>,
}

/// Whoever calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As the token names it; `None` without one.
    pub subject: Option<String>,
    /// As the token says; empty if it says nothing, [`ANONYMOUS`] without one.
    pub role: String,
    /// Where the request came from; `None` if nobody can tell.
    pub address: Option<IpAddr>,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The caller has to send a token.
    #[error("send a token: authorization: Bearer …")]
    Missing,
    /// The caller has to get a new token.
    #[error("token expired")]
    Expired,
    /// The caller has no token of ours; `reason` is for the log.
    #[error("invalid token")]
    Invalid {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The caller's role may not call this.
    #[error("this role may not call this function")]
    Forbidden,
    /// The issuer's keys cannot be had; the caller may come back.
    #[error("the keys of the issuer cannot be fetched")]
    KeysUnavailable,
}

impl AuthError {
    /// As a metric calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Invalid { .. } => "invalid",
            Self::Forbidden => "forbidden",
            Self::KeysUnavailable => "keys_unavailable",
        }
    }
}

const fn invalid(reason: &'static str) -> AuthError {
    AuthError::Invalid { reason }
}

/// Tells callers by their tokens.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    secrets: Vec<VerifyingKey>,
    jwks: Option<Arc<Jwks>>,
    rules: Rules,
    allowed_roles: Option<Vec<String>>,
}

impl Verifier {
    /// Takes tokens as `options` say.
    #[must_use]
    pub fn new(options: AuthOptions) -> Self {
        let AuthOptions { secrets, jwks_url, issuer, audience, leeway, allowed_roles } = options;
        Self(Arc::new(Shared {
            secrets: secrets.iter().map(VerifyingKey::hs256).collect(),
            jwks: jwks_url.map(|url| Arc::new(Jwks::new(url))),
            rules: Rules { issuer, audience, leeway },
            allowed_roles,
        }))
    }

    /// Takes tokens as `options` say, and by the keys of `json` if that is a key set: for `tests/fuzz`.
    #[cfg(fuzzing)]
    pub fn with_key_set(options: AuthOptions, json: &[u8]) -> Option<Self> {
        let mut verifier = Self::new(options);
        Arc::get_mut(&mut verifier.0)?.jwks = Some(Arc::new(Jwks::of_key_set(json)?));
        Some(verifier)
    }

    /// Begins to fetch the issuer's keys, if it has to, so that the first caller need not wait.
    pub fn prefetch(&self) {
        if let Some(jwks) = &self.0.jwks {
            tokio::spawn(jwks.clone().prefetch(None));
        }
    }

    /// Who sends `token`, or sends none, from `address`.
    ///
    /// # Errors
    ///
    /// [`AuthError`].
    pub async fn authenticate(
        &self,
        token: Option<&str>,
        address: Option<IpAddr>,
    ) -> Result<Caller, AuthError> {
        let Some(token) = token else {
            let anonymous = self.0.allowed_roles.as_deref().unwrap_or_default();
            return match anonymous.iter().any(|role| role == ANONYMOUS) {
                true => Ok(Caller::anonymous(address)),
                false => Err(AuthError::Missing),
            };
        };
        let jws = Jws::parse(token)?;
        self.check_signature(&jws).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (subject, role) = self.0.rules.check(jws.claims()?, now)?;
        if self.0.allowed_roles.as_ref().is_some_and(|roles| !roles.contains(&role)) {
            return Err(AuthError::Forbidden);
        }
        Ok(Caller { subject: Some(subject), role, address })
    }

    /// Whether a key of ours has signed `jws`, by the algorithm of that key.
    async fn check_signature(&self, jws: &Jws<'_>) -> Result<(), AuthError> {
        let signed = match (jws.algorithm, &self.0.jwks) {
            (Algorithm::Hs256, _) => self.0.secrets.iter().any(|secret| secret.has_signed(jws)),
            (_, Some(jwks)) => jwks.key(jws.algorithm, jws.kid()).await?.has_signed(jws),
            (_, None) => return Err(invalid("signed with a private key, and no key set is known")),
        };
        if signed { Ok(()) } else { Err(invalid("not signed by a key of ours")) }
    }
}

impl Caller {
    /// Whoever calls from `address` without a token.
    #[must_use]
    pub fn anonymous(address: Option<IpAddr>) -> Self {
        Self { subject: None, role: ANONYMOUS.to_owned(), address }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "a secret of at least thirty-two bytes";

    fn verifier(allowed_roles: Option<&[&str]>) -> Verifier {
        Verifier::new(AuthOptions {
            secrets: vec![Secret::new(SECRET.to_owned())],
            leeway: Duration::from_secs(5),
            allowed_roles: allowed_roles
                .map(|roles| roles.iter().map(ToString::to_string).collect()),
            ..AuthOptions::default()
        })
    }

    fn token(claims: &Value) -> String {
        encode(&Header { alg: "HS256", typ: "JWT", kid: None }, claims, sign)
    }

    fn sign(message: &[u8]) -> Vec<u8> {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        ring::hmac::sign(&key, message).as_ref().to_vec()
    }

    async fn authenticate(verifier: &Verifier, token: &str) -> Result<Caller, AuthError> {
        verifier.authenticate(Some(token), None).await
    }

    #[tokio::test]
    async fn a_token_tells_who_calls() {
        let token = token(&json!({ "sub": "ada", "role": "premium", "exp": 4_000_000_000_u64 }));
        let caller = authenticate(&verifier(None), &token).await.unwrap();
        let (subject, role) = (Some("ada".to_owned()), "premium".to_owned());
        assert_eq!(caller, Caller { subject, role, address: None });
    }

    #[tokio::test]
    async fn only_roles_that_are_allowed_call() {
        let verifier = verifier(Some(&["premium"]));
        let with_role = |role| token(&json!({ "sub": "ada", "role": role, "exp": 4e9 }));
        assert!(authenticate(&verifier, &with_role("premium")).await.is_ok());
        for role in ["user", "Premium", "", "anonymous"] {
            let refusal = authenticate(&verifier, &with_role(role)).await;
            assert_eq!(refusal, Err(AuthError::Forbidden), "{role}");
        }
        assert_eq!(verifier.authenticate(None, None).await, Err(AuthError::Missing));
    }

    #[tokio::test]
    async fn no_token_is_needed_where_anonymous_is_a_role() {
        let address = Some(IpAddr::from([192, 0, 2, 7]));
        let caller = verifier(Some(&["user", ANONYMOUS])).authenticate(None, address).await;
        assert_eq!(caller, Ok(Caller::anonymous(address)));
        // A bad token is not the same as none.
        let refusal = authenticate(&verifier(Some(&[ANONYMOUS])), "x.y.z").await;
        assert!(matches!(refusal, Err(AuthError::Invalid { .. })));
    }

    #[tokio::test]
    async fn whatever_is_not_signed_by_a_key_of_ours_is_refused() {
        let good = token(&json!({ "sub": "ada", "exp": 4e9 }));
        let (message, signature) = good.rsplit_once('.').unwrap();
        let header = |header: &str| {
            let payload = message.split_once('.').unwrap().1;
            format!("{}.{payload}.{signature}", jws::base64(header.as_bytes()))
        };
        let cases = [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            message.to_owned(),
            format!("{message}."),
            format!("{good}."),
            format!("{good}="),
            format!(" {good}"),
            good[..good.len() - 1].to_owned(),
            header(r#"{"alg":"none"}"#),
            header(r#"{"alg":"hs256"}"#),
            header(r#"{"alg":"RS256"}"#),
            header(r#"{"alg":"HS256","typ":"jwt"}"#),
            header(r#"{"alg":"HS256","alg":"HS256"}"#),
            header(r#"{"alg":"HS256","crit":["exp"]}"#),
            header("[]"),
        ];
        let verifier = verifier(None);
        assert!(authenticate(&verifier, &good).await.is_ok());
        for token in cases {
            let refusal = authenticate(&verifier, &token).await;
            assert!(matches!(refusal, Err(AuthError::Invalid { .. })), "{token}: {refusal:?}");
        }
    }

    #[tokio::test]
    async fn header_and_claims_are_objects() {
        let signed = |header: &[u8], claims: &[u8]| {
            let message = [header, claims].map(base64).join(".");
            format!("{message}.{}", base64(&sign(message.as_bytes())))
        };
        let (header, claims) = (br#"{"alg":"HS256"}"#, br#" {"sub":"ada","exp":4e9}"#);
        let verifier = verifier(None);
        assert!(authenticate(&verifier, &signed(header, claims)).await.is_ok());
        // The same, as Serde would take it.
        let refused = [
            signed(br#"["HS256",null,null]"#, claims),
            signed(header, br#"["ada",null,null,null,null,null,null,4e9]"#),
            signed(b"{\"alg\":\"HS256\",\"x\":\"\xff\"}", claims),
            signed(header, b"{\"sub\":\"ada\",\"exp\":4e9,\"x\":\"\xff\"}"),
        ];
        for token in refused {
            let refusal = authenticate(&verifier, &token).await;
            assert!(matches!(refusal, Err(AuthError::Invalid { .. })), "{token}: {refusal:?}");
        }
    }
}
