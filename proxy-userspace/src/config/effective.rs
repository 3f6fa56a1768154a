//! The options in force: what was given, and the defaults of what was not.

use serde_json::Value as Json;

use super::{Given, Machine};
use crate::config::given::{DetectMode, LogFormat};
use crate::datapath::bpf_log::BpfLog;
use crate::health::services::SeriesLimits;
use crate::settings::{ExternalIps, Masquerade, SocketLb, SocketUdp};

/// `given`, with the defaults filled in. What has no default (where objects come from, patterns)
/// stays as it is, and so does what means more when it is given (timeouts, NodePort addresses).
fn effective(given: &Given, machine: &Machine) -> Given {
    given.clone().or(defaults(machine))
}

/// The options in force as the body of `/configz`.
pub fn configz(given: &Given, machine: &Machine) -> String {
    let document = document(&effective(given, machine));
    serde_json::json!({ super::file::SHUNT_VERSION: document }).to_string()
}

/// The options in force as a ShuntConfiguration (S-182).
pub fn document_text(given: &Given, machine: &Machine) -> Result<String, String> {
    let mut document = document(&effective(given, machine));
    if let Json::Object(fields) = &mut document {
        fields.insert("apiVersion".to_owned(), super::file::SHUNT_VERSION.into());
        fields.insert("kind".to_owned(), "ShuntConfiguration".into());
    }
    serde_saphyr::to_string(&document).map_err(|error| error.to_string())
}

/// The keys of a ShuntConfiguration; absent where nothing is given.
fn document(given: &Given) -> Json {
    // Plain data: this cannot fail.
    let mut json = serde_json::to_value(given).unwrap_or_default();
    if let Json::Object(fields) = &mut json {
        fields.retain(|_, value| !value.is_null());
    }
    json
}

fn defaults(machine: &Machine) -> Given {
    let text = |text: &str| Some(text.to_owned());
    let series = SeriesLimits::default();
    Given {
        node_name: Some(machine.hostname.to_lowercase()),
        bpffs: Some("/sys/fs/bpf".into()),
        cgroup: Some("/sys/fs/cgroup".into()),
        socket_lb: Some(SocketLb::On),
        socket_udp: Some(SocketUdp::Unconnected),
        masquerade: Some(Masquerade::Needed),
        masquerade_all: Some(false),
        external_ips: Some(ExternalIps::Serve),
        detect_local_mode: Some(DetectMode::ClusterCidr),
        snat_ports: Some(vec!["10000-29999".to_owned(), "61000-65535".to_owned()]),
        max_flows: Some(proxy_common::FLOWS_DEFAULT),
        new_flows_per_sec: Some(0),
        max_services: Some(proxy_common::FRONTENDS_DEFAULT),
        max_endpoints: Some(proxy_common::BACKENDS_DEFAULT),
        audit_period: text("5m"),
        conntrack_tcp_be_liberal: Some(false),
        oom_score_adj: Some(super::OOM_SCORE_ADJ),
        keep_unallocated: Some(false),
        healthz_bind_address: text("0.0.0.0:10256"),
        metrics_bind_address: text("127.0.0.1:10249"),
        metrics_service_ports: Some(series.service_ports),
        metrics_backends: Some(series.backends),
        profiling: Some(false),
        program_stats: Some(false),
        bind_address_hard_fail: Some(false),
        sync_period: text("30s"),
        min_sync_period: text("0s"),
        log_level: text("info"),
        log_format: Some(LogFormat::Text),
        bpf_log: Some(BpfLog::Off),
        ..Given::default()
    }
}
