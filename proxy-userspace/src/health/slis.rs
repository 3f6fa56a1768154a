//! `/metrics/slis` (S-148): how checks of health came out, under the names that every Kubernetes
//! component gives them (KEP-3466).

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// Which probe made a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// /healthz.
    Healthz,
    /// /livez.
    Livez,
}

impl Probe {
    fn label(self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Livez => "livez",
        }
    }
}

/// Results of checks; a cheap handle.
#[derive(Clone, Debug)]
pub struct Slis {
    registry: Registry,
    last: IntGaugeVec,
    all: IntCounterVec,
}

impl Slis {
    /// Registers everything.
    pub fn new() -> prometheus::Result<Self> {
        let last = Opts::new(
            "kubernetes_healthcheck",
            "Result of the last check of this name and probe: 1 is healthy",
        );
        let all = Opts::new("kubernetes_healthchecks_total", "Results of all checks");
        let slis = Self {
            registry: Registry::new(),
            last: IntGaugeVec::new(last, &["name", "type"])?,
            all: IntCounterVec::new(all, &["name", "status", "type"])?,
        };
        slis.registry.register(Box::new(slis.last.clone()))?;
        slis.registry.register(Box::new(slis.all.clone()))?;
        Ok(slis)
    }

    /// A probe has made the check `name`.
    pub fn checked(&self, probe: Probe, name: &str, is_healthy: bool) {
        let status = if is_healthy { "success" } else { "error" };
        let last = self.last.with_label_values(&[name, probe.label()]);
        last.set(is_healthy.into());
        self.all
            .with_label_values(&[name, status, probe.label()])
            .inc();
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> String {
        let encoded = TextEncoder::new().encode_to_string(&self.registry.gather());
        encoded.unwrap_or_else(|error| {
            tracing::error!(%error, "results of checks not encoded");
            String::new()
        })
    }
}
