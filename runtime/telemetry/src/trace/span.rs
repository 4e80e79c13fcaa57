//! A span that has ended, in the two forms in which it waits to be sent: for HTTP as bytes of the
//! protocol, written at once; for gRPC as the library's exporter takes it.
//!
//! The library's form costs more: a piece of memory for each key and value, and again for what it makes
//! of them.

use std::{
    borrow::Cow,
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::SpanData;

use super::TraceContext;
use crate::otlp;

/// A span that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) name: &'static str,
    pub(super) context: TraceContext,
    /// As callers send it: `tracestate`.
    pub(super) state: &'a str,
    pub(super) parent: Option<Parent>,
    pub(super) is_server: bool,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    /// Nanoseconds since 1970.
    pub(super) end: u64,
    pub(super) attributes: &'a [(&'static str, Value<'a>)],
    pub(super) links: &'a [TraceContext],
    pub(super) num_dropped_links: u32,
    pub(super) has_failed: bool,
}

/// The span that another one is a part of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parent {
    pub(super) span_id: u64,
    /// Whether it is another process'.
    pub(super) is_remote: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Number(u64),
}

/// Spans that have ended together.
#[derive(Debug)]
pub(super) enum Spans {
    /// Fields `spans` of a message `ScopeSpans`, and how many.
    Bytes(Vec<u8>, usize),
    Data(Vec<SpanData>),
}

/// What the spans of a request with one text take, or a little more.
const USUAL_BYTES: usize = 1024;

impl Spans {
    pub(super) fn bytes() -> Self {
        Self::Bytes(Vec::new(), 0)
    }

    pub(super) fn data() -> Self {
        Self::Data(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(_, len) => *len,
            Self::Data(spans) => spans.len(),
        }
    }

    pub(super) fn push(&mut self, span: Span<'_>) {
        match self {
            Self::Bytes(bytes, len) => {
                if bytes.is_empty() {
                    bytes.reserve(USUAL_BYTES);
                }
                encode(bytes, span);
                *len += 1;
            }
            Self::Data(spans) => spans.push(data(span)),
        }
    }
}

/// Field numbers of `opentelemetry/proto/trace/v1/trace.proto` and `common/v1/common.proto`.
mod field {
    pub(super) const SPANS: u32 = 2;
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START_TIME: u32 = 7;
    pub(super) const END_TIME: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const LINKS: u32 = 13;
    pub(super) const DROPPED_LINKS: u32 = 14;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
    pub(super) const LINK_TRACE_ID: u32 = 1;
    pub(super) const LINK_SPAN_ID: u32 = 2;
    pub(super) const LINK_FLAGS: u32 = 6;
    pub(super) const STATUS_CODE: u32 = 3;
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING_VALUE: u32 = 1;
    pub(super) const INT_VALUE: u32 = 3;
}

const KIND_INTERNAL: u64 = 1;
const KIND_SERVER: u64 = 2;
const STATUS_ERROR: u64 = 2;
const IS_SAMPLED: u32 = 1;
const KNOWS_WHETHER_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

fn encode(bytes: &mut Vec<u8>, span: Span<'_>) {
    let Span { context, parent, .. } = span;
    message(bytes, field::SPANS, |bytes| {
        blob(bytes, field::TRACE_ID, &context.trace_id.to_be_bytes());
        blob(bytes, field::SPAN_ID, &context.span_id.to_be_bytes());
        if !span.state.is_empty() {
            blob(bytes, field::TRACE_STATE, span.state.as_bytes());
        }
        if let Some(parent) = parent {
            blob(bytes, field::PARENT_SPAN_ID, &parent.span_id.to_be_bytes());
        }
        blob(bytes, field::NAME, span.name.as_bytes());
        number(bytes, field::KIND, if span.is_server { KIND_SERVER } else { KIND_INTERNAL });
        fixed64(bytes, field::START_TIME, span.start);
        fixed64(bytes, field::END_TIME, span.end);
        for &(key, value) in span.attributes {
            message(bytes, field::ATTRIBUTES, |bytes| {
                blob(bytes, field::KEY, key.as_bytes());
                message(bytes, field::VALUE, |bytes| match value {
                    Value::Text(text) => blob(bytes, field::STRING_VALUE, text.as_bytes()),
                    Value::Number(value) => number(bytes, field::INT_VALUE, value),
                });
            });
        }
        for link in span.links {
            message(bytes, field::LINKS, |bytes| {
                blob(bytes, field::LINK_TRACE_ID, &link.trace_id.to_be_bytes());
                blob(bytes, field::LINK_SPAN_ID, &link.span_id.to_be_bytes());
                fixed32(bytes, field::LINK_FLAGS, flags(*link, false));
            });
        }
        if span.num_dropped_links > 0 {
            number(bytes, field::DROPPED_LINKS, span.num_dropped_links.into());
        }
        message(bytes, field::STATUS, |bytes| {
            if span.has_failed {
                number(bytes, field::STATUS_CODE, STATUS_ERROR);
            }
        });
        let is_remote = parent.is_some_and(|parent| parent.is_remote);
        fixed32(bytes, field::FLAGS, flags(context, is_remote));
    });
}

fn flags(context: TraceContext, is_remote: bool) -> u32 {
    let sampled = if context.is_sampled { IS_SAMPLED } else { 0 };
    sampled | KNOWS_WHETHER_REMOTE | if is_remote { IS_REMOTE } else { 0 }
}

/// How a field is encoded: <https://protobuf.dev/programming-guides/encoding/>.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
    Fixed32 = 5,
}

fn key(bytes: &mut Vec<u8>, field: u32, wire: Wire) {
    varint(bytes, u64::from(field << 3 | wire as u32));
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn number(bytes: &mut Vec<u8>, field: u32, value: u64) {
    key(bytes, field, Wire::Varint);
    varint(bytes, value);
}

fn fixed64(bytes: &mut Vec<u8>, field: u32, value: u64) {
    key(bytes, field, Wire::Fixed64);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn fixed32(bytes: &mut Vec<u8>, field: u32, value: u32) {
    key(bytes, field, Wire::Fixed32);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn blob(bytes: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(bytes, field, Wire::Length);
    varint(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

/// What `write` writes, behind its length, which is known only then.
pub(super) fn message(bytes: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(bytes, field, Wire::Length);
    let start = bytes.len();
    write(bytes);
    let end = bytes.len();
    varint(bytes, (end - start) as u64);
    let num_bytes = bytes.len() - end;
    bytes[start..].rotate_right(num_bytes);
}

static SCOPE: LazyLock<InstrumentationScope> = LazyLock::new(|| {
    InstrumentationScope::builder(otlp::SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
});

fn data(span: Span<'_>) -> SpanData {
    let Span { context, parent, .. } = span;
    let attribute = |&(key, value): &(&'static str, Value<'_>)| match value {
        Value::Text(text) => KeyValue::new(key, text.to_owned()),
        Value::Number(number) => KeyValue::new(key, i64::try_from(number).unwrap_or(i64::MAX)),
    };
    let mut data = SpanData {
        span_context: span_context(context, span.state.parse().unwrap_or_default()),
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span_id)),
        parent_span_is_remote: parent.is_some_and(|parent| parent.is_remote),
        span_kind: if span.is_server { SpanKind::Server } else { SpanKind::Internal },
        name: Cow::Borrowed(span.name),
        start_time: UNIX_EPOCH + Duration::from_nanos(span.start),
        end_time: UNIX_EPOCH + Duration::from_nanos(span.end),
        attributes: span.attributes.iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: if span.has_failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: SCOPE.clone(),
    };
    let link =
        |&link: &TraceContext| Link::new(span_context(link, TraceState::default()), Vec::new(), 0);
    data.links.links = span.links.iter().map(link).collect();
    data.links.dropped_count = span.num_dropped_links;
    data
}

pub(super) fn span_context(context: TraceContext, state: TraceState) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(context.is_sampled);
    SpanContext::new(context.trace_id.into(), context.span_id.into(), flags, false, state)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1 as proto;
    use prost::Message;

    use super::*;

    fn decoded(span: Span<'_>) -> proto::Span {
        let mut spans = Spans::bytes();
        spans.push(span);
        let Spans::Bytes(bytes, 1) = spans else { panic!("{spans:?}") };
        let mut scope = proto::ScopeSpans::decode(&*bytes).unwrap();
        scope.spans.pop().unwrap()
    }

    #[test]
    fn what_is_written_is_what_the_library_would_write() {
        let context = |span_id| TraceContext { trace_id: 7 << 90, span_id, is_sampled: true };
        let long = "é".repeat(5_000);
        let full = Span {
            name: "predict",
            context: context(1),
            state: "vendor=1,other=2",
            parent: Some(Parent { span_id: u64::MAX, is_remote: true }),
            is_server: true,
            start: 1_700_000_000_123_456_789,
            end: 1_700_000_001_000_000_000,
            attributes: &[
                ("http.route", Value::Text("/predict")),
                ("empty", Value::Text("")),
                ("long", Value::Text(&long)),
                ("zero", Value::Number(0)),
                ("large", Value::Number(1 << 40)),
            ],
            links: &[context(2), TraceContext { is_sampled: false, ..context(3) }],
            num_dropped_links: 300,
            has_failed: true,
        };
        let bare = Span {
            parent: None,
            is_server: false,
            state: "",
            attributes: &[],
            links: &[],
            num_dropped_links: 0,
            has_failed: false,
            ..full
        };
        let local = Span { parent: Some(Parent { span_id: 5, is_remote: false }), ..bare };
        for span in [full, bare, local] {
            assert_eq!(decoded(span), proto::Span::from(data(span)));
        }
    }
}
