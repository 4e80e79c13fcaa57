//! What is known of a request, wherever in its task it becomes known.

use std::{cell::RefCell, time::Duration};

tokio::task_local! {
    static FACTS: RefCell<Facts>;
}

/// What a request's line, its spans and its metrics say of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Texts of it that the model was given.
    pub num_texts: usize,
    /// Unicode characters of these.
    pub text_length: usize,
    /// Tokens that the model read.
    pub num_tokens: usize,
    /// The most probable label, of a request of one text.
    pub label: Option<String>,
    /// From texts to token ids; of several texts, the longest.
    pub tokenization: Duration,
    /// In the queue.
    pub queue: Duration,
    /// In the engine, with those it shared a batch with.
    pub forward: Duration,
}

/// Runs `future` as a request, and gives what became known in it.
pub async fn request<F: Future>(future: F) -> (F::Output, Facts) {
    let facts = RefCell::default();
    FACTS
        .scope(facts, async {
            let output = future.await;
            (output, FACTS.with(RefCell::take))
        })
        .await
}

/// Adds to what is known of the request whose task this is, if it is one's.
pub fn note(change: impl FnOnce(&mut Facts)) {
    let _ = FACTS.try_with(|facts| change(&mut facts.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_request_knows_its_own() {
        let of = |num_texts| {
            request(async move {
                note(|facts| facts.num_texts += num_texts);
                tokio::task::yield_now().await;
                note(|facts| facts.num_texts += num_texts);
            })
        };
        let (((), one), ((), two)) = tokio::join!(of(1), of(10));
        assert_eq!((one.num_texts, two.num_texts), (2, 20));
        note(|facts| facts.num_texts += 1);
    }
}
