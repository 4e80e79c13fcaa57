//! `RATE_LIMITS`, and what callers may do under them.
//!
//! A seed is the setting, a line break, and a line for each thing that a caller does: its role, and
//! for what the model has read, a number.

#![no_main]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use admission::{Caller, Limiter, RateLimits};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::runtime::Builder;

/// Most things that are done: each is counted as long as the longest window.
const MAX_CALLS: usize = 100;

fuzz_target!(|input: &str| -> Corpus {
    let Some((setting, calls)) = input.split_once('\n') else { return Corpus::Reject };
    let Ok(limits) = setting.parse::<RateLimits>() else { return Corpus::Keep };
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(call(limits, calls));
    Corpus::Keep
});

async fn call(limits: RateLimits, calls: &str) {
    let limiter = Limiter::new("fuzz", limits, None);
    let began = Instant::now();
    // Of one role, what was let in by a limit of so many.
    let mut admitted: HashMap<(&str, u64), u64> = HashMap::new();
    for line in calls.lines().take(MAX_CALLS) {
        let (role, num_tokens) = line.split_once(' ').unwrap_or((line, ""));
        let caller =
            Caller { subject: Some("ada".to_owned()), role: role.to_owned(), address: None };
        if let Ok(num_tokens) = num_tokens.parse() {
            limiter.charge(&caller, num_tokens).await;
            continue;
        }
        let Ok(Some(standing)) = limiter.admit(&caller).await else { continue };
        assert!(standing.remaining <= standing.limit, "{standing:?}");
        assert!(standing.reset <= Duration::from_secs(30 * 24 * 3600), "{standing:?}");
        if standing.unit == admission::Unit::Requests {
            *admitted.entry((role, standing.limit)).or_default() += 1;
        }
    }
    // In less than the shortest window nobody gets more than the limit.
    if began.elapsed() < Duration::from_millis(1) {
        for ((role, limit), count) in admitted {
            assert!(count <= limit, "{role}: {count} of {limit}");
        }
    }
}
