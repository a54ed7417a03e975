//! A notifier that throws events into letter boxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use vidgen_core::conformance::notifier::{Bench, Scene};
use vidgen_core::*;

/// A receiver that never answers is given up after this long.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
struct Boxes {
    boxes: Arc<Mutex<HashMap<String, Behaviour>>>,
    letters: Arc<Mutex<Vec<(String, String)>>>,
}

#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Open,
    Jammed,
    Gone,
    Slow,
}

#[async_trait]
impl Notifier for Boxes {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        match endpoint.strip_prefix("box:") {
            Some(name) if name.chars().all(|c| c.is_ascii_alphanumeric()) => Ok(()),
            _ => Err(Error::invalid_field("webhook_url", "should be box: and a name")),
        }
    }

    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        self.accepts(&delivery.endpoint)?;
        let behaviour = self.boxes.lock().unwrap().get(&delivery.endpoint).copied();
        let letter = (delivery.id.to_string(), delivery.body.clone());
        match behaviour {
            None => Err(Error::new(ErrorKind::Unavailable, "boxes", "there is no such box now")),
            Some(Behaviour::Gone) => Err(Error::new(ErrorKind::NotFound, "boxes", "the box was taken down")),
            Some(Behaviour::Slow) => {
                let told = tokio::time::timeout(PATIENCE, std::future::pending::<()>()).await;
                told.map_err(|e| Error::new(ErrorKind::Unavailable, "boxes", "the box is stuck").with_source(e))
            }
            Some(Behaviour::Jammed) => {
                self.letters.lock().unwrap().push(letter);
                Err(Error::new(ErrorKind::Unavailable, "boxes", "the box jams").with_retry_after(PATIENCE))
            }
            Some(Behaviour::Open) => {
                self.letters.lock().unwrap().push(letter);
                Ok(())
            }
        }
    }
}

impl Bench for Boxes {
    fn notifier(&self) -> &dyn Notifier {
        self
    }

    fn arrange(&self, scene: Scene) -> Option<String> {
        let behaviour = match scene {
            Scene::Takes => Some(Behaviour::Open),
            Scene::Fails => Some(Behaviour::Jammed),
            Scene::Gone => Some(Behaviour::Gone),
            Scene::Hangs => Some(Behaviour::Slow),
            Scene::Away => None,
            _ => return None,
        };
        let mut boxes = self.boxes.lock().unwrap();
        let endpoint = format!("box:{scene:?}{}", boxes.len());
        behaviour.map(|behaviour| boxes.insert(endpoint.clone(), behaviour));
        Some(endpoint)
    }

    fn received(&self) -> Vec<(String, String)> {
        self.letters.lock().unwrap().clone()
    }

    fn impossible(&self) -> Vec<String> {
        vec![String::new(), "https://example.com".into(), "box:../etc".into()]
    }
}

vidgen_core::notifier_conformance!(boxes, async { Boxes::default() });
