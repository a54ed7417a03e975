//! Looking for a submission whose answer was lost, in the account's list of predictions.

use jiff::{SignedDuration, Timestamp};
use url::Url;
use vidgen_core::{ErrorKind, Handle, Lookup, Result, Submission, SubmissionId};

use super::{Replicate, wire};
use crate::client::Call;
use crate::models::ModelEntry;

/// How far the clocks of our store and of Replicate may differ.
const SKEW: SignedDuration = SignedDuration::from_mins(2);
/// How long after its intent a submission may still come in: it is sent within 20 s, answered within
/// a minute, and may hang in somebody's proxy for another. Where the host waits longer for the answer,
/// it may come in so much later: what is looked for too early in the list is bought again.
const ARRIVES: SignedDuration = SignedDuration::from_mins(5);
/// What there is of that beside the wait for the answer.
const BESIDE: SignedDuration = SignedDuration::from_mins(2);
/// A hundred predictions each: more than the 600 a minute that an account may create in that time.
const MAX_PAGES: usize = 60;
/// How many predictions that do not say whose they are get a look of their own.
const MAX_LOOKS: usize = 20;

impl Replicate {
    pub(super) async fn search(&self, submission: &Submission) -> Result<Lookup> {
        let entry = self.models.entries().iter().find(|entry| *entry.id() == submission.model);
        let mut call = Call::get(["predictions"]);
        if let Some(at) = submission.intent_at {
            let patient = SignedDuration::try_from(self.client.submit_timeout()).unwrap_or(SignedDuration::MAX);
            let patient = patient.saturating_add(BESIDE);
            call = call
                .with_query("created_after", moment(at, -SKEW))
                .with_query("created_before", moment(at, SKEW.saturating_add(ARRIVES.max(patient))));
        }
        let mut nameless = Vec::new();
        for _ in 0..MAX_PAGES {
            let page: wire::Page = self.client.ask(call).await?.body;
            for prediction in page.results {
                match whose(&prediction, entry, &submission.id) {
                    Whose::Ours => return Ok(self.found(prediction)),
                    Whose::Nobodys => nameless.push(prediction.id),
                    Whose::Others => {}
                }
            }
            call = match page.next {
                Some(next) => Call::link(next),
                None => return self.among(nameless, entry, submission).await,
            };
        }
        Ok(Lookup::Unknown)
    }

    /// Looks at the predictions that the list left nameless, one by one.
    async fn among(
        &self,
        nameless: Vec<String>,
        entry: Option<&ModelEntry>,
        submission: &Submission,
    ) -> Result<Lookup> {
        let mut all_told = nameless.len() <= MAX_LOOKS;
        for id in nameless.iter().take(MAX_LOOKS) {
            let prediction = match self.prediction(id).await {
                Ok(prediction) => prediction,
                // What is deleted meanwhile may have been ours.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    all_told = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match whose(&prediction, entry, &submission.id) {
                Whose::Ours => return Ok(self.found(prediction)),
                Whose::Nobodys => all_told = false,
                Whose::Others => {}
            }
        }
        Ok(if all_told { Lookup::Absent } else { Lookup::Unknown })
    }

    fn found(&self, prediction: wire::Prediction) -> Lookup {
        Lookup::Found(Handle::new(self.id.clone(), prediction.id))
    }
}

/// Whom a prediction belongs to, by what it says itself.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    Others,
    /// It may be ours: it names nobody.
    Nobodys,
}

fn whose(prediction: &wire::Prediction, entry: Option<&ModelEntry>, id: &SubmissionId) -> Whose {
    let marked = entry.and_then(|entry| entry.marked(&prediction.input));
    let named = prediction.webhook.as_deref().filter(|url| !url.is_empty());
    match (named, marked) {
        _ if named.is_some_and(|url| names(url, id)) || marked == Some(id.as_str()) => Whose::Ours,
        // Somebody's webhook, or another submission's mark; or it was made in a browser.
        (Some(_), _) | (_, Some(_)) => Whose::Others,
        _ if prediction.source.as_deref() == Some("web") => Whose::Others,
        _ => Whose::Nobodys,
    }
}

/// Whether a callback URL is that of a submission: by its query, or by a part of its path where a
/// host has built it so.
fn names(url: &str, id: &SubmissionId) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    url.query_pairs().any(|(name, value)| name == "submission" && value == id.as_str())
        || url.path_segments().is_some_and(|mut parts| parts.any(|part| part == id.as_str()))
}

/// To the second: what other fractions its parser takes is not known, and the margin is wide.
fn moment(at: Timestamp, by: SignedDuration) -> String {
    let moment = at.saturating_add(by).unwrap_or(at);
    Timestamp::from_second(moment.as_second()).unwrap_or(moment).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prediction(fields: serde_json::Value) -> wire::Prediction {
        let mut all = json!({ "id": "p", "status": "starting", "source": "api" });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_prediction_is_ours_by_its_webhook_or_its_mark_and_nobodys_without() {
        let id = SubmissionId::from_remote("sub_1");
        let text = "id = \"a/b\"\nkind = \"image\"\nprice = { free = true }\nfields.marker = \"mark\"";
        let entry = ModelEntry::from_toml(text).unwrap();
        for (fields, whose_it_is) in [
            (json!({ "webhook": "https://h.example/callbacks/replicate?submission=sub_1&signature=x" }), Whose::Ours),
            (json!({ "webhook": "https://h.example/callbacks/sub_1" }), Whose::Ours),
            (json!({ "webhook": "https://h.example/callbacks/replicate?submission=sub_12" }), Whose::Others),
            (json!({ "webhook": "https://h.example/?other=sub_1" }), Whose::Others),
            (json!({ "webhook": "", "input": { "mark": "sub_1" } }), Whose::Ours),
            (json!({ "webhook": null, "input": { "mark": "sub_2" } }), Whose::Others),
            (json!({ "input": {} }), Whose::Nobodys),
            (json!({ "source": "web" }), Whose::Others),
        ] {
            assert_eq!(whose(&prediction(fields.clone()), Some(&entry), &id), whose_it_is, "{fields}");
        }
    }
}
