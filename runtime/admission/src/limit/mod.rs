//! How much a caller may do: windows that slide, in this process or in Redis.

mod memory;
mod rates;
mod redis;
mod window;

use std::{sync::Arc, time::Duration};

use ring::digest::{Context, SHA256};
use telemetry::METRICS;

use self::{
    memory::Memory,
    rates::{MAX_COUNT, Rate},
    redis::Redis,
    window::{Decision, Use},
};
pub use self::{
    rates::{RateLimits, RatesError, Unit},
    redis::{RedisError, RedisOptions},
};
use crate::{Caller, address::subscriber};

/// Whose windows they are: a digest, so that neither this process nor Redis holds names.
type Key = [u8; 16];

/// What becomes of callers while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisFailure {
    /// This process counts by itself.
    Local,
    /// All may call.
    Allow,
    /// Nobody may.
    Deny,
}

/// How a caller stands, by the limit that it is closest to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is counted.
    pub unit: Unit,
    /// Most of it in one window.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Until more is left.
    pub reset: Duration,
}

/// Why a caller may not do more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The caller has to wait.
    #[error("the limit of {} {} is reached", .standing.limit, .standing.unit.name())]
    Exceeded {
        /// How it stands.
        standing: Standing,
        /// Until one more is within all limits.
        retry_after: Duration,
    },
    /// Redis does not answer, and nobody may call without it.
    #[error("the limits cannot be looked up")]
    Unavailable,
}

/// Counts what callers do.
#[derive(Debug, Clone)]
pub struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whose limits they are; callers of another name are others.
    name: String,
    rates: RateLimits,
    memory: Memory,
    redis: Option<Redis>,
    failure: RedisFailure,
}

impl Limiter {
    /// Counts in Redis if there is one, under `name`; functions of one name share their limits.
    ///
    /// Connects in the background: only within a runtime of tokio.
    #[must_use]
    pub fn new(name: &str, rates: RateLimits, redis: Option<RedisOptions>) -> Self {
        let memory = Memory::new(rates.longest_window());
        let failure = redis.as_ref().map_or(RedisFailure::Local, |options| options.failure);
        let redis = redis.map(Redis::start);
        for role in rates.roles() {
            METRICS.rate_limited_total.with([role]);
        }
        Self(Arc::new(Shared { name: name.to_owned(), rates, memory, redis, failure }))
    }

    /// Counts a request of `caller`, if it is within its limits; `None` if it has none, or if they
    /// cannot be looked up and need not be.
    ///
    /// # Errors
    ///
    /// [`LimitError`].
    pub async fn admit(&self, caller: &Caller) -> Result<Option<Standing>, LimitError> {
        let rates = self.0.rates.of(&caller.role);
        let cost = |rate: &Rate| u64::from(rate.unit == Unit::Requests);
        let Some(decision) = self.take(caller, rates, cost, false).await? else { return Ok(None) };
        let of_each = || rates.iter().zip(&decision.uses);
        let standing = |(rate, of): (&Rate, &Use)| Standing {
            unit: rate.unit,
            limit: rate.count,
            remaining: rate.count.saturating_sub(of.used),
            reset: of.reset,
        };
        if decision.counted {
            let share = |standing: &Standing| standing.remaining as f64 / standing.limit as f64;
            let closest = of_each().map(standing).min_by(|a, b| share(a).total_cmp(&share(b)));
            return Ok(closest);
        }
        METRICS.rate_limited_total.with([self.0.rates.listed(&caller.role)]).add(1);
        match of_each().max_by_key(|(_, of)| of.wait) {
            Some(longest) => Err(LimitError::Exceeded {
                standing: standing(longest),
                retry_after: longest.1.wait,
            }),
            None => Ok(None),
        }
    }

    /// Whether what the model reads of `caller` counts.
    #[must_use]
    pub fn counts_tokens(&self, caller: &Caller) -> bool {
        self.0.rates.of(&caller.role).iter().any(|rate| rate.unit == Unit::Tokens)
    }

    /// Counts `num_tokens` that the model has read for `caller`, even beyond the limit: it is known
    /// only when it is done, and whoever went over waits the longer.
    pub async fn charge(&self, caller: &Caller, num_tokens: u64) {
        // More than any limit is as good as the largest, and sums of it still fit their type.
        let num_tokens = num_tokens.min(MAX_COUNT);
        let cost = |rate: &Rate| if rate.unit == Unit::Tokens { num_tokens } else { 0 };
        // Whoever cannot be charged is not refused an answer that it has.
        let _ = self.take(caller, self.0.rates.of(&caller.role), cost, true).await;
    }

    async fn take(
        &self,
        caller: &Caller,
        rates: &[Rate],
        cost: impl Fn(&Rate) -> u64,
        whatever: bool,
    ) -> Result<Option<Decision>, LimitError> {
        if rates.is_empty() {
            return Ok(None);
        }
        let key = self.key(caller);
        let costs: Vec<u64> = rates.iter().map(cost).collect();
        if let Some(redis) = &self.0.redis {
            let decision = redis.take(&self.0.name, key, rates, &costs, whatever).await;
            if decision.is_some() {
                return Ok(decision);
            }
            METRICS.redis_failures_total.with([]).add(1);
            match self.0.failure {
                RedisFailure::Allow => return Ok(None),
                RedisFailure::Deny => return Err(LimitError::Unavailable),
                RedisFailure::Local => {}
            }
        }
        Ok(Some(self.0.memory.take(key, rates, &costs, whatever)))
    }

    /// Of the subject of a token, else of an address. A role has windows of its own.
    fn key(&self, caller: &Caller) -> Key {
        let mut digest = Context::new(&SHA256);
        let mut add = |text: &str| {
            digest.update(&(text.len() as u64).to_be_bytes());
            digest.update(text.as_bytes());
        };
        add(&caller.role);
        match (&caller.subject, caller.address) {
            (Some(subject), _) => add(subject),
            (None, Some(address)) => {
                add("");
                add(&subscriber(address).to_string());
            }
            (None, None) => add(""),
        }
        let mut key = Key::default();
        key.copy_from_slice(&digest.finish().as_ref()[..16]);
        key
    }
}

impl Unit {
    /// As a message calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rates: &str) -> Limiter {
        Limiter::new("predict", rates.parse().unwrap(), None)
    }

    fn caller(subject: &str, role: &str) -> Caller {
        Caller { subject: Some(subject.to_owned()), role: role.to_owned(), address: None }
    }

    #[tokio::test]
    async fn a_caller_is_told_what_is_left() {
        let limiter = limiter("user=3/h,user=100/d");
        let ada = caller("ada", "user");
        for remaining in [2, 1, 0] {
            let standing = limiter.admit(&ada).await.unwrap().unwrap();
            assert_eq!((standing.limit, standing.remaining), (3, remaining));
        }
        let Err(LimitError::Exceeded { standing, retry_after }) = limiter.admit(&ada).await else {
            panic!("a fourth was admitted")
        };
        assert_eq!((standing.limit, standing.remaining), (3, 0));
        let hour = Duration::from_secs(3600);
        assert!(retry_after <= hour && retry_after > hour - Duration::from_secs(60));
        assert_eq!(standing.reset, retry_after);
    }

    #[tokio::test]
    async fn callers_are_their_subjects_in_a_role_else_their_addresses() {
        let limiter = limiter("user=1/h");
        let from = |address: &str| Caller::anonymous(Some(address.parse().unwrap()));
        let others = [
            caller("ada", "user"),
            caller("ada", "premium"),
            caller("bob", "user"),
            caller("192.0.2.7", "anonymous"),
            from("192.0.2.7"),
            from("192.0.2.8"),
            from("2001:db8:0:1::1"),
            from("2001:db8:0:2::1"),
            Caller::anonymous(None),
        ];
        for caller in &others {
            assert!(limiter.admit(caller).await.is_ok(), "{caller:?}");
        }
        for again in [from("2001:db8:0:1:ffff::2"), caller("ada", "user")] {
            assert!(limiter.admit(&again).await.is_err(), "{again:?}");
        }
    }

    #[tokio::test]
    async fn tokens_count_when_they_are_read() {
        let limiter = limiter("user=10 tokens/h");
        let ada = caller("ada", "user");
        assert!(limiter.counts_tokens(&ada));
        assert_eq!(limiter.admit(&ada).await.unwrap().unwrap().remaining, 10);
        limiter.charge(&ada, 9).await;
        assert_eq!(limiter.admit(&ada).await.unwrap().unwrap().remaining, 1);
        limiter.charge(&ada, 30).await;
        let refusal = limiter.admit(&ada).await.unwrap_err();
        assert_eq!(refusal.to_string(), "the limit of 10 tokens is reached");
    }

    #[tokio::test]
    async fn no_sum_of_charges_is_too_large() {
        let limiter = limiter("user=10 tokens/h");
        let ada = caller("ada", "user");
        for _ in 0..3 {
            limiter.charge(&ada, u64::MAX).await;
        }
        assert!(limiter.admit(&ada).await.is_err());
    }

    #[tokio::test]
    async fn without_limits_nobody_is_counted() {
        assert_eq!(limiter("").admit(&caller("ada", "user")).await, Ok(None));
    }
}
