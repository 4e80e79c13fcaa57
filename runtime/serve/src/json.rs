//! The body of a request, within its limit, and as a typed value.

use std::{borrow::Cow, error::Error, fmt, marker::PhantomData};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use telemetry::Causes;

use crate::{edge::NoRoom, error::ApiError};

/// Reads a body of at most `max_body_bytes`.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max_body_bytes: usize,
) -> Result<Bytes, ApiError> {
    if !is_identity(headers) {
        return Err(ApiError::unsupported_encoding());
    }
    let too_large = || ApiError::body_too_large(max_body_bytes);
    if declared_length(headers).is_some_and(|length| length > max_body_bytes) {
        return Err(too_large());
    }
    match collect(&mut body, max_body_bytes).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(too_large()),
        Err(error) => Err(unreadable(&error)),
    }
}

/// All of `body`, or `None` if it is over `max_bytes`.
///
/// In one piece: kept frame by frame, a body of tiny chunks would take many times its length.
async fn collect(body: &mut Body, max_bytes: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let num_bytes = first.len() + all.len() + data.len();
        if num_bytes > max_bytes {
            return Ok(None);
        }
        if num_bytes == data.len() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(Some(if all.is_empty() { first } else { all.into() }))
}

/// A body, or a part of one, as a typed value.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let message = format!("the body is not UTF-8: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_utf8", message)
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let cause = error.into_inner();
        match (cause.classify(), field.as_str()) {
            (serde_json::error::Category::Data, place) if let Some(field) = missing(&cause) => {
                let place = if place == "." { String::new() } else { format!("{place}.") };
                ApiError::missing(&format!("{place}{field}"))
            }
            (serde_json::error::Category::Data, ".") => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", cause)
            }
            (serde_json::error::Category::Data, field) => {
                ApiError::field("invalid_field", field, cause)
            }
            _ => invalid_json(&cause),
        }
    })?;
    deserializer.end().map_err(|error| invalid_json(&error))?;
    Ok(value)
}

/// A value that is an object. By itself, Serde takes an array as the fields of a struct, one by one.
#[derive(Debug, Default, JsonSchema)]
#[schemars(transparent)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// A whole number, which JSON may write as `1` or `1.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole<T>(pub(crate) T);

impl<'de, T: TryFrom<u64>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<T>(PhantomData<T>);

        impl<T: TryFrom<u64>> Visitor<'_> for Number<T> {
            type Value = Whole<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole<T>, E> {
                let whole = T::try_from(number).ok().map(Whole);
                whole.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole<T>, E> {
                if number.fract() == 0.0 && (0.0..u64::MAX as f64).contains(&number) {
                    return self.visit_u64(number as u64);
                }
                Err(E::invalid_type(Unexpected::Float(number), &self))
            }
        }

        deserializer.deserialize_any(Number(PhantomData))
    }
}

/// The field without which there is no value; Serde tells it in words only.
fn missing(error: &serde_json::Error) -> Option<String> {
    let message = error.to_string();
    let (field, _) = message.strip_prefix("missing field `")?.split_once('`')?;
    Some(field.to_owned())
}

fn invalid_json(error: &serde_json::Error) -> ApiError {
    let message = format!("the body is not JSON: {error}");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
}

fn unreadable(error: &axum::Error) -> ApiError {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if let Some(NoRoom { max_bytes }) = error.downcast_ref() {
            return ApiError::overloaded(error, *max_bytes);
        }
        cause = error.source();
    }
    tracing::debug!(exception = %Causes(error), "body cut off");
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "unreadable_body",
        "the body could not be read to its end",
    )
}

/// `application/json` or `application/…+json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let content_type = content_type(headers);
    let kind = content_type.strip_prefix("application/");
    kind.is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// The media type of the body in lowercase, without parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> Cow<'_, str> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    match essence.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => essence.to_ascii_lowercase().into(),
        false => essence.into(),
    }
}

/// Whether the body is sent as it is. What is small on the wire may be huge unpacked.
fn is_identity(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().all(|codings| {
        let codings = codings.to_str().unwrap_or("?").split(',').map(str::trim);
        codings
            .into_iter()
            .all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
    })
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
