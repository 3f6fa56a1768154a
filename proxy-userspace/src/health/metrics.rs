//! Metrics in kube-proxy's names where they mean the same (section 14 of the rules), and in our
//! own where they do not.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets,
};

use super::exposition::Exposition;
use super::latency;

const NAMESPACE: &str = "kubeproxy";

/// All metrics; a cheap handle.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    no_local_endpoints: IntGaugeVec,
    held_up: IntGaugeVec,
    /// All syncs, full ones, partial ones.
    sync_durations: [HistogramVec; 3],
    programming: HistogramVec,
    sync_last: GaugeVec,
    sync_last_queued: GaugeVec,
    endpoint_changes: IntCounter,
    service_changes: IntCounter,
    /// Of Services and of EndpointSlices.
    pending: [IntGauge; 2],
    drift: IntCounterVec,
}

/// Which policy leaves a service port without a backend on this node (S-106, S-107).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LocalPolicy {
    /// internalTrafficPolicy.
    Internal,
    /// externalTrafficPolicy.
    External,
}

impl LocalPolicy {
    fn label(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

/// How much a sync had to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Everything: the first one.
    Full,
    /// What has changed.
    Partial,
}

impl Extent {
    /// Of the first sync, or of another one.
    pub fn of(is_first: bool) -> Self {
        match is_first {
            true => Self::Full,
            false => Self::Partial,
        }
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> prometheus::Result<Self> {
        let family = &["ip_family"][..];
        let metrics = Self {
            registry: Registry::new(),
            healthz: IntCounterVec::new(
                named("proxy_healthz_total", "Answers of /healthz"),
                &["code"],
            )?,
            livez: IntCounterVec::new(named("proxy_livez_total", "Answers of /livez"), &["code"])?,
            no_local_endpoints: IntGaugeVec::new(
                named(
                    "sync_proxy_rules_no_local_endpoints_total",
                    "Service ports whose policy Local drops traffic for want of an endpoint here",
                ),
                &["ip_family", "traffic_policy"],
            )?,
            held_up: IntGaugeVec::new(
                Opts::new(
                    "shunt_service_ports_held_up",
                    "Service ports that the maps do not hold completely",
                ),
                family,
            )?,
            sync_durations: sync_durations()?,
            programming: HistogramVec::new(
                HistogramOpts::from(named(
                    "network_programming_duration_seconds",
                    "From a change of endpoints until it is programmed",
                ))
                .buckets(latency::buckets()),
                family,
            )?,
            sync_last: GaugeVec::new(
                named(
                    "sync_proxy_rules_last_timestamp_seconds",
                    "Last successful sync",
                ),
                family,
            )?,
            sync_last_queued: GaugeVec::new(
                named(
                    "sync_proxy_rules_last_queued_timestamp_seconds",
                    "Last time that a sync was asked for",
                ),
                family,
            )?,
            endpoint_changes: IntCounter::with_opts(named(
                "sync_proxy_rules_endpoint_changes_total",
                "EndpointSlice events",
            ))?,
            service_changes: IntCounter::with_opts(named(
                "sync_proxy_rules_service_changes_total",
                "Service events",
            ))?,
            pending: pending()?,
            drift: IntCounterVec::new(
                Opts::new(
                    "shunt_drift_total",
                    "Repairs of what somebody else has changed in the kernel",
                ),
                &["what"],
            )?,
        };
        metrics.register()?;
        metrics.begin();
        Ok(metrics)
    }

    /// Counters begin at 0: a rate needs a series that was there before.
    fn begin(&self) {
        for code in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
            for probes in [&self.healthz, &self.livez] {
                probes.with_label_values(&[code.as_str()]);
            }
        }
        for what in ["entries", "programs", "pins"] {
            self.drift.with_label_values(&[what]);
        }
    }

    fn register(&self) -> prometheus::Result<()> {
        self.registry.register(Box::new(self.healthz.clone()))?;
        self.registry.register(Box::new(self.livez.clone()))?;
        let gauge = self.no_local_endpoints.clone();
        self.registry.register(Box::new(gauge))?;
        self.registry.register(Box::new(self.held_up.clone()))?;
        for histogram in self.sync_durations.iter().chain([&self.programming]) {
            self.registry.register(Box::new(histogram.clone()))?;
        }
        for gauge in &self.pending {
            self.registry.register(Box::new(gauge.clone()))?;
        }
        self.registry.register(Box::new(self.sync_last.clone()))?;
        let queued = self.sync_last_queued.clone();
        self.registry.register(Box::new(queued))?;
        self.registry.register(Box::new(self.drift.clone()))?;
        let endpoints = self.endpoint_changes.clone();
        self.registry.register(Box::new(endpoints))?;
        self.registry
            .register(Box::new(self.service_changes.clone()))
    }

    /// A probe of /healthz was answered.
    pub fn healthz(&self, code: StatusCode) {
        self.healthz.with_label_values(&[code.as_str()]).inc();
    }

    /// A probe of /livez was answered.
    pub fn livez(&self, code: StatusCode) {
        self.livez.with_label_values(&[code.as_str()]).inc();
    }

    /// Objects changed.
    pub fn changed(&self, services: u64, slices: u64) {
        self.service_changes.inc_by(services);
        self.endpoint_changes.inc_by(slices);
    }

    /// An update of this family was asked for.
    pub fn queued(&self, family: &str, now: Timestamp) {
        let gauge = self.sync_last_queued.with_label_values(&[family]);
        gauge.set(seconds(now));
    }

    /// An update of this family is complete.
    pub fn synced(&self, family: &str, now: Timestamp, took: Duration, extent: Extent) {
        let [all, full, partial] = &self.sync_durations;
        let split = match extent {
            Extent::Full => full,
            Extent::Partial => partial,
        };
        for durations in [all, split] {
            let durations = durations.with_label_values(&[family]);
            durations.observe(took.as_secs_f64());
        }
        self.sync_last
            .with_label_values(&[family])
            .set(seconds(now));
    }

    /// S-161: changes of endpoints were programmed so many seconds after they happened.
    pub fn programmed(&self, family: &str, seconds: &[f64]) {
        // Also without any: the series is there from the first sync on.
        let latencies = self.programming.with_label_values(&[family]);
        seconds.iter().for_each(|it| latencies.observe(*it));
    }

    /// Changes of Services and of EndpointSlices that are not programmed yet.
    pub fn set_pending(&self, pending: [u64; 2]) {
        for (gauge, count) in self.pending.iter().zip(pending) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// S-110: how many service ports drop traffic for want of a local endpoint.
    pub fn set_no_local_endpoints(&self, family: &str, policy: LocalPolicy, count: i64) {
        let labels = [family, policy.label()];
        self.no_local_endpoints
            .with_label_values(&labels)
            .set(count);
    }

    /// S-215: how many service ports wait for room, or for another write.
    pub fn set_held_up(&self, family: &str, count: i64) {
        self.held_up.with_label_values(&[family]).set(count);
    }

    /// An audit has repaired so much.
    pub fn drifted(&self, what: &str, count: u64) {
        self.drift.with_label_values(&[what]).inc_by(count);
    }

    /// Everything in Prometheus' text format, with the datapath's counters behind it.
    pub fn text(&self, counters: &BTreeMap<String, u64>) -> String {
        let encoded = TextEncoder::new().encode_to_string(&self.registry.gather());
        let text = encoded.unwrap_or_else(|error| {
            tracing::error!(%error, "metrics not encoded");
            String::new()
        });
        let mut events = Exposition::default();
        let name = "shunt_datapath_events_total";
        let samples = counters.iter();
        events.metric(
            (name, "counter", "What the datapath counts"),
            samples.map(|(event, count)| (format!("event=\"{event}\""), count)),
        );
        text + &events.into_text()
    }
}

fn sync_durations() -> prometheus::Result<[HistogramVec; 3]> {
    let histogram = |name, help| {
        let buckets = exponential_buckets(0.001, 2.0, 15)?;
        let options = HistogramOpts::from(named(name, help)).buckets(buckets);
        HistogramVec::new(options, &["ip_family"])
    };
    Ok([
        histogram("sync_proxy_rules_duration_seconds", "Time of one sync")?,
        histogram(
            "sync_full_proxy_rules_duration_seconds",
            "Time of a sync of everything",
        )?,
        histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "Time of a sync of what has changed",
        )?,
    ])
}

fn pending() -> prometheus::Result<[IntGauge; 2]> {
    let gauge = |name, help| IntGauge::with_opts(named(name, help));
    Ok([
        gauge(
            "sync_proxy_rules_service_changes_pending",
            "Service events that are not programmed yet",
        )?,
        gauge(
            "sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice events that are not programmed yet",
        )?,
    ])
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
