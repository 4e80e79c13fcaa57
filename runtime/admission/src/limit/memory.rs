//! Windows of callers in the memory of this process.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

// The same clock, but one that tests can stop.
use tokio::time::Instant;

use super::{
    Key,
    rates::Rate,
    window::{Decision, Use, Window},
};

/// Most callers and most entries that are kept in a generation: some 10 and 64 MB.
const MAX_CALLERS: usize = 1 << 16;
const MAX_ENTRIES: usize = 1 << 22;

/// Windows in two generations. A caller that comes again moves to the young one; when that has grown as
/// old as the longest window, the other holds nothing that counts, and goes. If it is full before, the
/// callers that go are those that have been away longest.
#[derive(Debug)]
pub(super) struct Memory {
    started: Instant,
    longest_window: Duration,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, Vec<Window>>,
    old: HashMap<Key, Vec<Window>>,
    num_entries: usize,
    /// When the young one began.
    turned: Duration,
}

impl Memory {
    pub(super) fn new(longest_window: Duration) -> Self {
        let generations = Mutex::default();
        Self { started: Instant::now(), longest_window, generations }
    }

    /// How the limits of a caller stand, with `costs` counted if all have room for one more, or
    /// `whatever` they have.
    pub(super) fn take(&self, key: Key, rates: &[Rate], costs: &[u64], whatever: bool) -> Decision {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.started.elapsed();
        generations.turn(now, self.longest_window);
        let windows = generations.windows(key, rates.len());
        let look = |(window, rate): (&mut Window, &Rate)| window.look(now, rate.window, rate.count);
        let mut uses: Vec<Use> = windows.iter_mut().zip(rates).map(look).collect();
        if !whatever && uses.iter().any(|each| !each.wait.is_zero()) {
            return Decision { counted: false, uses };
        }
        let mut num_entries = 0;
        for ((window, cost), (each, rate)) in
            windows.iter_mut().zip(costs).zip(uses.iter_mut().zip(rates))
        {
            if *cost > 0 {
                window.add(now, *cost);
                *each = window.look(now, rate.window, rate.count);
                num_entries += 1;
            }
        }
        generations.num_entries += num_entries;
        Decision { counted: true, uses }
    }
}

impl Generations {
    fn turn(&mut self, now: Duration, longest_window: Duration) {
        let is_full = self.young.len() >= MAX_CALLERS || self.num_entries >= MAX_ENTRIES;
        if is_full || now >= self.turned + longest_window {
            self.old = std::mem::take(&mut self.young);
            self.num_entries = 0;
            self.turned = now;
        }
    }

    fn windows(&mut self, key: Key, count: usize) -> &mut [Window] {
        let old = &mut self.old;
        self.young.entry(key).or_insert_with(|| {
            let windows = old.remove(&key);
            windows.unwrap_or_else(|| (0..count).map(|_| Window::default()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rates::Unit, *};

    fn rate(count: u64) -> Rate {
        Rate { count, window: Duration::from_secs(60), unit: Unit::Requests }
    }

    fn key(number: usize) -> Key {
        (number as u128).to_be_bytes()
    }

    #[test]
    fn callers_do_not_count_for_each_other() {
        let memory = Memory::new(Duration::from_secs(60));
        let admit = |number| {
            let decision = memory.take(key(number), &[rate(2)], &[1], false);
            (decision.counted, decision.uses[0].used)
        };
        assert_eq!([admit(1), admit(1), admit(1)], [(true, 1), (true, 2), (false, 2)]);
        assert_eq!(admit(2), (true, 1));
    }

    #[test]
    fn nothing_is_counted_if_one_limit_is_reached() {
        let memory = Memory::new(Duration::from_secs(60));
        let rates = [rate(1), rate(10)];
        memory.take(key(1), &rates, &[1, 1], false);
        let used =
            |decision: Decision| decision.uses.iter().map(|each| each.used).collect::<Vec<_>>();
        assert_eq!(used(memory.take(key(1), &rates, &[1, 1], false)), [1, 1]);
        assert_eq!(used(memory.take(key(1), &rates, &[0, 7], true)), [1, 8]);
    }

    #[test]
    fn more_callers_than_there_is_room_for_push_out_those_away_longest() {
        let memory = Memory::new(Duration::from_secs(60));
        let used = |number| memory.take(key(number), &[rate(9)], &[1], false).uses[0].used;
        used(0);
        for number in 1..MAX_CALLERS + 10 {
            used(number);
        }
        assert_eq!(used(0), 2, "one generation later it is still known");
        for number in MAX_CALLERS..3 * MAX_CALLERS + 20 {
            used(number);
        }
        assert_eq!(used(0), 1, "two generations later it is forgotten");
        let generations = memory.generations.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * MAX_CALLERS);
    }
}
