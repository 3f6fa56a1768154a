//! The configuration file: a KubeProxyConfiguration as it is, a ShuntConfiguration with our own
//! keys, or both, one document each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ConfigError;
use super::given::{DetectMode, Given, LogFormat};
use super::text;
use crate::pipeline::watch::decode;
use crate::pipeline::watch::located::{self, Document, Node};

/// What a file says.
#[derive(Debug, Default)]
pub struct FileConfig {
    /// Its values.
    pub given: Given,
    /// What is odd about it, for the log.
    pub warnings: Vec<String>,
}

/// apiVersion of KubeProxyConfiguration.
const KUBE_PROXY_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// apiVersion of ShuntConfiguration.
pub const SHUNT_VERSION: &str = "shunt/v1alpha1";

/// Reads the file at `path`. `cpus`: the machine's, for limits given per CPU.
pub fn read(path: &Path, cpus: u32) -> Result<FileConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    decode(path, &text, cpus)
}

/// Decodes the text of a file.
pub fn decode(path: &Path, text: &str, cpus: u32) -> Result<FileConfig, ConfigError> {
    let mut reader = Reader {
        path,
        warnings: Vec::new(),
    };
    let mut kube_proxy = None;
    let mut shunt = None;
    for document in located::documents(text) {
        let node = reader.parse(document)?;
        let word = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default();
        match (word("apiVersion"), word("kind")) {
            (KUBE_PROXY_VERSION, "KubeProxyConfiguration") if kube_proxy.is_none() => {
                let found: KubeProxyConfiguration = reader.document(&node)?;
                kube_proxy = Some(reader.kube_proxy(&node, found, cpus)?);
            }
            (SHUNT_VERSION, "ShuntConfiguration") if shunt.is_none() => {
                shunt = Some(reader.document::<Given>(&node)?);
            }
            (version, kind) => {
                let message = format!(
                    "one {KUBE_PROXY_VERSION} KubeProxyConfiguration and one {SHUNT_VERSION} \
                     ShuntConfiguration are read; this is {version:?} {kind:?}"
                );
                return Err(reader.error(node.line, message));
            }
        }
    }
    // Our own keys are the more particular ones.
    let given = shunt.unwrap_or_default().or(kube_proxy.unwrap_or_default());
    Ok(FileConfig {
        given,
        warnings: reader.warnings,
    })
}

struct Reader<'a> {
    path: &'a Path,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn error(&self, line: usize, message: String) -> ConfigError {
        ConfigError::File {
            path: self.path.to_owned(),
            line,
            message,
        }
    }

    /// Strict at first; a key given twice then is a warning, and its last value holds (S-190).
    fn parse(&mut self, document: Document<'_>) -> Result<Node, ConfigError> {
        let strict = match located::parse(document) {
            Ok(node) => return Ok(node),
            Err(error) => error,
        };
        let node = located::parse_lenient(document)
            .map_err(|error| self.error(error.line, format!("syntax: {error}")))?;
        self.warnings
            .push(format!("{}:{}: {strict}", self.path.display(), strict.line));
        Ok(node)
    }

    /// Unknown fields are warnings, wrong types are errors.
    fn document<T: DeserializeOwned>(&mut self, node: &Node) -> Result<T, ConfigError> {
        let mut json = node.to_json();
        if let serde_json::Value::Object(fields) = &mut json {
            fields.retain(|key, _| key != "apiVersion" && key != "kind");
        }
        let (value, unknown) = decode::typed(&json);
        for path in unknown {
            let line = node.line_of(&path);
            let field = located::field(&path);
            self.warnings.push(format!(
                "{}:{line}: {field}: unknown field",
                self.path.display()
            ));
        }
        value.map_err(|complaint| {
            let message = format!("{}: {}", located::field(&complaint.path), complaint.error);
            self.error(node.line_of(&complaint.path), message)
        })
    }

    /// Says which fields are set and change nothing.
    fn warn_of_ignored(&mut self, node: &Node, config: &KubeProxyConfiguration) {
        for ignored in ["ipvs", "winkernel", "featureGates", "mode"] {
            let value = node.get(ignored).map(Node::to_json);
            let is_given = value.is_some_and(|value| match (ignored, &value) {
                // A gate that is off says something too.
                ("featureGates", serde_json::Value::Object(gates)) => !gates.is_empty(),
                _ => !is_empty(&value),
            });
            let names_block = matches!(mode(config), "iptables" | "nftables");
            if is_given && !(ignored == "mode" && names_block) {
                let line = node.line_of(&[located::Step::Key(ignored.to_owned())]);
                self.warnings.push(format!(
                    "{}:{line}: {ignored} has no meaning here",
                    self.path.display()
                ));
            }
        }
    }

    fn kube_proxy(
        &mut self,
        node: &Node,
        config: KubeProxyConfiguration,
        cpus: u32,
    ) -> Result<Given, ConfigError> {
        self.warn_of_ignored(node, &config);
        // As kube-proxy does: the section that the mode names. Without a mode that is iptables',
        // unless only the other one was written.
        let table = match mode(&config) {
            "nftables" => config.nftables,
            "" => config.iptables.or(config.nftables),
            _ => config.iptables,
        };
        let table = table.unwrap_or_default();
        let conntrack = config.conntrack;
        let logging = config.logging;
        let (bridge, prefix) = (
            config.detect_local.bridge_interface,
            config.detect_local.interface_name_prefix,
        );
        let detect_local_mode = match config.detect_local_mode.filter(|mode| !mode.is_empty()) {
            Some(mode) => Some(DetectMode::parse(&mode).map_err(|message| {
                let path = [located::Step::Key("detectLocalMode".to_owned())];
                self.error(node.line_of(&path), format!("detectLocalMode: {message}"))
            })?),
            None => None,
        };
        Ok(Given {
            kubeconfig: text_given(config.client_connection.kubeconfig).map(PathBuf::from),
            node_name: text_given(config.hostname_override),
            masquerade_all: table.masquerade_all,
            cluster_cidr: text_given(config.cluster_cidr)
                .map(|text| text.split(',').map(str::to_owned).collect()),
            detect_local_mode,
            pod_bridge_interface: text_given(bridge),
            pod_interface_name_prefix: text_given(prefix),
            nodeport_addresses: config.node_port_addresses.filter(|list| !list.is_empty()),
            max_flows: conntrack.flows_max(cpus),
            tcp_established_timeout: duration_given(conntrack.tcp_established_timeout),
            tcp_close_wait_timeout: duration_given(conntrack.tcp_close_wait_timeout),
            conntrack_max_per_core: conntrack.max_per_core,
            conntrack_min: conntrack.min,
            conntrack_tcp_be_liberal: conntrack.tcp_be_liberal,
            oom_score_adj: config.oom_score_adj,
            udp_timeout: duration_given(conntrack.udp_timeout),
            udp_stream_timeout: duration_given(conntrack.udp_stream_timeout),
            bind_address: text_given(config.bind_address),
            healthz_bind_address: text_given(config.healthz_bind_address),
            metrics_bind_address: text_given(config.metrics_bind_address),
            profiling: config.enable_profiling.filter(|is_on| *is_on),
            bind_address_hard_fail: config.bind_address_hard_fail.filter(|is_hard| *is_hard),
            sync_period: duration_given(config.sync_period.or(table.sync_period)),
            min_sync_period: duration_given(config.min_sync_period.or(table.min_sync_period)),
            verbosity: logging.verbosity.filter(|level| *level > 0),
            log_format: (logging.format.as_deref() == Some("json")).then_some(LogFormat::Json),
            ..Given::default()
        })
    }
}

fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value as Json;
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(value) => value.as_f64() == Some(0.0),
        Json::String(value) => value.is_empty() || text::duration(value) == Ok(Duration::ZERO),
        Json::Array(values) => values.iter().all(is_empty),
        Json::Object(fields) => fields.values().all(is_empty),
    }
}

/// Generated configurations write defaults as empty text.
fn text_given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Generated configurations write defaults as zero.
fn duration_given(text: Option<String>) -> Option<String> {
    text.filter(|text| text::duration(text) != Ok(Duration::ZERO))
}

/// kube-proxy's configuration; what has no meaning for shunt is accepted as any value.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct KubeProxyConfiguration {
    client_connection: ClientConnection,
    hostname_override: Option<String>,
    bind_address: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    iptables: Option<Table>,
    nftables: Option<Table>,
    detect_local_mode: Option<String>,
    detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    conntrack: Conntrack,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
    logging: Logging,
    bind_address_hard_fail: Option<bool>,
    enable_profiling: Option<bool>,
    #[serde(rename = "showHiddenMetricsForVersion")]
    _show_hidden_metrics_for_version: Anything,
    mode: Anything,
    #[serde(rename = "ipvs")]
    _ipvs: Anything,
    #[serde(rename = "winkernel")]
    _winkernel: Anything,
    oom_score_adj: Option<i32>,
    #[serde(rename = "configSyncPeriod")]
    _config_sync_period: Anything,
    #[serde(rename = "featureGates")]
    _feature_gates: Anything,
    #[serde(rename = "portRange")]
    _port_range: Anything,
    #[serde(rename = "udpIdleTimeout")]
    _udp_idle_timeout: Anything,
    #[serde(rename = "windowsRunAsService")]
    _windows_run_as_service: Anything,
}

/// The mode in words; empty where it is not given.
fn mode(config: &KubeProxyConfiguration) -> &str {
    let mode = config.mode.as_ref();
    mode.and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// A known field that is not used, or hardly.
type Anything = Option<serde_json::Value>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: Option<String>,
    #[serde(rename = "acceptContentTypes")]
    _accept_content_types: Anything,
    #[serde(rename = "contentType")]
    _content_type: Anything,
    #[serde(rename = "qps")]
    _qps: Anything,
    #[serde(rename = "burst")]
    _burst: Anything,
}

/// The iptables and nftables sections.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Table {
    masquerade_all: Option<bool>,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
    #[serde(rename = "masqueradeBit")]
    _masquerade_bit: Anything,
    #[serde(rename = "localhostNodePorts")]
    _localhost_node_ports: Anything,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Conntrack {
    max_per_core: Option<u32>,
    min: Option<u32>,
    tcp_established_timeout: Option<String>,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
}

impl Conntrack {
    /// The size of kube-proxy's table is a wish for ours.
    fn flows_max(&self, cpus: u32) -> Option<u32> {
        if self.max_per_core.is_none() && self.min.is_none() {
            return None;
        }
        let scaled = self.max_per_core.unwrap_or(0).saturating_mul(cpus);
        Some(scaled.max(self.min.unwrap_or(0))).filter(|count| *count > 0)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Logging {
    format: Option<String>,
    verbosity: Option<u8>,
    #[serde(rename = "flushFrequency")]
    _flush_frequency: Anything,
    #[serde(rename = "options")]
    _options: Anything,
    #[serde(rename = "vmodule")]
    _vmodule: Anything,
}
