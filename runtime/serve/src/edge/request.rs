use std::time::{Duration, Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONNECTION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use telemetry::{
    METRICS,
    trace::{HttpFacts, RequestSpan},
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Edge, Place, upload::Upload};
use crate::{
    answer::SERVER_TIMING,
    dialect,
    error::ApiError,
    metrics,
    model::{Model, State as Known},
    service::Service,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The trace of a request, and what the answer says of it: <https://www.w3.org/TR/trace-context-2/>.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Longest request id that is taken over from a caller, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Answered however much there is to do: they ask how things are.
const ALWAYS_ANSWERED: [&str; 5] =
    ["/health", "/ping", "/v2/health/live", "/v2/health/ready", "/activity"];

/// Answers one request: gives it an id, a deadline, and a log line, counts and a span at its end.
pub(super) async fn answer<P: Service>(
    State((edge, model)): State<(Edge, Model<P>)>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let request_id = request_id(&request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let uri = request.uri().clone();
    let id = request_id.to_str().unwrap_or_default();
    let span = span(route, request.headers());
    let trace = span.as_ref().map(RequestSpan::context);
    let mut response = telemetry::request(id.into(), trace, async {
        let response = within_limits(&edge, &model, route, request, next).await;
        let response = dialect::render(response, uri.path());
        let done = Done {
            method: &method,
            route: route.unwrap_or("none"),
            status: response.status(),
            duration: started.elapsed(),
        };
        done.log();
        let is_kept = trace.filter(|trace| trace.is_sampled);
        done.count(is_kept.map(|trace| trace.trace_id));
        if let Some(span) = span {
            done.trace(span, id);
        }
        response
    })
    .await;
    if let Some(trace) = trace
        && let Ok(trace) = HeaderValue::try_from(trace.to_string())
    {
        response.headers_mut().insert(TRACERESPONSE, trace);
    }
    response.headers_mut().insert(REQUEST_ID, request_id);
    if response.status().is_success()
        && response.headers().contains_key(SERVER_TIMING)
        && let Some(timing) = start_timing()
    {
        response.headers_mut().append(SERVER_TIMING, timing);
    }
    response
}

/// The span of a request, unless it asks how things are: those would be most of all traces.
fn span(route: Option<&str>, headers: &HeaderMap) -> Option<RequestSpan> {
    if route.is_some_and(|route| ALWAYS_ANSWERED.contains(&route) || route == metrics::PATH) {
        return None;
    }
    let mut parents = headers.get_all(TRACEPARENT).iter();
    // Two say nothing.
    let parent = parents.next().filter(|_| parents.next().is_none());
    let state = headers.get(TRACESTATE).and_then(|state| state.to_str().ok());
    RequestSpan::begin(parent.and_then(|parent| parent.to_str().ok()), state)
}

/// A request that was answered.
struct Done<'a> {
    method: &'a Method,
    route: &'a str,
    status: StatusCode,
    duration: Duration,
}

impl Done<'_> {
    /// The one line of a request: what was asked and answered, never a text.
    fn log(&self) {
        let facts = telemetry::facts();
        let millis = |duration: Duration| duration.as_micros() as f64 / 1e3;
        let is_call = facts.num_texts > 0;
        tracing::info!(
            method = self.method.as_str(),
            route = self.route,
            status = self.status.as_u16(),
            duration_ms = millis(self.duration),
            texts = is_call.then_some(facts.num_texts),
            text_length = is_call.then_some(facts.text_length),
            tokens = is_call.then_some(facts.num_tokens),
            label = facts.label,
            tokenization_ms = is_call.then_some(millis(facts.tokenization)),
            queue_ms = is_call.then_some(millis(facts.queue)),
            forward_ms = is_call.then_some(millis(facts.forward)),
            "request done"
        );
    }

    /// `trace_id` if the trace is kept.
    fn count(&self, trace_id: Option<u128>) {
        let (method, duration) = (self.known_method(), self.duration.as_secs_f64());
        METRICS.http_requests_total.with([method, self.route, self.status.as_str()]).add(1);
        let durations = METRICS.http_request_duration_seconds.with([method, self.route]);
        durations.observe_traced(duration, trace_id);
    }

    fn trace(&self, span: RequestSpan, request_id: &str) {
        let http = HttpFacts {
            method: self.known_method(),
            route: self.route,
            status: self.status.as_u16(),
            request_id,
        };
        span.end(http, &telemetry::facts());
    }

    /// Callers make methods up as they like.
    fn known_method(&self) -> &str {
        match *self.method {
            Method::GET | Method::POST | Method::HEAD | Method::OPTIONS => self.method.as_str(),
            _ => "other",
        }
    }
}

/// The answer, in time and if there is room for it; says so if the connection ends with it.
async fn within_limits<P: Service>(
    edge: &Edge,
    model: &Model<P>,
    route: Option<&str>,
    request: Request,
    next: Next,
) -> Response {
    let (request, upload) = Upload::watch(request, &edge.0.bodies);
    let mut response = if edge.is_draining() {
        drop(request);
        ApiError::shutting_down().into_response()
    } else {
        match admit(edge, route, &request) {
            Ok(place) => {
                let answer = timeout(edge.0.request_timeout, next.run(request)).await;
                drop(place);
                answer.unwrap_or_else(|_| too_late(edge, model, &upload).into_response())
            }
            Err(refusal) => {
                drop(request);
                refusal.into_response()
            }
        }
    };
    // What is left of the body stands before the next request, and will not be read.
    if edge.is_draining() || upload.is_unread() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What can be refused by the head of a request; else a place, which `ALWAYS_ANSWERED` do without.
fn admit<'a>(
    edge: &'a Edge,
    route: Option<&str>,
    request: &Request,
) -> Result<Option<Place<'a>>, ApiError> {
    let max_uri_bytes = edge.0.max_uri_bytes;
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > max_uri_bytes) {
        return Err(ApiError::uri_too_long(max_uri_bytes));
    }
    if route.is_some_and(|route| ALWAYS_ANSWERED.contains(&route)) {
        return Ok(None);
    }
    edge.place().map(Some)
}

fn too_late<P: Service>(edge: &Edge, model: &Model<P>, upload: &Upload) -> ApiError {
    if upload.is_unread() {
        ApiError::slow_body(edge.0.request_timeout)
    } else if matches!(model.state(), Known::Loading) {
        ApiError::loading()
    } else {
        ApiError::timeout(edge.0.request_timeout)
    }
}

/// How long the process took to its first answer, stage by stage: for that answer only.
///
/// <https://www.w3.org/TR/server-timing/>; `dur` and `start` (since the process began) are in ms.
fn start_timing() -> Option<HeaderValue> {
    let stages = telemetry::take_stages()?;
    let stages = stages.iter().map(|stage| {
        let [duration, start] = [stage.duration, stage.start].map(|time| time.as_secs_f64() * 1e3);
        format!("{};dur={duration:.3};start={start:.3}", stage.name)
    });
    HeaderValue::try_from(stages.collect::<Vec<_>>().join(", ")).ok()
}

/// The caller's own id if it is short and printable, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    match given {
        Some(id) => id.clone(),
        None => {
            let mut buffer = Uuid::encode_buffer();
            let id = Uuid::new_v4().simple().encode_lower(&mut buffer);
            HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
        }
    }
}
