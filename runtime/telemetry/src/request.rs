//! What is known of a request, wherever in its task it becomes known.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::trace::TraceContext;

tokio::task_local! {
    static REQUEST: Request;
}

#[derive(Debug)]
struct Request {
    id: Arc<str>,
    trace: Option<TraceContext>,
    facts: RefCell<Facts>,
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
    /// When the first of its texts came to be tokenized.
    pub asked: Option<Instant>,
    /// The model that was given them, and its version.
    pub model: Option<Arc<str>>,
    /// Of the model.
    pub version: Option<Arc<str>>,
    /// Texts in the largest batch that it shared.
    pub batch_size: usize,
    /// The span of the last batch that it shared, if that is kept.
    pub batch: Option<TraceContext>,
}

/// Runs `future` as the request that lines of the log call `id`, and that has its span in `trace`.
pub async fn request<F: Future>(id: Arc<str>, trace: Option<TraceContext>, future: F) -> F::Output {
    REQUEST.scope(Request { id, trace, facts: RefCell::default() }, future).await
}

/// The span of the request whose task this is, if it has one.
#[must_use]
pub fn trace_context() -> Option<TraceContext> {
    REQUEST.try_with(|request| request.trace).ok().flatten()
}

/// What is known of the request whose task this is; nothing of none.
#[must_use]
pub fn facts() -> Facts {
    REQUEST.try_with(|request| request.facts.borrow().clone()).unwrap_or_default()
}

/// Gives the id and the span of the request whose task this is to `read`, if it is one's.
pub(crate) fn with_id<T>(read: impl FnOnce(&str, Option<TraceContext>) -> T) -> Option<T> {
    REQUEST.try_with(|request| read(&request.id, request.trace)).ok()
}

/// Adds to what is known of the request whose task this is, if it is one's.
pub fn note(change: impl FnOnce(&mut Facts)) {
    let _ = REQUEST.try_with(|request| change(&mut request.facts.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_request_knows_its_own() {
        let of = |num_texts| {
            request("r".into(), None, async move {
                note(|facts| facts.num_texts += num_texts);
                tokio::task::yield_now().await;
                note(|facts| facts.num_texts += num_texts);
                facts()
            })
        };
        let (one, two) = tokio::join!(of(1), of(10));
        assert_eq!((one.num_texts, two.num_texts), (2, 20));
        note(|facts| facts.num_texts += 1);
        assert_eq!(facts(), Facts::default());
    }
}
