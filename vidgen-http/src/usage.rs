//! `GET /usage`.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use vidgen_core::{FieldError, ModelId, ProviderId, UsageFilter};

use crate::error::Problem;
use crate::options::{Api, Principal};
use crate::status::NO_STORE;

#[derive(Deserialize)]
pub(crate) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
}

/// Amounts are in dollars.
#[derive(Serialize)]
struct Usage {
    cost: f64,
    charged: f64,
    held: f64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    day: String,
    step: String,
    provider: ProviderId,
    model: ModelId,
    count: u64,
    cost: f64,
}

/// What the caller used.
pub(crate) async fn usage(
    State(api): State<Api>,
    principal: Principal,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Query(query) = query.map_err(|_| Problem::invalid_field("", "the query cannot be read"))?;
    let mut bad = Vec::new();
    let mut moment = |field: &str, text: Option<String>| {
        let parsed = text.map(|t| t.parse()).transpose();
        parsed.unwrap_or_else(|_| {
            bad.push(FieldError::new(field, "must be a moment like 2026-01-31T00:00:00Z"));
            None
        })
    };
    let filter = UsageFilter { from: moment("from", query.from), to: moment("to", query.to) };
    if !bad.is_empty() {
        return Err(Problem::invalid(bad));
    }
    let report = api.vidgen.usage(&principal.tenant, &filter).await?;
    let rows = report.rows.into_iter().map(|row| Row {
        day: row.day,
        step: row.step,
        provider: row.provider,
        model: row.model,
        count: row.count,
        cost: row.cost.dollars(),
    });
    let usage = Usage {
        cost: report.cost.dollars(),
        charged: report.charged.dollars(),
        held: report.held.dollars(),
        rows: rows.collect(),
    };
    Ok((NO_STORE, Json(usage)))
}
