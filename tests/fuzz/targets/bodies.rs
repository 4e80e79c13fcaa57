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

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, Method, Request, Uri, header::CONTENT_TYPE},
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

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

static FUNCTIONS: LazyLock<[(&str, Router); 3]> = LazyLock::new(|| {
    let config = |function| Config::from_vars(function, |_| None).expect("the defaults");
    let (of_predict, of_embed, of_rerank) = (config("predict"), config("embed"), config("rerank"));
    let bundle = |path: &str| {
        let path = format!("{ROOT}/{path}");
        Bundle::open(&path, &of_predict.model_options).expect("a model of the repository")
    };
    let predict = bundle("functions/predict/model");
    let embed = bundle("functions/embed/model");
    let rerank = bundle("tests/conformance/fixtures/reranker");
    let classifier = Classifier::start(
        &predict,
        Zeros(predict.labels().len()),
        of_predict.batch_limits,
        of_predict.token_limits,
    );
    let embedder =
        Embedder::start(&embed, Zeros(384), of_embed.batch_limits, of_embed.token_limits);
    let reranker =
        Reranker::start(&rerank, Zeros(1), of_rerank.batch_limits, of_rerank.token_limits);
    let _guard = RUNTIME.enter();
    let classifier = classifier.expect("a classifier");
    let embedder = embedder.expect("an embedder");
    let reranker = reranker.expect("a reranker");
    let functions = [
        ("predict", fuzzing::app("predict", of_predict, serve::predict, classifier)),
        ("embed", fuzzing::app("embed", of_embed, serve::embed, embedder)),
        ("rerank", fuzzing::app("rerank", of_rerank, serve::rerank, reranker)),
    ];
    functions.iter().for_each(|(function, app)| check_seeds(function, app));
    functions
});

struct Zeros(usize);

impl Engine for Zeros {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        Output::new(vec![0.0; batch.batch_size() * self.0], batch.batch_size())
    }
}

/// Every way to ask a function has a seed.
fn check_seeds(function: &str, app: &Router) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/bodies");
    let seeds = fs::read_dir(seeds).expect("the seeds").flatten();
    let seeds: Vec<Vec<u8>> = seeds.filter_map(|seed| fs::read(seed.path()).ok()).collect();
    let document = ask(app, Request::get("/openapi.json").body(Body::empty()).expect("a request"));
    let document: Value = serde_json::from_slice(&document.1).expect("a document");
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{model}", function).replace("{version}", "1");
        let line = format!("{function} POST {path}\n");
        let has_seed = seeds.iter().any(|seed| seed.starts_with(line.as_bytes()));
        assert!(operations.get("post").is_none() || has_seed, "no seed begins with {line}");
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    match request(input) {
        Some((app, request)) => check(app, request),
        None => return Corpus::Reject,
    }
    Corpus::Keep
});

fn request(input: &[u8]) -> Option<(&'static Router, Request<Body>)> {
    let end = input.windows(2).position(|pair| pair == b"\n\n")?;
    let mut lines = str::from_utf8(&input[..end]).ok()?.lines();
    let mut words = lines.next()?.splitn(3, ' ');
    let function = words.next()?;
    let (_, app) = FUNCTIONS.iter().find(|(name, _)| *name == function)?;
    let method: Method = words.next()?.parse().ok()?;
    let uri: Uri = words.next()?.parse().ok().filter(|uri: &Uri| uri.path().starts_with('/'))?;
    let mut request = Request::new(Body::from(Bytes::copy_from_slice(&input[end + 2..])));
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let value = HeaderValue::from_str(value).ok()?;
        request.headers_mut().append(name.parse::<HeaderName>().ok()?, value);
    }
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    Some((app, request))
}

fn ask(app: &Router, request: Request<Body>) -> (axum::http::response::Parts, Bytes) {
    RUNTIME.block_on(async {
        let (parts, body) = app.clone().oneshot(request).await.expect("an answer").into_parts();
        (parts, body.collect().await.expect("a body").to_bytes())
    })
}

/// Whatever is asked, the answer is no failure of ours, and what it says it is.
fn check(app: &Router, request: Request<Body>) {
    let is_head = request.method() == Method::HEAD;
    let (parts, body) = ask(app, request);
    // 424 is how text-embeddings-inference says 500.
    assert!(parts.status.as_u16() < 500 && parts.status != 424, "{}: {body:?}", parts.status);
    let is_json = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.to_str().is_ok_and(|media| media.contains("json")));
    if is_json && !is_head {
        let json: Value = serde_json::from_slice(&body).expect("JSON");
        if parts.status.is_client_error() {
            let names = ["error", "message"];
            assert!(names.iter().any(|name| json.get(name).is_some()), "{}: {json}", parts.status);
        }
    }
}
