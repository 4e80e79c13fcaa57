//! What a function answers as an OpenAPI 3.1 document, made of its operations when it is asked for:
//! by then the model is known, and with it labels, dimensions and prompts.
//!
//! Errors stand in it as their dialect writes them, by the code that writes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use admission::{AuthError, LimitError, Standing, Unit};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use pipeline::{PipelineError, Task};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    Config, admit,
    dialect::{Dialect, LIMIT},
    endpoint::Endpoint,
    error::ApiError,
    model::State,
    routes::{About, VERSION},
    service::Service,
};

pub(crate) const PATH: &str = "/openapi.json";

/// The document itself.
pub(crate) fn about() -> About {
    About {
        dialect: Dialect::Native,
        method: "get",
        path: PATH,
        summary: "This document.",
        is_call: false,
        media: "application/json",
        request: None,
        response: |generator| generator.subschema_for::<Map<String, Value>>(),
        examples: Vec::new(),
        error: None,
    }
}

/// What `abouts` say together.
pub(crate) fn document<P: Service>(endpoint: &Endpoint<P>, abouts: &[About]) -> Response {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut requests = settings.clone().into_generator();
    let mut responses = settings.for_serialize().into_generator();
    let service = match endpoint.model.state() {
        State::Ready(service) => Some(service),
        State::Loading | State::Failed(_) => None,
    };
    let names = match &service {
        Some(service) => BTreeSet::from([endpoint.function, &service.info().name]),
        None => BTreeSet::from([endpoint.function]),
    };

    let mut sites: BTreeMap<(&str, &str), Vec<&About>> = BTreeMap::new();
    for about in abouts {
        sites.entry((about.path, about.method)).or_default().push(about);
    }
    let mut paths: Map<String, Value> = Map::new();
    let mut errors = Errors::new(&endpoint.config, endpoint.function);
    for ((path, method), abouts) in sites {
        let operation =
            operation(path, method, &abouts, &names, (&mut requests, &mut responses), &mut errors);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
    }
    let mut tags: Vec<Value> = Vec::new();
    for dialect in abouts.iter().map(|about| about.dialect).collect::<BTreeSet<_>>() {
        tags.push(json!({ "name": dialect.name() }));
    }
    let mut schemas = requests.take_definitions(true);
    schemas.append(&mut responses.take_definitions(true));
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": endpoint.function,
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A function of Sanderling",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": errors.responses,
        },
    });
    if endpoint.config.auth.is_some() {
        document["components"]["securitySchemes"]["token"] =
            json!({ "type": "http", "scheme": "bearer", "bearerFormat": "JWT" });
    }
    let task = service.as_ref().and_then(Service::purpose);
    fill_limits(&mut document, &endpoint.config, task.as_ref());
    Json(document).into_response()
}

/// All that can be asked with `method` at `path`.
fn operation(
    path: &str,
    method: &str,
    abouts: &[&About],
    names: &BTreeSet<&str>,
    (requests, responses): (&mut SchemaGenerator, &mut SchemaGenerator),
    errors: &mut Errors,
) -> Value {
    let first = abouts[0];
    let dialects: BTreeSet<&str> = abouts.iter().map(|about| about.dialect.name()).collect();
    let summaries: Vec<&str> = abouts.iter().map(|about| about.summary).collect();
    let id = path.replace(|char: char| !char.is_ascii_alphanumeric(), "_");
    let mut operation = json!({
        "tags": dialects,
        "operationId": format!("{method}{id}"),
        "summary": summaries.join(" Or: "),
        "responses": { "200": {
            "description": "The answer.",
            "content": content(abouts, |about| Some((about.response)(responses).to_value())),
        } },
    });
    if first.is_call {
        operation["responses"]["200"]["headers"] = usage_headers();
    }
    let mut parameters = Vec::new();
    for (name, values) in [("model", names.clone()), ("version", BTreeSet::from([VERSION]))] {
        if path.contains(&format!("{{{name}}}")) {
            let schema = json!({ "type": "string", "enum": values });
            parameters
                .push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        }
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if errors.needs_token && !is_open(first) {
        operation["security"] = json!([{ "token": [] }]);
    }
    if first.request.is_some() {
        let mut body =
            content(abouts, |about| about.request.map(|request| request(requests).to_value()));
        for about in abouts {
            for (name, example) in &about.examples {
                let name = match dialects.len() {
                    1 => (*name).to_owned(),
                    _ => format!("{}: {name}", about.dialect.name()),
                };
                body[about.media]["examples"][name] = json!({ "value": example });
            }
        }
        operation["requestBody"] = json!({ "required": true, "content": body });
    }
    for (status, names) in errors.of(abouts, path) {
        operation["responses"][status.as_str()] = match &names[..] {
            [name] => json!({ "$ref": format!("#/components/responses/{name}") }),
            names => errors.either(names),
        };
    }
    operation
}

/// Whether it is answered to anybody.
fn is_open(about: &About) -> bool {
    about.method == "get" && admit::is_open(about.path)
}

/// A schema for each media type: one of those that the `abouts` with it have.
fn content(abouts: &[&About], mut schema: impl FnMut(&About) -> Option<Value>) -> Value {
    let mut media: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for about in abouts {
        if let Some(schema) = schema(about) {
            media.entry(about.media).or_default().push(schema);
        }
    }
    let media = media.into_iter().map(|(media, mut schemas)| {
        let schema = match schemas.len() {
            1 => schemas.remove(0),
            _ => json!({ "anyOf": schemas }),
        };
        (media.to_owned(), json!({ "schema": schema }))
    });
    Value::Object(media.collect())
}

/// What [`crate::answer`] says of the cost.
fn usage_headers() -> Value {
    let integer = |description| json!({ "description": description, "schema": { "type": "integer", "minimum": 0 } });
    json!({
        "server-timing": {
            "description": "tokenize, queue and forward, in milliseconds",
            "schema": { "type": "string" },
        },
        "x-compute-characters": integer("characters of the texts"),
        "x-compute-tokens": integer("tokens that the model read"),
        "x-total-time": integer("milliseconds in all"),
        "x-tokenization-time": integer("milliseconds of it from text to tokens"),
        "x-queue-time": integer("milliseconds of it in the queue"),
        "x-inference-time": integer("milliseconds of it in the model"),
        "x-truncated": {
            "description": "only if a part of a text was cut off before",
            "schema": { "const": "true" },
        },
    })
}

/// Errors that callers may meet, and where the document has them.
struct Errors {
    /// Whether operations that are not open need a token.
    needs_token: bool,
    always: Vec<ApiError>,
    of_tokens: Vec<ApiError>,
    of_calls: Vec<ApiError>,
    of_names: Vec<ApiError>,
    responses: Map<String, Value>,
}

impl Errors {
    fn new(config: &Config, function: &str) -> Self {
        let timeout = config.request_timeout;
        let too_large = ApiError::body_too_large(config.max_body_bytes);
        let too_long = |index: usize| format!("text {index}");
        let of_pipeline = |error| ApiError::of_pipeline(&error, too_long);
        let max_queue_requests = config.batch_limits.max_queue_requests;
        let max_texts = config.max_client_batch_size;
        let mut of_tokens = Vec::new();
        if config.auth.is_some() {
            let refusals = [
                AuthError::Missing,
                AuthError::Expired,
                AuthError::Forbidden,
                AuthError::KeysUnavailable,
            ];
            of_tokens.extend(refusals.map(|error| ApiError::of_auth(error, function)));
            of_tokens.push(ApiError::two_tokens(function));
        }
        let mut of_limits = Vec::new();
        if !config.rate_limits.is_empty() {
            let (limit, hour) = (10, Duration::from_secs(3600));
            let standing = Standing { unit: Unit::Requests, limit, remaining: 0, reset: hour };
            let exceeded = LimitError::Exceeded { standing, retry_after: hour };
            of_limits.extend([exceeded, LimitError::Unavailable].map(ApiError::of_limit));
        }
        Self {
            needs_token: config.auth.is_some(),
            of_tokens,
            always: vec![
                ApiError::uri_too_long(config.max_header_bytes / 2),
                ApiError::overloaded("requests are being answered", config.max_concurrent_requests),
                ApiError::shutting_down(),
                ApiError::timeout(timeout),
            ],
            of_calls: vec![
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "the body is not JSON"),
                ApiError::slow_body(timeout),
                too_large,
                ApiError::unsupported_encoding(),
                ApiError::unsupported_type("application/json"),
                ApiError::missing("text"),
                ApiError::field("empty", "text", "is empty"),
                ApiError::field("too_many", "texts", "there are too many").with_limit(max_texts),
                ApiError::field("denied", "text", "holds what INPUT_DENY forbids"),
                of_pipeline(PipelineError::TooManyTokens {
                    index: 0,
                    max_input_tokens: config.token_limits.max_input_tokens,
                }),
                of_pipeline(PipelineError::QueueFull { max_queue_requests }),
                ApiError::internal(),
                ApiError::loading(),
            ]
            .into_iter()
            .chain(of_limits)
            .collect(),
            of_names: vec![ApiError::no_such_model("another")],
            responses: Map::new(),
        }
    }

    /// Names of the responses to what is asked, by their status.
    fn of(&mut self, abouts: &[&About], path: &str) -> BTreeMap<StatusCode, Vec<String>> {
        let first = abouts[0];
        let mut errors = self.always.clone();
        if !is_open(first) {
            errors.extend(self.of_tokens.clone());
        }
        if first.is_call {
            errors.extend(self.of_calls.clone());
        }
        if path.contains('{') {
            errors.extend(self.of_names.clone());
        }
        errors.extend(abouts.iter().filter_map(|about| about.error.clone()));
        let mut statuses: BTreeMap<StatusCode, Vec<String>> = BTreeMap::new();
        for dialect in abouts.iter().map(|about| about.dialect).collect::<BTreeSet<_>>() {
            for error in &errors {
                let status = dialect.status(error);
                let name = format!("{dialect:?}{}", status.as_u16());
                self.note(&name, dialect, error, status);
                let names = statuses.entry(status).or_default();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        statuses
    }

    /// Keeps `error` as an example of the response `name`.
    fn note(&mut self, name: &str, dialect: Dialect, error: &ApiError, status: StatusCode) {
        let response = self.responses.entry(name).or_insert_with(|| {
            let mut response = json!({
                "description": status.canonical_reason().unwrap_or_default(),
                "content": { "application/json": {
                    "schema": dialect.envelope_schema(),
                    "examples": {},
                } },
            });
            if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status) {
                let header = |unit: &str| {
                    json!({
                        "description": format!("{unit} until it may be different"),
                        "schema": { "type": "integer", "minimum": 0 },
                    })
                };
                response["headers"] = json!({
                    "retry-after": header("seconds"),
                    "retry-after-ms": header("milliseconds"),
                });
            }
            response
        });
        let value = json!({ "value": dialect.envelope(error, status) });
        response["content"]["application/json"]["examples"][&*error.code] = value;
    }

    /// A response that is any of those `names`.
    fn either(&self, names: &[String]) -> Value {
        let mut either = self.responses[&names[0]].clone();
        let content = |name: &String| &self.responses[name]["content"]["application/json"];
        let schemas: Vec<&Value> = names.iter().map(|name| &content(name)["schema"]).collect();
        let schemas: Vec<&Value> = schemas.into_iter().fold(Vec::new(), |mut known, schema| {
            if !known.contains(&schema) {
                known.push(schema);
            }
            known
        });
        either["content"]["application/json"]["schema"] = json!({ "anyOf": schemas });
        either
    }
}

/// Puts numbers and names in the place of each [`LIMIT`].
fn fill_limits(value: &mut Value, config: &Config, task: Option<&Task<'_>>) {
    match value {
        Value::Array(values) => {
            values.iter_mut().for_each(|value| fill_limits(value, config, task));
        }
        Value::Object(schema) => {
            if let Some(Value::String(limit)) = schema.remove(LIMIT) {
                fill_limit(schema, &limit, config, task);
            }
            schema.values_mut().for_each(|value| fill_limits(value, config, task));
        }
        _ => {}
    }
}

fn fill_limit(
    schema: &mut Map<String, Value>,
    limit: &str,
    config: &Config,
    task: Option<&Task<'_>>,
) {
    let mut set = |key: &str, value: Value| drop(schema.insert(key.to_owned(), value));
    match (limit, task) {
        ("chars", _) => set("maxLength", config.max_input_chars.into()),
        ("texts", _) => set("maxItems", config.max_client_batch_size.into()),
        ("ids", _) => set("maxItems", config.max_input_chars.into()),
        ("labels", Some(Task::Classify { labels })) => set("maximum", labels.len().into()),
        ("dimensions", Some(Task::Embed { hidden_size, .. })) => {
            set("maximum", (*hidden_size).into());
        }
        ("prompts", Some(Task::Embed { prompt_names, .. })) => {
            let names = prompt_names.iter().map(|name| Value::from(*name));
            set("enum", names.chain([Value::Null]).collect());
        }
        _ => {}
    }
}
