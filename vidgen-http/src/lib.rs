//! HTTP for vidgen: signed webhooks.

mod webhook;

pub use webhook::{Webhooks, WebhooksBuilder};
