//! Cohere's API: reranking, at both of its versions.
//!
//! ```text
//! POST /v2/rerank  {"model", "query", "documents": ["…"], "top_n"}
//!   ->  {"id", "results": [{"index", "relevance_score"}], "meta"}
//! ```
//!
//! Source: <https://docs.cohere.com/reference/rerank>

use pipeline::{Pipeline, PipelineError, Reranker, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    Dialect::Cohere,
    inputs::{Count, Many, OneText, TextItem},
};
use crate::{
    answer::Answer,
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::Whole,
    routes::{Operation, Routes},
};

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let summary = "Documents by how well they answer a query.";
    let first = Operation::post(Cohere, "/v1/rerank", summary, async |endpoint, request| {
        rank(endpoint, request, "1").await
    });
    let second = Operation::post(Cohere, "/v2/rerank", summary, async |endpoint, request| {
        rank(endpoint, request, "2").await
    });
    let example = json!({
        "model": "rerank",
        "query": "Which city is the capital of France?",
        "documents": ["The river is long.", "Paris is the capital of France."],
        "top_n": 1,
    });
    routes
        .with(first.example("documents", example.clone()))
        .with(second.example("documents", example))
}

/// A query, and documents to rank.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CohereRerankRequest")]
struct RerankRequest {
    /// Any name: a function has one model.
    #[serde(default)]
    #[expect(dead_code, reason = "any name will do")]
    model: Option<String>,
    #[schemars(with = "OneText")]
    query: String,
    #[schemars(with = "Many<TextItem>")]
    documents: Vec<TextItem>,
    /// How many documents come back, best first; all unless it is set.
    #[serde(default)]
    #[schemars(with = "Count")]
    top_n: Option<Whole<u32>>,
    /// Whether their texts do.
    #[serde(default)]
    return_documents: Option<bool>,
    /// How many tokens of each document are read; all that the model can unless it is set.
    #[serde(default)]
    #[schemars(with = "Count")]
    max_tokens_per_doc: Option<Whole<u32>>,
}

/// Documents, best first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CohereRerankAnswer")]
struct RerankAnswer {
    id: String,
    results: Vec<Ranked>,
    meta: Meta,
}

/// How well a document answers the query.
#[derive(Debug, Serialize, JsonSchema)]
struct Ranked {
    /// Which of the documents.
    index: usize,
    /// 0 to 1.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument>,
}

/// A document as it was sent.
#[derive(Debug, Serialize, JsonSchema)]
struct RankedDocument {
    text: String,
}

/// What Cohere's clients are told beside the answer.
#[derive(Debug, Serialize, JsonSchema)]
struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
}

/// Of the path.
#[derive(Debug, Serialize, JsonSchema)]
struct ApiVersion {
    version: &'static str,
}

/// One a request.
#[derive(Debug, Serialize, JsonSchema)]
struct BilledUnits {
    search_units: usize,
}

async fn rank(
    endpoint: Endpoint<Reranker>,
    request: RerankRequest,
    version: &'static str,
) -> Result<Answer<RerankAnswer>, ApiError> {
    let RerankRequest { query, top_n, max_tokens_per_doc, .. } = request;
    for (field, value) in [("top_n", top_n), ("max_tokens_per_doc", max_tokens_per_doc)] {
        if value == Some(Whole(0)) {
            return Err(ApiError::field("out_of_range", field, "0 is below 1").with_limit(1));
        }
    }
    let documents: Vec<String> = request.documents.into_iter().map(TextItem::into_text).collect();
    let returned = match request.return_documents {
        Some(true) => documents.clone(),
        _ => Vec::new(),
    };
    let mut texts = Texts::many("documents", documents);
    let mut are_cut = false;
    if let Some(Whole(max_tokens)) = max_tokens_per_doc {
        let checked = texts.check(&endpoint.config)?;
        let cut = endpoint.apart(move |reranker| cut(reranker, checked, max_tokens as usize));
        let (cut, some) = cut.await??;
        texts = Texts::many("documents", cut);
        are_cut = some;
    }
    let mut ranking = endpoint.rerank(query, texts, false, None).await?;
    ranking.usage.truncated |= are_cut;
    let best = ranking.scores.iter().take(top_n.map_or(usize::MAX, |Whole(top_n)| top_n as usize));
    let results = best.map(|ranked| Ranked {
        index: ranked.index,
        relevance_score: ranked.score,
        document: returned.get(ranked.index).map(|text| RankedDocument { text: text.clone() }),
    });
    let answer = RerankAnswer {
        id: Uuid::new_v4().to_string(),
        results: results.collect(),
        meta: Meta {
            api_version: ApiVersion { version },
            billed_units: BilledUnits { search_units: 1 },
        },
    };
    Ok(Answer::new(answer, ranking.usage))
}

/// The first `max_tokens` tokens of each text, and whether one had more.
fn cut(
    reranker: &Reranker,
    texts: Vec<Text>,
    max_tokens: usize,
) -> Result<(Vec<String>, bool), PipelineError> {
    let mut are_cut = false;
    let cut = texts.into_iter().map(|text| {
        let (Text::One(mut text) | Text::Pair(_, mut text)) = text;
        let tokens = reranker.tokens(&text, false)?;
        if tokens.len() > max_tokens
            && let Some(place) = &tokens[max_tokens - 1].place
            && let Some((end, _)) = text.char_indices().nth(place.end)
        {
            text.truncate(end);
            are_cut = true;
        }
        Ok(text)
    });
    let cut = cut.collect::<Result<_, _>>()?;
    Ok((cut, are_cut))
}
