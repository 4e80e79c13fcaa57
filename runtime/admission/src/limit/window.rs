//! A window that slides: how much was used in the time up to now, exactly.

use std::{collections::VecDeque, time::Duration};

/// What came when, as far as it may still count.
///
/// An entry has the sum of all that came up to it; what lies in the window is the difference of two
/// sums. `redis.lua` keeps the same in a sorted set.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Times since any moment, and sums.
    entries: VecDeque<(Duration, u64)>,
    /// The sum up to the last entry that has left the window.
    left: u64,
}

/// How the limits of a caller stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    /// Whether the costs were counted.
    pub(super) counted: bool,
    /// Of each limit.
    pub(super) uses: Vec<Use>,
}

/// How a limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// What the window holds.
    pub(super) used: u64,
    /// Until it holds less; zero if it is empty.
    pub(super) reset: Duration,
    /// Until one more is within the limit.
    pub(super) wait: Duration,
}

impl Window {
    /// How a limit of `count` in `length` stands at `now`.
    pub(super) fn look(&mut self, now: Duration, length: Duration, count: u64) -> Use {
        while let Some(&(time, sum)) = self.entries.front()
            && time + length <= now
        {
            self.entries.pop_front();
            self.left = sum;
        }
        let sum = self.sum();
        let used = sum - self.left;
        let until = |time: Option<&(Duration, u64)>| {
            time.map_or(Duration::ZERO, |(time, _)| (*time + length).saturating_sub(now))
        };
        let wait = if used < count {
            Duration::ZERO
        } else {
            // Gone has to be as much as is over, and one more.
            let enough = sum - count + 1;
            until(self.entries.get(self.entries.partition_point(|&(_, sum)| sum < enough)))
        };
        Use { used, reset: until(self.entries.front()), wait }
    }

    /// Counts `cost` at `now`.
    pub(super) fn add(&mut self, now: Duration, cost: u64) {
        let sum = self.sum() + cost;
        self.entries.push_back((now, sum));
    }

    fn sum(&self) -> u64 {
        self.entries.back().map_or(self.left, |&(_, sum)| sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_place_is_free_when_the_oldest_leaves() {
        let mut window = Window::default();
        assert_eq!(
            window.look(millis(0), SECOND, 2),
            Use { used: 0, reset: millis(0), wait: millis(0) }
        );
        window.add(millis(0), 1);
        window.add(millis(600), 1);
        let full = Use { used: 2, reset: millis(100), wait: millis(100) };
        assert_eq!(window.look(millis(900), SECOND, 2), full);
        let one_left = Use { used: 1, reset: millis(600), wait: millis(0) };
        assert_eq!(window.look(millis(1000), SECOND, 2), one_left);
        assert_eq!(window.look(millis(1600), SECOND, 2).used, 0);
    }

    #[test]
    fn whoever_used_more_than_there_was_waits_longer() {
        let mut window = Window::default();
        window.add(millis(0), 5);
        window.add(millis(100), 50);
        window.add(millis(200), 3);
        let over = window.look(millis(300), SECOND, 10);
        // The 5 leave at 1000; below 10 it is when the 50 do, at 1100.
        assert_eq!(over, Use { used: 58, reset: millis(700), wait: millis(800) });
        assert_eq!(window.look(millis(1100), SECOND, 10).used, 3);
    }

    #[test]
    fn no_window_ever_holds_more_than_the_limit() {
        let (count, length) = (7, millis(100));
        let mut window = Window::default();
        let mut admitted = Vec::new();
        let mut now = Duration::ZERO;
        let mut random = 1_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            now += Duration::from_micros(random >> 33 & 0x3fff);
            if window.look(now, length, count).wait.is_zero() {
                window.add(now, 1);
                admitted.push(now);
            }
        }
        assert!(admitted.len() > 5000);
        for eight in admitted.windows(8) {
            assert!(eight[7] - eight[0] >= length, "{eight:?}");
        }
    }
}
