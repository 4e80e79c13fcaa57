//! How much each role may do, as a setting says it.

use std::{cmp::Ordering, str::FromStr, time::Duration};

/// Most of something in one window.
pub(crate) const MAX_COUNT: u64 = 1_000_000_000;

/// Longest window.
const MAX_WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);

/// Most limits of all roles together.
const MAX_RATES: usize = 64;

/// Roles that are not named.
const OTHERS: &str = "other";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Each request is one.
    Requests,
    /// What the model read of it.
    Tokens,
}

/// So many in any window of that length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) count: u64,
    pub(crate) window: Duration,
    pub(crate) unit: Unit,
}

impl Rate {
    /// Whether both count the same in the same window.
    fn is_beside(&self, other: &Self) -> bool {
        (self.window, self.unit) == (other.window, other.unit)
    }

    /// By how much they allow in the long run, then at once.
    fn compare(&self, other: &Self) -> Ordering {
        let product = |a: &Self, b: &Self| u128::from(a.count) * b.window.as_micros();
        product(self, other).cmp(&product(other, self)).then(self.count.cmp(&other.count))
    }
}

/// The limits of each role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimits {
    roles: Vec<(String, Vec<Rate>)>,
    /// Of roles that are not named: the lowest of each unit.
    others: Vec<Rate>,
}

/// A limit that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RatesError {
    /// It has another form.
    #[error("\"{0}\" is not like user=10/min, user=100/2s or user=5000 tokens/min")]
    Form(String),
    /// Its count or window is 0 or too large.
    #[error("\"{0}\": a limit counts 1 to {MAX_COUNT} in 1 ms to 30 d")]
    Range(String),
    /// Its role has another limit in the same window.
    #[error("\"{0}\": the role has a limit in that window already")]
    Twice(String),
    /// There are too many.
    #[error("more than {MAX_RATES} limits")]
    TooMany,
}

impl FromStr for RateLimits {
    type Err = RatesError;

    /// Limits between commas, each `role=count/window` or `role=count tokens/window`; a window is
    /// `ms`, `s`, `min`, `h` or `d`, with a number before it if it is not one.
    ///
    /// ```
    /// let limits: sanderling_admission::RateLimits = "user=10/min, user=5000 tokens/h, premium=100/2s".parse()?;
    /// # Ok::<(), sanderling_admission::RatesError>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, RatesError> {
        let mut limits = Self::default();
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        for (index, part) in parts.enumerate() {
            if index == MAX_RATES {
                return Err(RatesError::TooMany);
            }
            let (role, rate) = parse(part).ok_or_else(|| RatesError::Form(part.to_owned()))?;
            let in_range = (1..=MAX_COUNT).contains(&rate.count)
                && (Duration::from_millis(1)..=MAX_WINDOW).contains(&rate.window);
            if !in_range {
                return Err(RatesError::Range(part.to_owned()));
            }
            match limits.roles.iter_mut().find(|(known, _)| known == role) {
                Some((_, rates)) if rates.iter().any(|other| other.is_beside(&rate)) => {
                    return Err(RatesError::Twice(part.to_owned()));
                }
                Some((_, rates)) => rates.push(rate),
                None => limits.roles.push((role.to_owned(), vec![rate])),
            }
        }
        let all = limits.roles.iter().flat_map(|(_, rates)| rates);
        for unit in [Unit::Requests, Unit::Tokens] {
            let rates = all.clone().filter(|rate| rate.unit == unit);
            limits.others.extend(rates.min_by(|a, b| a.compare(b)).copied());
        }
        Ok(limits)
    }
}

/// Role and rate; numbers too large to be read become the largest there is.
fn parse(part: &str) -> Option<(&str, Rate)> {
    let (role, rate) = part.split_once('=')?;
    let (amount, window) = rate.split_once('/')?;
    let (role, amount, window) = (role.trim(), amount.trim(), window.trim());
    let (count, unit) = match amount.strip_suffix("tokens") {
        Some(count) => (count.trim_end(), Unit::Tokens),
        None => (amount, Unit::Requests),
    };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let digits = window.find(|char: char| !char.is_ascii_digit()).unwrap_or(window.len());
    let (multiple, name) = window.split_at(digits);
    let millis: u64 = match name.trim_start() {
        "ms" => 1,
        "s" | "sec" => 1000,
        "m" | "min" => 60_000,
        "h" | "hour" => 3_600_000,
        "d" | "day" => 86_400_000,
        _ => return None,
    };
    let multiple = if multiple.is_empty() { 1 } else { number(multiple)? };
    let window = Duration::from_millis(millis.saturating_mul(multiple));
    (!role.is_empty()).then_some((role, Rate { count: number(count)?, window, unit }))
}

impl RateLimits {
    /// The limits of `role`.
    pub(crate) fn of(&self, role: &str) -> &[Rate] {
        let named = self.roles.iter().find(|(known, _)| known == role);
        named.map_or(&self.others, |(_, rates)| rates)
    }

    /// Roles that are named, and what stands for all others.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|(role, _)| role.as_str()).chain([OTHERS])
    }

    /// `role` if it is named, else what stands for all others: tokens may say what they like.
    pub(crate) fn listed(&self, role: &str) -> &str {
        self.roles().find(|known| *known == role).unwrap_or(OTHERS)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    /// The longest window.
    pub(crate) fn longest_window(&self) -> Duration {
        let rates = self.roles.iter().flat_map(|(_, rates)| rates);
        rates.map(|rate| rate.window).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, role: &str) -> Vec<(u64, u128, Unit)> {
        let limits: RateLimits = text.parse().unwrap();
        let rates = limits.of(role).iter();
        rates.map(|rate| (rate.count, rate.window.as_millis(), rate.unit)).collect()
    }

    #[test]
    fn each_role_has_its_limits() {
        let text = "anonymous=10/min,user=10/min, premium = 100/2s,user=5000 tokens/min";
        assert_eq!(of(text, "premium"), [(100, 2000, Unit::Requests)]);
        let user = [(10, 60_000, Unit::Requests), (5000, 60_000, Unit::Tokens)];
        assert_eq!(of(text, "user"), user);
        assert_eq!(of("user=1/500ms", "user"), [(1, 500, Unit::Requests)]);
        assert_eq!(of("user=7tokens/1d", "user"), [(7, 86_400_000, Unit::Tokens)]);
        assert!(of("", "user").is_empty());
    }

    #[test]
    fn a_role_without_limits_has_the_lowest() {
        // In the long run 100/2s is most, though 60/min is more at once than 10/s.
        let text = "a=100/2s,b=60/min,c=10/s,d=500 tokens/s";
        let lowest = [(60, 60_000, Unit::Requests), (500, 1000, Unit::Tokens)];
        assert_eq!(of(text, "stranger"), lowest);
        assert_eq!(of("a=60/min,b=1/s", "stranger"), [(1, 1000, Unit::Requests)]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in [
            "10/min",
            "user",
            "user=",
            "user=10",
            "user=/min",
            "user=10/",
            "user=10/week",
            "=10/min",
            "user=-1/min",
            "user=+1/min",
            "user=1.5/min",
            "user=ten/min",
            "user=10/0x1s",
            "user=10 words/min",
            "user=1/min;premium=2/min",
            "user=1 tokens tokens/min",
        ] {
            assert_eq!(
                text.parse::<RateLimits>(),
                Err(RatesError::Form(text.to_owned())),
                "{text}"
            );
        }
        for text in [
            "user=0/min",
            "user=10/0s",
            "user=10/31d",
            "user=1000000001/s",
            "user=10/99999999999999999999d",
            "user=99999999999999999999/s",
        ] {
            assert_eq!(
                text.parse::<RateLimits>(),
                Err(RatesError::Range(text.to_owned())),
                "{text}"
            );
        }
        let twice = "user=1/60s".to_owned();
        assert_eq!("user=2/min,user=1/60s".parse::<RateLimits>(), Err(RatesError::Twice(twice)));
        let many: String = (1..=65).map(|secs| format!("a=1/{secs}s,")).collect();
        assert_eq!(many.parse::<RateLimits>(), Err(RatesError::TooMany));
    }
}
