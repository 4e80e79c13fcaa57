//! `RATE_LIMITS`, and what callers may do under them, beside a count of all that they ever did.
//!
//! A seed is the setting, a line break, and a line for each thing that happens: `+` and how many
//! milliseconds pass; a role and a number, the tokens that the model has read for it; or a role, which
//! calls.

#![no_main]

use std::time::Duration;

use admission::{Caller, LimitError, Limiter, RateLimits, Unit};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::{runtime::Builder, time};

/// Most things that happen: each is counted again at every call.
const MAX_EVENTS: usize = 100;

/// Longer than any window.
const MAX_PAUSE_MS: u64 = 40 * 24 * 3_600_000;

fuzz_target!(|input: &str| -> Corpus {
    let Some((setting, events)) = input.split_once('\n') else { return Corpus::Reject };
    let Ok(limits) = setting.parse::<RateLimits>() else { return Corpus::Keep };
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(replay(setting, limits, events));
    Corpus::Keep
});

/// What a role did.
struct Event<'a> {
    role: &'a str,
    at_ms: u64,
    requests: u64,
    tokens: u64,
}

async fn replay(setting: &str, limits: RateLimits, events: &str) {
    let limiter = Limiter::new("fuzz", limits, None);
    let mut now_ms = 0;
    let mut happened: Vec<Event<'_>> = Vec::new();
    for line in events.lines().take(MAX_EVENTS) {
        if let Some(pause_ms) = line.strip_prefix('+') {
            let pause_ms = pause_ms.parse().unwrap_or(0).min(MAX_PAUSE_MS);
            time::advance(Duration::from_millis(pause_ms)).await;
            now_ms += pause_ms;
            continue;
        }
        let charge = line.rsplit_once(' ').and_then(|(role, num)| Some((role, num.parse().ok()?)));
        let role = charge.map_or(line, |(role, _)| role);
        let caller = Caller { role: role.to_owned(), ..Caller::anonymous(None) };
        if let Some((_, tokens)) = charge {
            limiter.charge(&caller, tokens).await;
            happened.push(Event { role, at_ms: now_ms, requests: 0, tokens });
            continue;
        }

        let outcome = limiter.admit(&caller).await;
        let limits = limits_of(setting, role);
        if limits.is_empty() {
            continue;
        }
        let left = |limit: &Limit, at_ms: u64| {
            let recent = happened
                .iter()
                .filter(|event| event.role == role && event.at_ms + limit.window_ms > at_ms);
            let used: u128 = match limit.unit {
                Unit::Requests => recent.map(|event| u128::from(event.requests)).sum(),
                Unit::Tokens => recent.map(|event| u128::from(event.tokens)).sum(),
            };
            u128::from(limit.count).saturating_sub(used)
        };
        let may_call = |at_ms| limits.iter().all(|limit| left(limit, at_ms) > 0);
        match outcome {
            Ok(Some(standing)) => {
                assert!(may_call(now_ms), "{line:?} was let in");
                let is_one_of = |limit: &Limit| {
                    let cost = u128::from(limit.unit == Unit::Requests);
                    (limit.unit, limit.count) == (standing.unit, standing.limit)
                        && left(limit, now_ms) - cost == standing.remaining.into()
                        && standing.reset.as_millis() <= limit.window_ms.into()
                };
                assert!(limits.iter().any(is_one_of), "{standing:?}");
                happened.push(Event { role, at_ms: now_ms, requests: 1, tokens: 0 });
            }
            Err(LimitError::Exceeded { retry_after, .. }) => {
                assert!(!may_call(now_ms), "{line:?} was refused");
                let then_ms = now_ms + retry_after.as_millis() as u64;
                assert!(may_call(then_ms), "{line:?} has to wait longer than {retry_after:?}");
                assert!(!may_call(then_ms - 1), "{line:?} need not wait {retry_after:?}");
            }
            other => panic!("{line:?}: {other:?}"),
        }
    }
}

struct Limit {
    count: u64,
    unit: Unit,
    window_ms: u64,
}

/// Those that `setting`, which has been taken, names for `role`; read so that it would take much more.
fn limits_of(setting: &str, role: &str) -> Vec<Limit> {
    let number = |text: &str| {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(1)
    };
    let parts = setting.split(',').filter_map(|part| part.split_once('='));
    let rates = parts.filter(|(name, _)| name.trim() == role).map(|(_, rate)| rate);
    let limits = rates.filter_map(|rate| rate.split_once('/')).map(|(amount, window)| {
        let unit = if amount.contains('t') { Unit::Tokens } else { Unit::Requests };
        let unit_ms = match window.trim_start_matches(|char: char| !char.is_ascii_lowercase()) {
            name if name.starts_with("ms") => 1,
            name if name.starts_with('s') => 1000,
            name if name.starts_with('m') => 60_000,
            name if name.starts_with('h') => 3_600_000,
            _ => 86_400_000,
        };
        Limit { count: number(amount), unit, window_ms: number(window) * unit_ms }
    });
    limits.collect()
}
