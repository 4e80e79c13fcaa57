//! Requests in every dialect, through the router of every function, over a model that answers zeros.
//!
//! A seed is a function and a request, as HTTP/1.1 would write it:
//!
//! ```text
//! predict POST /predict
//! content-type: application/json
//!
//! {"text": "What a film!"}
//! ```
//!
//! `guarded` is `predict` for callers with a token.

#![no_main]

use std::{collections::HashMap, fs, sync::LazyLock};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{
        HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
        header::{AUTHORIZATION, CONTENT_TYPE},
        response::Parts,
    },
};
use engine::{Batch, Engine, EngineError, Output};
use http_body_util::BodyExt;
use libfuzzer_sys::{Corpus, fuzz_target};
use pipeline::{Classifier, Embedder, Reranker};
use serde_json::Value;
use serve::{Config, fuzzing};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use weights::Bundle;

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

const SECRET: &str = "the secret of the tokens in tests/fuzz, and of nothing else";
const TOKEN: &str = include_str!("../seeds/token/token-hs256");

/// Longest body of an error: it quotes the caller, but no more than so much.
const MAX_ERROR_BYTES: usize = 4096;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static FUNCTIONS: LazyLock<HashMap<&str, Function>> = LazyLock::new(|| {
    let _guard = RUNTIME.enter();
    let of_predict = config("predict", &[]);
    let bundle = |path: &str| {
        let path = format!("{FOLDER}/../../{path}");
        Bundle::open(&path, &of_predict.model_options).expect("a model of the repository")
    };
    let (batches, tokens) = (of_predict.batch_limits, of_predict.token_limits);
    let predict = bundle("functions/predict/model");
    let predict = Classifier::start(&predict, Zeros(predict.labels().len()), batches, tokens);
    let embed = bundle("functions/embed/model");
    let embed = Embedder::start(&embed, Zeros(384), batches, tokens).expect("an embedder");
    let rerank = bundle("tests/conformance/fixtures/reranker");
    let rerank = Reranker::start(&rerank, Zeros(1), batches, tokens).expect("a reranker");
    let predict = predict.expect("a classifier");

    let of_embed = config("embed", &[("ALLOW_TOKEN_IDS", "true")]);
    let guard = [("AUTH", "jwt"), ("JWT_SECRET", SECRET), ("ALLOWED_ROLES", "user")];
    let of_guarded = config("predict", &guard);
    let users = format!("{FOLDER}/users");
    let of_token = [("USERS_FILE", &*users), ("JWT_SECRET", SECRET), ("LOGIN_LIMIT", "off")];
    let of_token = config("token", &of_token);
    let apps = [
        ("predict", fuzzing::app("predict", of_predict, serve::predict, predict.clone())),
        ("embed", fuzzing::app("embed", of_embed, serve::embed, embed)),
        ("rerank", fuzzing::app("rerank", config("rerank", &[]), serve::rerank, rerank)),
        ("guarded", fuzzing::app("predict", of_guarded, serve::predict, predict)),
        ("token", fuzzing::token(of_token).expect("log-ins")),
    ];
    apps.into_iter().map(|(name, app)| (name, Function::new(name, app))).collect()
});

fn config(function: &str, vars: &[(&str, &str)]) -> Config {
    let var = |name: &str| vars.iter().find(|(known, _)| *known == name);
    let config =
        Config::from_vars(function, |name| var(name).map(|(_, value)| (*value).to_owned()));
    config.expect("good settings")
}

struct Zeros(usize);

impl Engine for Zeros {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        Output::new(vec![0.0; batch.batch_size() * self.0], batch.batch_size())
    }
}

/// What answers, and the document that says what it answers.
struct Function {
    app: Router,
    document: Value,
    /// What the document says of a method and a path.
    operations: HashMap<(String, String), Value>,
}

impl Function {
    fn new(name: &str, app: Router) -> Self {
        let request = Request::get("/openapi.json").body(Body::empty()).expect("a request");
        let document: Value = serde_json::from_slice(&ask(&app, request).1).expect("a document");
        let title = document["info"]["title"].as_str().expect("a title");
        let mut operations = HashMap::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            let path = path.replace("{model}", title).replace("{version}", "1");
            for (method, operation) in methods.as_object().expect("methods") {
                operations.insert((method.to_uppercase(), path.clone()), operation.clone());
            }
        }
        let function = Self { app, document, operations };
        function.check_seeds(name);
        function
    }

    /// Every example of the document is a seed, and is answered.
    fn check_seeds(&self, name: &str) {
        let seeds = fs::read_dir(format!("{FOLDER}/seeds/bodies")).expect("the seeds").flatten();
        let seeds: Vec<Vec<u8>> = seeds.filter_map(|seed| fs::read(seed.path()).ok()).collect();
        for ((method, path), operation) in &self.operations {
            let Some(media) = operation["requestBody"]["content"].as_object() else { continue };
            let examples = media.values().filter_map(|content| content["examples"].as_object());
            for example in examples.flat_map(|examples| examples.values()) {
                let line = format!("{name} {method} {path}\n");
                let is_example = |seed: &&Vec<u8>| {
                    let body = split(seed).and_then(|(_, body)| serde_json::from_slice(body).ok());
                    seed.starts_with(line.as_bytes()) && body.as_ref() == Some(&example["value"])
                };
                // What is behind the guard is the same.
                let seed = match name {
                    "guarded" => continue,
                    _ => seeds.iter().find(is_example),
                };
                let seed = seed.unwrap_or_else(|| panic!("no seed is {line}{example}"));
                let (_, request) = request(seed).expect("a request");
                assert_eq!(ask(&self.app, request).0.status, StatusCode::OK, "{line}{example}");
            }
        }
    }

    /// The answer is no failure of ours, and is what the document says.
    fn check(&self, request: Request<Body>) -> StatusCode {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (parts, body) = ask(&self.app, request);
        let status = parts.status;
        let is_failure = status.is_server_error() || status == StatusCode::FAILED_DEPENDENCY;
        assert!(!is_failure, "{status}: {body:?}");
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = content_type.is_some_and(|media| media.contains("json"));
        if method == Method::HEAD || !is_json && status.is_success() {
            check_tensors(&parts, &body);
            return status;
        }
        let json: Value = serde_json::from_slice(&body).expect("JSON");
        if status.is_success() {
            return status;
        }
        assert!(body.len() <= MAX_ERROR_BYTES, "{json}");
        match self.operations.get(&(method.to_string(), path)) {
            // What is not there is in no document.
            None => assert!(json.get("error").or(json.get("message")).is_some(), "{json}"),
            Some(operation) => {
                let response = &operation["responses"][status.as_str()];
                let schema = &self.resolve(response)["content"]["application/json"]["schema"];
                assert!(schema.is_object() && fits(&json, schema), "{status}, {json}: {schema}");
            }
        }
        status
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let place = value["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
        place.and_then(|place| self.document.pointer(place)).unwrap_or(value)
    }
}

/// Whether `json` is as `schema` says, as far as errors have schemas.
fn fits(json: &Value, schema: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| fits(json, schema));
    }
    let is = |kind: &Value| match kind.as_str() {
        Some("object") => json.is_object(),
        Some("string") => json.is_string(),
        Some("integer") => json.is_u64(),
        Some("null") => json.is_null(),
        _ => false,
    };
    let kind = &schema["type"];
    let required = schema["required"].as_array().into_iter().flatten();
    let properties = schema["properties"].as_object().into_iter().flatten();
    kind.as_array().map_or_else(|| is(kind), |kinds| kinds.iter().any(is))
        && required.filter_map(Value::as_str).all(|name| json.get(name).is_some())
        && properties
            .into_iter()
            .all(|(name, schema)| json.get(name).is_none_or(|value| fits(value, schema)))
}

/// Binary tensors are as long as the JSON before them says.
fn check_tensors(parts: &Parts, body: &[u8]) {
    let Some(length) = parts.headers.get("inference-header-content-length") else { return };
    let length: usize = length.to_str().expect("text").parse().expect("a number");
    let (head, binary) = body.split_at(length);
    let head: Value = serde_json::from_slice(head).expect("JSON");
    let outputs = head["outputs"].as_array().expect("outputs").iter();
    let sizes = outputs.filter_map(|output| output["parameters"]["binary_data_size"].as_u64());
    assert_eq!(sizes.sum::<u64>(), binary.len() as u64, "{head}");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((name, request)) = request(input) else { return Corpus::Reject };
    let Some(function) = FUNCTIONS.get(name) else { return Corpus::Reject };
    let token = TOKEN.trim_start_matches("token\n");
    let mut tokens = request.headers().get_all(AUTHORIZATION).iter();
    let has_token = tokens.any(|value| value.to_str().is_ok_and(|value| value.ends_with(token)));
    let is_call = request.method() == Method::POST;
    let status = function.check(request);
    assert!(name != "guarded" || !is_call || has_token || !status.is_success(), "was let in");
    Corpus::Keep
});

/// The lines before the first empty one, and what comes after it.
fn split(input: &[u8]) -> Option<(&str, &[u8])> {
    let end = input.windows(2).position(|pair| pair == b"\n\n")?;
    Some((str::from_utf8(&input[..end]).ok()?, &input[end + 2..]))
}

/// The name of a function, and what it is asked.
fn request(input: &[u8]) -> Option<(&str, Request<Body>)> {
    let (head, body) = split(input)?;
    let mut lines = head.lines();
    let mut words = lines.next()?.splitn(3, ' ');
    let name = words.next()?;
    let method: Method = words.next()?.parse().ok()?;
    let uri: Uri = words.next()?.parse().ok()?;
    let mut request = Request::new(Body::from(Bytes::copy_from_slice(body)));
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        request.headers_mut().append(name.parse::<HeaderName>().ok()?, value);
    }
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    Some((name, request))
}

fn ask(app: &Router, request: Request<Body>) -> (Parts, Bytes) {
    RUNTIME.block_on(async {
        let (parts, body) = app.clone().oneshot(request).await.expect("an answer").into_parts();
        (parts, body.collect().await.expect("a body").to_bytes())
    })
}
