//! Who is let in, and how much: what stands between the head of a request and its handler.

use std::{net::IpAddr, sync::Arc};

use admission::{AuthError, Caller, Limiter, Proxies, Standing, Verifier};
use axum::{
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
    response::Response,
};
use telemetry::METRICS;

use crate::{
    Config, Platform,
    answer::COMPUTE_TOKENS,
    error::{ApiError, write_standing},
};

/// What is asked before anybody has a token: how things are, and how to ask.
const OPEN: [&str; 11] = [
    "/",
    "/.well-known/jwks.json",
    "/docs",
    "/health",
    "/metrics",
    "/openapi.json",
    "/ping",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}/ready",
];

/// Whether `GET path` is answered to anybody.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

/// Where a request came from, as an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Lets callers in, by the settings of a function.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    function: &'static str,
    verifier: Option<Verifier>,
    limiter: Option<Limiter>,
    trusted_proxies: Proxies,
}

/// A caller that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    caller: Caller,
    standing: Option<Standing>,
}

impl Admitted {
    /// Where the caller is, if anybody can tell.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.caller.address
    }
}

impl Gate {
    /// Connects to Redis and to the issuer of tokens in the background, if it needs them.
    pub(crate) fn new(function: &'static str, config: &Config) -> Self {
        let verifier = config.auth.clone().map(Verifier::new);
        if let Some(verifier) = &verifier {
            verifier.prefetch();
        }
        let limits = Some(&config.rate_limits).filter(|limits| !limits.is_empty());
        if limits.is_some() && config.redis.is_none() && config.platform == Platform::Lambda {
            tracing::warn!(
                "RATE_LIMITS without REDIS_URL: each environment of Lambda counts alone"
            );
        }
        let limiter =
            limits.map(|limits| Limiter::new(function, limits.clone(), config.redis.clone()));
        let trusted_proxies = config.trusted_proxies.clone();
        Self(Arc::new(Shared { function, verifier, limiter, trusted_proxies }))
    }

    /// Lets a request in, and counts it if it `counts`.
    pub(crate) async fn admit(&self, head: &Parts, counts: bool) -> Result<Admitted, ApiError> {
        let Shared { function, verifier, limiter, trusted_proxies } = &*self.0;
        let address = head.extensions.get::<Peer>().map(|Peer(peer)| {
            let forwarded = head.headers.get_all("x-forwarded-for").iter();
            trusted_proxies.sender(*peer, forwarded.filter_map(|value| value.to_str().ok()))
        });
        let caller = match verifier {
            Some(verifier) => {
                let token = bearer(&head.headers, function).inspect_err(|_| count("invalid"))?;
                let caller = verifier.authenticate(token, address).await;
                caller.map_err(|error| {
                    count(error.name());
                    if let AuthError::Invalid { reason } = error {
                        tracing::debug!(reason, "token refused");
                    }
                    ApiError::of_auth(error, function)
                })?
            }
            None => Caller::anonymous(address),
        };
        let standing = match limiter {
            Some(limiter) if counts => limiter.admit(&caller).await.map_err(ApiError::of_limit)?,
            _ => None,
        };
        Ok(Admitted { caller, standing })
    }

    /// Charges what a caller's answer took, and tells it how it stands.
    pub(crate) async fn settle(
        &self,
        admitted: Admitted,
        outcome: Result<Response, ApiError>,
    ) -> Result<Response, ApiError> {
        let Admitted { caller, standing } = admitted;
        let mut response = outcome.map_err(|error| error.with_standing(standing))?;
        write_standing(response.headers_mut(), standing);
        if let Some(limiter) = &self.0.limiter
            && limiter.counts_tokens(&caller)
            && let Some(num_tokens) = response.headers().get(COMPUTE_TOKENS)
            && let Some(num_tokens) = num_tokens.to_str().ok().and_then(|text| text.parse().ok())
        {
            limiter.charge(&caller, num_tokens).await;
        }
        Ok(response)
    }
}

fn count(reason: &str) {
    METRICS.auth_failures_total.with([reason]).add(1);
}

/// The token of `Authorization: Bearer …`.
fn bearer<'a>(headers: &'a HeaderMap, function: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::two_tokens(function));
    }
    let invalid =
        || ApiError::of_auth(AuthError::Invalid { reason: "not a bearer token" }, function);
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(invalid)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(invalid()) }
}
