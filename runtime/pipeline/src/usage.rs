use std::time::Duration;

/// What an answer cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens the model read, special tokens and prompts included.
    pub num_tokens: usize,
    /// Unicode characters of the texts, prompts included, what was cut off too.
    pub num_chars: usize,
    /// Whether a part of a text was cut off before.
    pub truncated: bool,
    /// How long it took.
    pub timing: Timing,
}

/// How long a text took, step by step; of several texts, the longest of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// From text to token ids.
    pub tokenize: Duration,
    /// In the queue, before and after that.
    pub queue: Duration,
    /// In the engine, with those it shared a batch with.
    pub forward: Duration,
}

impl Usage {
    /// Of two texts, or two parts of a request, together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let (a, b) = (self.timing, other.timing);
        Self {
            num_tokens: self.num_tokens + other.num_tokens,
            num_chars: self.num_chars + other.num_chars,
            truncated: self.truncated || other.truncated,
            timing: Timing {
                tokenize: a.tokenize.max(b.tokenize),
                queue: a.queue.max(b.queue),
                forward: a.forward.max(b.forward),
            },
        }
    }
}
