//! What a user may say, on the command line or as ShuntConfiguration: one list of names for both.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::datapath::bpf_log::BpfLog;
use crate::settings::{ExternalIps, Masquerade, SocketLb, SocketUdp};

/// Everything that can be given; `None` is "not given". A flag `--max-flows` is the key `maxFlows`.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Given {
    /// Read the objects from these files and folders instead of an API server
    #[arg(long, num_args = 1.., value_name = "PATH")]
    #[arg(conflicts_with_all = ["kubeconfig", "apiserver"])]
    pub manifests: Option<Vec<PathBuf>>,
    /// Watch the API server that this file names (default: the one of the pod's own cluster)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// API server to talk to, by an address that needs no Service; several are tried in order
    #[arg(long, alias = "master", value_delimiter = ',', value_name = "URL")]
    pub apiserver: Option<Vec<String>>,
    /// Name of this node's Node object (default: the host name)
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Serve only Services whose label service.kubernetes.io/service-proxy-name is this
    #[arg(long, alias = "service-proxy-name", value_name = "NAME")]
    pub proxy_name: Option<String>,
    /// Interfaces to attach to, as patterns (default: found from the routes)
    #[arg(long, value_delimiter = ',', value_name = "GLOB")]
    pub interfaces: Option<Vec<String>>,
    /// Folder on a bpffs, made if missing; pins lie in its subfolder shunt [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Cgroup v2 folder whose processes get socket load balancing [default: /sys/fs/cgroup]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Socket load balancing: for all sockets, none, or those of the node's own namespace
    #[arg(long, value_enum)]
    #[serde(deserialize_with = "word")]
    pub socket_lb: Option<SocketLb>,
    /// Which UDP sockets are translated at the socket
    #[arg(long, value_enum)]
    pub socket_udp: Option<SocketUdp>,
    /// Masquerade where it is needed, or wherever kube-proxy would
    #[arg(long, value_enum)]
    pub masquerade: Option<Masquerade>,
    /// Masquerade everything sent to a ClusterIP
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// Whether externalIPs of Services are served
    #[arg(long, value_enum)]
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<ExternalIps>,
    /// Pod CIDR of the cluster; one, or one of each family
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<Vec<String>>,
    /// How a packet from a pod is told
    #[arg(long, value_parser = DetectMode::parse, value_name = "MODE")]
    pub detect_local_mode: Option<DetectMode>,
    /// The pods' bridge, in mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// What the pods' interface names begin with, in mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Addresses that serve NodePorts: CIDRs, primary, localhost, all [default: primary]
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub nodeport_addresses: Option<Vec<String>>,
    /// Source ports of masqueraded packets, one or two ranges [default: 10000-29999,61000-65535]
    #[arg(long, value_delimiter = ',', value_name = "FROM-TO")]
    pub snat_ports: Option<Vec<String>>,
    /// Connections that are remembered, per address family
    #[arg(long, value_name = "COUNT")]
    pub max_flows: Option<u32>,
    /// Connections that each CPU lets begin in a second; 0: no limit [default: 0]
    #[arg(long, value_name = "COUNT")]
    pub new_flows_per_sec: Option<u32>,
    /// Frontends (addresses and ports that clients dial) that there is room for, per address family
    #[arg(long, value_name = "COUNT")]
    pub max_services: Option<u32>,
    /// Backends that there is room for, per address family; of each service port its own
    #[arg(long, value_name = "COUNT")]
    pub max_endpoints: Option<u32>,
    /// Between two comparisons of what is in the kernel with what should be [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub audit_period: Option<String>,
    /// Idle time after which an established TCP connection is forgotten [default: 24h]
    #[arg(
        long,
        alias = "conntrack-tcp-timeout-established",
        value_name = "DURATION"
    )]
    pub tcp_established_timeout: Option<String>,
    /// Idle time after which UDP without a reply is forgotten [default: 30s]
    #[arg(long, alias = "conntrack-udp-timeout", value_name = "DURATION")]
    pub udp_timeout: Option<String>,
    /// Idle time after which UDP with replies is forgotten [default: 2m]
    #[arg(long, alias = "conntrack-udp-timeout-stream", value_name = "DURATION")]
    pub udp_stream_timeout: Option<String>,
    /// Time for which kernel conntrack keeps a half-closed TCP connection [default: 1h]
    #[arg(
        long,
        alias = "conntrack-tcp-timeout-close-wait",
        value_name = "DURATION"
    )]
    pub tcp_close_wait_timeout: Option<String>,
    /// Connections for each CPU that kernel conntrack has room for; 0: as it is [default: 32768]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_max_per_core: Option<u32>,
    /// Connections that kernel conntrack has room for at least [default: 131072]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_min: Option<u32>,
    /// Let kernel conntrack pass TCP segments outside of the window
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// The agent's oom_score_adj [default: -999]
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Leave addresses of the Service range that no Service has alone, instead of refusing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub keep_unallocated: Option<bool>,
    /// Address that counts as this node's primary one
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Where /healthz and /livez are served; empty: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is served; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Service ports with series of their own in /metrics, in the order of their names; the others
    /// are summed up in one [default: 1000]
    #[arg(long, value_name = "COUNT")]
    pub metrics_service_ports: Option<usize>,
    /// Backends with series of their own in /metrics; 0: none [default: 5000]
    #[arg(long, value_name = "COUNT")]
    pub metrics_backends: Option<usize>,
    /// Serve profiles of the agent and the verbosity of its log below /debug/ of the latter
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: Option<bool>,
    /// Make the kernel count runs of BPF programs and their time, for /metrics; costs each run of
    /// any program of the machine a few tens of nanoseconds
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub program_stats: Option<bool>,
    /// End where one of these two addresses is taken, instead of trying again
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,
    /// A failed update is tried again after this time [default: 30s]
    #[arg(long, alias = "iptables-sync-period", value_name = "DURATION")]
    pub sync_period: Option<String>,
    /// Updates are at least this far apart [default: 0s]
    #[arg(long, alias = "iptables-min-sync-period", value_name = "DURATION")]
    pub min_sync_period: Option<String>,
    /// Verbosity as kube-proxy counts it: 4 and more is debug, 8 and more is trace
    #[arg(short, long, alias = "v", value_name = "LEVEL")]
    pub verbosity: Option<u8>,
    /// What is logged, as a tracing filter; wins over -v [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// How it is logged
    #[arg(long, alias = "logging-format", value_enum)]
    pub log_format: Option<LogFormat>,
    /// What BPF programs write into this log of single packets: drops that they are at fault for
    /// (error), all drops (warn), refusals (info), new flows (debug) [default: off]
    #[arg(long, value_enum, value_name = "LEVEL")]
    #[serde(deserialize_with = "word")]
    pub bpf_log: Option<BpfLog>,
}

/// A choice by its word. YAML takes `on` and `off` for truth values.
fn word<'de, D, T>(value: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: ValueEnum,
{
    let text = match Option::<Value>::deserialize(value)? {
        None => return Ok(None),
        Some(Value::Bool(true)) => "on".to_owned(),
        Some(Value::Bool(false)) => "off".to_owned(),
        Some(Value::String(text)) => text,
        Some(other) => return Err(D::Error::custom(format!("{other} is no word"))),
    };
    T::from_str(&text, false)
        .map(Some)
        .map_err(D::Error::custom)
}

/// Form of the log.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `detectLocalMode` (S-083), spelt as kube-proxy spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum DetectMode {
    /// By the pod CIDR of the cluster.
    #[default]
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    /// By the pod CIDRs of this Node.
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    /// By one bridge.
    BridgeInterface,
    /// By the interface's name.
    InterfaceNamePrefix,
}

impl DetectMode {
    /// Reads a mode as kube-proxy spells it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::deserialize(serde::de::value::StrDeserializer::new(text))
            .map_err(|error: serde::de::value::Error| error.to_string())
    }
}

impl Given {
    /// What is given here, and else what is given in `other`. Where the objects come from is one
    /// choice: `--manifests` beside a file that names a kubeconfig means the manifests.
    pub fn or(self, other: Self) -> Self {
        let names_source =
            self.manifests.is_some() || self.kubeconfig.is_some() || self.apiserver.is_some();
        let source = if self.manifests.is_some() {
            (self.manifests, self.kubeconfig, self.apiserver)
        } else if names_source {
            // One of the two may come from the file: another server with the same credentials.
            (None, self.kubeconfig.or(other.kubeconfig), self.apiserver)
        } else {
            (other.manifests, other.kubeconfig, other.apiserver)
        };
        Self {
            manifests: source.0,
            kubeconfig: source.1,
            apiserver: source.2,
            node_name: self.node_name.or(other.node_name),
            proxy_name: self.proxy_name.or(other.proxy_name),
            interfaces: self.interfaces.or(other.interfaces),
            bpffs: self.bpffs.or(other.bpffs),
            cgroup: self.cgroup.or(other.cgroup),
            socket_lb: self.socket_lb.or(other.socket_lb),
            socket_udp: self.socket_udp.or(other.socket_udp),
            masquerade: self.masquerade.or(other.masquerade),
            masquerade_all: self.masquerade_all.or(other.masquerade_all),
            external_ips: self.external_ips.or(other.external_ips),
            cluster_cidr: self.cluster_cidr.or(other.cluster_cidr),
            detect_local_mode: self.detect_local_mode.or(other.detect_local_mode),
            pod_bridge_interface: self.pod_bridge_interface.or(other.pod_bridge_interface),
            pod_interface_name_prefix: self
                .pod_interface_name_prefix
                .or(other.pod_interface_name_prefix),
            nodeport_addresses: self.nodeport_addresses.or(other.nodeport_addresses),
            snat_ports: self.snat_ports.or(other.snat_ports),
            max_flows: self.max_flows.or(other.max_flows),
            new_flows_per_sec: self.new_flows_per_sec.or(other.new_flows_per_sec),
            max_services: self.max_services.or(other.max_services),
            max_endpoints: self.max_endpoints.or(other.max_endpoints),
            audit_period: self.audit_period.or(other.audit_period),
            tcp_established_timeout: self
                .tcp_established_timeout
                .or(other.tcp_established_timeout),
            udp_timeout: self.udp_timeout.or(other.udp_timeout),
            udp_stream_timeout: self.udp_stream_timeout.or(other.udp_stream_timeout),
            tcp_close_wait_timeout: self.tcp_close_wait_timeout.or(other.tcp_close_wait_timeout),
            conntrack_max_per_core: self.conntrack_max_per_core.or(other.conntrack_max_per_core),
            conntrack_min: self.conntrack_min.or(other.conntrack_min),
            conntrack_tcp_be_liberal: self
                .conntrack_tcp_be_liberal
                .or(other.conntrack_tcp_be_liberal),
            oom_score_adj: self.oom_score_adj.or(other.oom_score_adj),
            keep_unallocated: self.keep_unallocated.or(other.keep_unallocated),
            bind_address: self.bind_address.or(other.bind_address),
            healthz_bind_address: self.healthz_bind_address.or(other.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(other.metrics_bind_address),
            metrics_service_ports: self.metrics_service_ports.or(other.metrics_service_ports),
            metrics_backends: self.metrics_backends.or(other.metrics_backends),
            profiling: self.profiling.or(other.profiling),
            program_stats: self.program_stats.or(other.program_stats),
            bind_address_hard_fail: self.bind_address_hard_fail.or(other.bind_address_hard_fail),
            sync_period: self.sync_period.or(other.sync_period),
            min_sync_period: self.min_sync_period.or(other.min_sync_period),
            // One question in two spellings: a level given here hides a filter given there.
            log_level: (self.log_level).or(other.log_level.filter(|_| self.verbosity.is_none())),
            verbosity: self.verbosity.or(other.verbosity),
            log_format: self.log_format.or(other.log_format),
            bpf_log: self.bpf_log.or(other.bpf_log),
        }
    }
}
