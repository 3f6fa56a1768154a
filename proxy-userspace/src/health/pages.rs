//! What the node's own servers answer: /healthz and /livez for load balancers and the kubelet, and
//! the status server for people and Prometheus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot};

use super::http::{Answer, Asked, Handler};
use super::metrics::Metrics;
use super::proxy::{HealthBody, Moment, ProxyHealth};
use super::slis::{Probe, Slis};
use super::{debug, zpages};
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
pub fn health(health: Health, metrics: Metrics, slis: Slis) -> Handler {
    Arc::new(move |asked| {
        let now = (health.clock)();
        let answer = match asked.path.as_str() {
            "/healthz" => {
                let (is_ok, body) = health.lock().healthz(now);
                slis.checked(Probe::Healthz, "proxy", body.healthy);
                let is_eligible = body.node_eligible.unwrap_or_default();
                slis.checked(Probe::Healthz, "node", is_eligible);
                probe(is_ok, &body, |code| metrics.healthz(code))
            }
            "/livez" => {
                let (is_ok, body) = health.lock().livez(now);
                slis.checked(Probe::Livez, "proxy", body.healthy);
                probe(is_ok, &body, |code| metrics.livez(code))
            }
            _ => not_found(),
        };
        Box::pin(std::future::ready(answer))
    })
}

fn probe(is_ok: bool, body: &HealthBody, count: impl Fn(StatusCode)) -> Answer {
    let status = match is_ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    count(status);
    // Plain data: this cannot fail.
    Answer::json(status, serde_json::to_string(body).unwrap_or_default())
}

/// A part of /metrics that takes long to read. It is read beside the agent's loop.
pub type Slow = Arc<dyn Fn() -> String + Send + Sync>;

/// Whether the status server has what is below `/debug/` (`enableProfiling`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Profiling {
    /// It has.
    On,
    /// It has not.
    #[default]
    Off,
}

/// What the status server answers from.
pub struct StatusPages {
    /// The options in force, as JSON.
    pub configz: String,
    /// Whether it may be profiled.
    pub profiling: Profiling,
    /// Where the agent's loop is asked.
    pub agent: mpsc::Sender<Request>,
    /// What else /metrics says.
    pub slow: Slow,
    /// Results of probes.
    pub slis: Slis,
    /// When the agent started.
    pub started: Moment,
}

/// What is served beside /statusz.
const PATHS: [&str; 6] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
];

/// The status server (S-148).
pub fn status(pages: StatusPages) -> Handler {
    let pages = Arc::new(pages);
    Arc::new(move |asked| {
        let pages = Arc::clone(&pages);
        Box::pin(async move { pages.answer(&asked).await })
    })
}

impl StatusPages {
    async fn answer(&self, asked: &Asked) -> Answer {
        match asked.path.as_str() {
            "/healthz" => {
                self.slis.checked(Probe::Healthz, "ping", true);
                Answer::text("ok")
            }
            "/proxyMode" => Answer::text(PROXY_MODE),
            "/configz" => Answer::json(StatusCode::OK, self.configz.clone()),
            "/flagz" => Answer::text(zpages::flagz(&self.configz)),
            "/statusz" => Answer::text(self.statusz()),
            "/metrics" => metrics(&self.agent, Arc::clone(&self.slow)).await,
            "/metrics/slis" => exposition(self.slis.text()),
            _ if self.profiling == Profiling::On => {
                debug::answer(asked).await.unwrap_or_else(not_found)
            }
            _ => not_found(),
        }
    }

    fn statusz(&self) -> String {
        let Moment { instant, time } = self.started;
        let debug = match self.profiling {
            Profiling::On => &[debug::VERBOSITY, debug::PROFILE][..],
            Profiling::Off => &[],
        };
        let paths: Vec<&str> = debug.iter().chain(&PATHS).copied().collect();
        zpages::statusz(time, instant.elapsed(), &paths)
    }
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
        Ok(Some(text)) => exposition(text),
        Ok(None) | Err(_) => Answer::plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent does not answer\n",
        ),
    }
}

/// In Prometheus' text format.
fn exposition(text: String) -> Answer {
    Answer {
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        ..Answer::text(text)
    }
}

fn not_found() -> Answer {
    Answer::plain(StatusCode::NOT_FOUND, "404 page not found\n")
}
