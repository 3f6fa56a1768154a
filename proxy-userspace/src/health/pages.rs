//! What the node's own servers answer: /healthz and /livez for load balancers and the kubelet, and
//! the status server for people and Prometheus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::http::{Answer, Handler};
use super::metrics::Metrics;
use super::proxy::{HealthBody, Moment, ProxyHealth};
use crate::agent::socket::{Question, Request};

/// What `/proxyMode` says.
pub const PROXY_MODE: &str = "shunt";

/// How long the agent's loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// The state that probes are answered from. The lock is never held over an await.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<ProxyHealth>>,
    clock: Clock,
}

impl Health {
    /// An update is late after 2 x `sync_period` (S-144).
    pub fn new(sync_period: Duration, clock: Clock) -> Self {
        Self {
            state: Arc::new(Mutex::new(ProxyHealth::new(sync_period))),
            clock,
        }
    }

    /// Changes the state, given the time.
    pub fn update(&self, change: impl FnOnce(&mut ProxyHealth, Moment)) {
        let now = (self.clock)();
        change(&mut self.lock(), now);
    }

    /// S-144.
    pub fn is_proxy_healthy(&self) -> bool {
        let now = (self.clock)();
        self.lock().is_healthy(now)
    }

    fn lock(&self) -> MutexGuard<'_, ProxyHealth> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// /healthz and /livez (S-145, S-146).
pub fn health(health: Health, metrics: Metrics) -> Handler {
    Arc::new(move |path| {
        let now = (health.clock)();
        let answer = match path.as_str() {
            "/healthz" => probe(health.lock().healthz(now), |code| metrics.healthz(code)),
            "/livez" => probe(health.lock().livez(now), |code| metrics.livez(code)),
            _ => not_found(),
        };
        Box::pin(std::future::ready(answer))
    })
}

fn probe((is_ok, body): (bool, HealthBody), count: impl Fn(StatusCode)) -> Answer {
    let status = match is_ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    count(status);
    // Plain data: this cannot fail.
    Answer::json(status, serde_json::to_string(&body).unwrap_or_default())
}

/// A part of /metrics that takes long to read. It is read beside the agent's loop.
pub type Slow = Arc<dyn Fn() -> String + Send + Sync>;

/// The status server (S-148). `configz`: the options in force, as JSON.
pub fn status(configz: String, agent: mpsc::Sender<Request>, slow: Slow) -> Handler {
    let configz = Arc::<str>::from(configz);
    Arc::new(move |path| {
        let (configz, agent) = (Arc::clone(&configz), agent.clone());
        let slow = Arc::clone(&slow);
        Box::pin(async move {
            match path.as_str() {
                "/healthz" => Answer::text("ok"),
                "/proxyMode" => Answer::text(PROXY_MODE),
                "/configz" => Answer::json(StatusCode::OK, configz.to_string()),
                "/metrics" => metrics(&agent, slow).await,
                _ => not_found(),
            }
        })
    })
}

/// Only the agent's loop knows its own state.
async fn metrics(agent: &mpsc::Sender<Request>, slow: Slow) -> Answer {
    let slow = tokio::task::spawn_blocking(move || slow());
    let (answer, answered) = oneshot::channel();
    let question = Question::Metrics;
    let asked = async {
        agent.send(Request { question, answer }).await.ok()?;
        let text = answered.await.ok()?;
        // A part that fails does not keep the others.
        Some(text + &slow.await.unwrap_or_default())
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(text)) => Answer {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Answer::text(text)
        },
        Ok(None) | Err(_) => Answer::plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent does not answer\n",
        ),
    }
}

fn not_found() -> Answer {
    Answer::plain(StatusCode::NOT_FOUND, "404 page not found\n")
}
