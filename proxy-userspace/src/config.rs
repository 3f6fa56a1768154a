//! The agent's options: what the command line says, then what the configuration file says, then
//! the defaults (S-190).

mod effective;
mod families;
pub mod file;
pub mod given;
mod kernel;
mod node_ports;
pub mod text;
mod times;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use given::{DetectMode, Given, LogFormat};

use crate::datapath::bpf_log::BpfLog;
use crate::datapath::catalog::MapSizes;
use crate::datapath::conntrack_sysctls::ConntrackWishes;
use crate::datapath::runs::ProgramStats;
use crate::health::BindFailure;
use crate::health::pages::Profiling;
use crate::health::services::SeriesLimits;
use crate::ip_text::parse_ip;
use crate::pipeline::watch::{ApiSource, Selection, Source};
use crate::settings::{DetectLocalMode, Ipv6, Settings};

/// Port of /healthz and /livez.
const HEALTHZ_PORT: u16 = 10_256;
/// Port of /metrics.
const METRICS_PORT: u16 = 10_249;
/// Among the last that the kernel ends for want of memory, as kube-proxy.
const OOM_SCORE_ADJ: i32 = -999;

/// Everything the agent is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentOptions {
    /// Where the objects come from.
    pub source: Source,
    /// Which objects are this agent's.
    pub selection: Selection,
    /// What ends in maps. What only the machine knows (`hz`, `host_netns_cookie`) is left at its
    /// default.
    pub settings: Settings,
    /// Patterns of interfaces to attach to; empty: found from the routes.
    pub interfaces: Vec<String>,
    /// A folder on a bpffs; pins lie in its subfolder `shunt`.
    pub bpffs: PathBuf,
    /// The cgroup of the socket hooks.
    pub cgroup: PathBuf,
    /// Sizes of maps.
    pub sizes: MapSizes,
    /// Between two audits of what is in the kernel.
    pub audit_period: Duration,
    /// Where /healthz is served.
    pub healthz: Option<SocketAddr>,
    /// Where /metrics is served.
    pub metrics: Option<SocketAddr>,
    /// How many series of Services and backends /metrics has.
    pub series: SeriesLimits,
    /// Whether the status server may be used to profile the agent.
    pub profiling: Profiling,
    /// Whether the kernel is asked to count what programs do.
    pub program_stats: ProgramStats,
    /// What becomes of the two addresses when they are taken.
    pub bind_failure: BindFailure,
    /// The options in force, as the status server tells them: JSON.
    pub configz: String,
    /// What the kernel's own connection tracking should be like (S-184).
    pub conntrack: ConntrackWishes,
    /// Processors that are online.
    pub cpus: u32,
    /// The agent's `oom_score_adj`.
    pub oom_score_adj: i32,
    /// Time until a failed update is tried again.
    pub sync_period: Duration,
    /// Least time between updates.
    pub min_sync_period: Duration,
    /// A tracing filter.
    pub log_level: String,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What BPF programs log.
    pub bpf_log: BpfLog,
    /// What is odd about the options, for the log.
    pub warnings: Vec<String>,
}

/// Options that do not make sense; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is wrong.
    #[error("{path}:{line}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// The field and what is wrong with it.
        message: String,
    },
    /// A value is wrong, whoever gave it.
    #[error("{option}: {message}")]
    Value {
        /// As a flag, without dashes.
        option: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// What the machine contributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// The host name.
    pub hostname: String,
    /// Processors that are online.
    pub cpus: u32,
    /// Whether the kernel has IPv6 (S-175).
    pub ipv6: Ipv6,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        // Absent without /proc: then a name must be given.
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        let cpus = cpus
            .ok()
            .flatten()
            .and_then(|count| u32::try_from(count).ok());
        Self {
            hostname: hostname.trim().to_owned(),
            cpus: cpus.unwrap_or(1),
            ipv6: families::ipv6(Path::new("/proc")),
        }
    }
}

/// The options of an agent that was given `flags` and, maybe, a configuration file.
pub fn load(
    flags: Given,
    config: Option<&Path>,
    machine: &Machine,
) -> Result<AgentOptions, ConfigError> {
    let file = merge(flags, config, machine)?;
    let mut options = resolve(file.given, machine)?;
    options.warnings.splice(0..0, file.warnings);
    Ok(options)
}

/// What is given by `flags` and, maybe, a configuration file.
pub fn merge(
    flags: Given,
    config: Option<&Path>,
    machine: &Machine,
) -> Result<file::FileConfig, ConfigError> {
    let file = match config {
        Some(path) => file::read(path, machine.cpus)?,
        None => file::FileConfig::default(),
    };
    Ok(file::FileConfig {
        given: flags.or(file.given),
        warnings: file.warnings,
    })
}

/// What `flags` and the configuration file say, with the defaults, as a configuration file.
pub fn written(
    flags: Given,
    config: Option<&Path>,
    machine: &Machine,
) -> Result<String, ConfigError> {
    let given = merge(flags, config, machine)?.given;
    resolve(given.clone(), machine)?;
    effective::document_text(&given, machine).map_err(named("write-config-to"))
}

/// Fills in the defaults and checks every value.
pub fn resolve(given: Given, machine: &Machine) -> Result<AgentOptions, ConfigError> {
    let name = given
        .node_name
        .as_deref()
        .unwrap_or(&machine.hostname)
        .trim()
        .to_lowercase();
    if name.is_empty() {
        return Err(wrong("node-name", "the host has no name: give one"));
    }
    let bind_address = bind_address(given.bind_address.as_deref())?;
    let any = match bind_address {
        Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        Some(IpAddr::V4(_)) | None => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let configz = effective::configz(&given, machine);
    let mut warnings = Vec::new();
    let (sync_period, min_sync_period) = times::sync_periods(&given)?;
    let settings = Settings {
        node_name: name.clone(),
        bind_address: bind_address.filter(|addr| !addr.is_unspecified()),
        ipv6: machine.ipv6,
        ..settings(&given, &mut warnings)?
    };
    families::check(&settings, &mut warnings)?;
    let sizes = kernel::sizes(&given, machine.cpus)?;
    let audit_period = times::audit_period(&given)?;
    Ok(AgentOptions {
        settings,
        conntrack: kernel::conntrack(&given)?,
        cpus: machine.cpus,
        oom_score_adj: given.oom_score_adj.unwrap_or(OOM_SCORE_ADJ),
        healthz: match &given.healthz_bind_address {
            Some(text) => {
                text::listen(text, HEALTHZ_PORT).map_err(named("healthz-bind-address"))?
            }
            None => Some(SocketAddr::new(any, HEALTHZ_PORT)),
        },
        metrics: match &given.metrics_bind_address {
            Some(text) => {
                text::listen(text, METRICS_PORT).map_err(named("metrics-bind-address"))?
            }
            None => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT)),
        },
        series: SeriesLimits::given(given.metrics_service_ports, given.metrics_backends),
        profiling: profiling(&given),
        program_stats: program_stats(&given),
        bind_failure: bind_failure(&given),
        configz,
        log_level: log_level(&given),
        source: source(&given)?,
        selection: Selection {
            node_name: name,
            proxy_name: given.proxy_name,
        },
        interfaces: given.interfaces.unwrap_or_default(),
        bpffs: given.bpffs.unwrap_or_else(|| "/sys/fs/bpf".into()),
        cgroup: given.cgroup.unwrap_or_else(|| "/sys/fs/cgroup".into()),
        sizes,
        audit_period,
        sync_period,
        min_sync_period,
        log_format: given.log_format.unwrap_or_default(),
        bpf_log: given.bpf_log.unwrap_or_default(),
        warnings,
    })
}

/// What does not depend on the node's own names.
fn settings(given: &Given, warnings: &mut Vec<String>) -> Result<Settings, ConfigError> {
    let default = Settings::default();
    let node_port_addresses = node_ports::node_port_addresses(given.nodeport_addresses.as_deref())?;
    node_ports::warn_of_node_ports(&node_port_addresses, warnings);
    let cluster_cidrs = given.cluster_cidr.as_deref().unwrap_or_default();
    Ok(Settings {
        node_port_addresses,
        masquerade: given.masquerade.unwrap_or(default.masquerade),
        masquerade_all: given.masquerade_all.unwrap_or(default.masquerade_all),
        detect_local: detect_local(given)?,
        cluster_cidrs: text::cluster_cidrs(cluster_cidrs).map_err(named("cluster-cidr"))?,
        external_ips: given.external_ips.unwrap_or(default.external_ips),
        keep_unallocated: given.keep_unallocated.unwrap_or(default.keep_unallocated),
        socket_lb: given.socket_lb.unwrap_or(default.socket_lb),
        socket_udp: given.socket_udp.unwrap_or(default.socket_udp),
        snat_ports: match &given.snat_ports {
            Some(texts) => text::port_ranges(texts).map_err(named("snat-ports"))?,
            None => default.snat_ports,
        },
        new_flows_per_sec: given.new_flows_per_sec.unwrap_or(default.new_flows_per_sec),
        timeouts: times::timeouts(given)?,
        ..default
    })
}

fn bind_failure(given: &Given) -> BindFailure {
    match given.bind_address_hard_fail {
        Some(true) => BindFailure::Fatal,
        Some(false) | None => BindFailure::Retry,
    }
}

fn profiling(given: &Given) -> Profiling {
    match given.profiling {
        Some(true) => Profiling::On,
        Some(false) | None => Profiling::Off,
    }
}

fn program_stats(given: &Given) -> ProgramStats {
    match given.program_stats {
        Some(true) => ProgramStats::On,
        Some(false) | None => ProgramStats::Off,
    }
}

fn wrong(option: &'static str, message: &str) -> ConfigError {
    ConfigError::Value {
        option,
        message: message.to_owned(),
    }
}

fn named(option: &'static str) -> impl Fn(String) -> ConfigError {
    move |message| ConfigError::Value { option, message }
}

fn source(given: &Given) -> Result<Source, ConfigError> {
    let servers = given.apiserver.clone().unwrap_or_default();
    match (&given.manifests, &given.kubeconfig) {
        (Some(paths), None) if servers.is_empty() && !paths.is_empty() => {
            Ok(Source::Manifests(paths.clone()))
        }
        (Some(_), _) => Err(wrong("manifests", "either manifests or one API server")),
        (None, kubeconfig) => Ok(Source::Api(ApiSource {
            kubeconfig: kubeconfig.clone(),
            servers,
            ..ApiSource::default()
        })),
    }
}

/// May be unspecified: that overrides nothing (S-171), but its family decides where health is
/// served.
fn bind_address(text: Option<&str>) -> Result<Option<IpAddr>, ConfigError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => match parse_ip(text) {
            Some(addr) => Ok(Some(addr)),
            None => Err(wrong("bind-address", &format!("{text:?} is no address"))),
        },
    }
}

fn detect_local(given: &Given) -> Result<DetectLocalMode, ConfigError> {
    let needed = |value: &Option<String>, option| match value {
        Some(text) if !text.is_empty() => Ok(text.clone()),
        Some(_) | None => Err(wrong(option, "needed in this detect-local-mode")),
    };
    Ok(match given.detect_local_mode.unwrap_or_default() {
        DetectMode::ClusterCidr => DetectLocalMode::ClusterCidr,
        DetectMode::NodeCidr => DetectLocalMode::NodeCidr,
        DetectMode::BridgeInterface => DetectLocalMode::BridgeInterface(needed(
            &given.pod_bridge_interface,
            "pod-bridge-interface",
        )?),
        DetectMode::InterfaceNamePrefix => DetectLocalMode::InterfaceNamePrefix(needed(
            &given.pod_interface_name_prefix,
            "pod-interface-name-prefix",
        )?),
    })
}

fn log_level(given: &Given) -> String {
    match &given.log_level {
        Some(filter) => filter.clone(),
        None => level_of(given.verbosity.unwrap_or_default()).to_owned(),
    }
}

/// The level of the log that kube-proxy's verbosity means.
pub fn level_of(verbosity: u8) -> &'static str {
    match verbosity {
        8.. => "trace",
        4..=7 => "debug",
        0..=3 => "info",
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
