//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::kube_proxy_flags::KubeProxyFlags;
use crate::config::Given;
use crate::datapath::TcChoice;
use crate::datapath::xdp::XdpChoice;
use crate::explain::{From, Protocol, packets};
use crate::ip_text::parse_ip;
use crate::monitor::{Type, filter};

/// A Kubernetes Service load balancer on eBPF.
#[derive(Parser, Debug)]
#[command(name = "shunt", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent of this node
    Agent(Box<AgentArgs>),
    /// Show what the agent of this node has done
    Status(QueryArgs),
    /// Look for what keeps this node from serving Services, and say what to do; changes nothing
    Doctor(DoctorArgs),
    /// Look at Services
    Service(ServiceArgs),
    /// Watch Services and their backends by rate, on the whole screen
    Top(TopArgs),
    /// List the live connections of the packet path
    Flows(FlowsArgs),
    /// Print new flows, refusals, drops and changes of Services as they happen
    Monitor(MonitorArgs),
    /// Say what happens to the first packet of a connection, and why
    Explain(Box<ExplainArgs>),
    /// Show the level of the running agent's log, or set it
    LogLevel(LogLevelArgs),
    /// Remove every program, map and pin of shunt from this node
    Cleanup(CleanupArgs),
}

/// `shunt agent`.
#[derive(Args, Debug, Default)]
pub struct AgentArgs {
    /// Configuration file: a KubeProxyConfiguration, a ShuntConfiguration or both; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to attach to interfaces
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub tc: TcChoice,
    /// Where to run before tc, on uplinks
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub xdp: XdpChoice,
    /// Write the configuration in force to this file, and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Set what needs more rights than running does (sysctls, maps, programs), and end
    #[arg(long)]
    pub init_only: bool,
    /// Make this file when everything is programmed
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// For tests: SIGKILL after so many map writes that follow the first complete programming
    #[arg(long, hide = true, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub kill_after_writes: Option<u64>,
    /// For tests: SIGKILL after so many map writes of the process
    #[arg(
        long,
        hide = true,
        value_name = "COUNT",
        conflicts_with = "kill_after_writes"
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub kill_after_first_writes: Option<u64>,
    /// For tests: wait so many milliseconds after each program that is swapped
    #[arg(long, hide = true, value_name = "MILLISECONDS", default_value_t = 0)]
    pub pause_after_swaps: u64,
    /// As kube-proxy's flag: `shunt cleanup`
    #[arg(long, hide = true)]
    pub cleanup: bool,
    /// What only kube-proxy knows.
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,
    /// Everything else.
    #[command(flatten)]
    pub given: Given,
}

/// `shunt explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Source address, with or without a port
    #[arg(short, long, value_name = "SRC[:PORT]", value_parser = packets::source)]
    #[arg(required_unless_present = "packets")]
    pub source: Option<(IpAddr, u16)>,
    /// Destination address and port
    #[arg(short, long, value_name = "DST:PORT", value_parser = packets::destination)]
    #[arg(required_unless_present = "packets")]
    pub destination: Option<(IpAddr, u16)>,
    /// Protocol
    #[arg(short, long, value_enum, ignore_case = true, default_value_t)]
    pub protocol: Protocol,
    /// Where the packet enters (default: told by its source)
    #[arg(long, value_enum, value_name = "PLACE")]
    pub from: Option<From>,
    /// The interface that the packet enters by
    #[arg(long, value_name = "IF")]
    pub in_interface: Option<String>,
    /// A YAML list of {src, sport?, dst, dport, protocol, from?, in_interface?}; the answers are
    /// a JSON list in its order
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["source", "destination", "protocol", "from", "in_interface"])]
    pub packets: Option<PathBuf>,
    /// An address of this node beside those of its Node object
    #[arg(long, value_name = "IP", value_delimiter = ',', value_parser = address)]
    pub local_address: Vec<IpAddr>,
    /// Form of the answer [default: table; json with --packets]
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// The agent's configuration file; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What the agent is told.
    #[command(flatten)]
    pub given: Given,
}

fn address(text: &str) -> Result<IpAddr, String> {
    parse_ip(text).ok_or_else(|| format!("{text:?} is no address"))
}

/// `shunt service`.
#[derive(Args, Debug)]
pub struct ServiceArgs {
    /// What of the Services.
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// What of the Services.
#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// List every frontend with its backends, as the maps hold them
    List(ServiceListArgs),
    /// Show one Service: its frontends, its backends, and what they were given
    Get(ServiceGetArgs),
}

/// `shunt service list`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ServiceListArgs {
    /// The agent's --bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Go on, and print the rows that change; JSON is one object a line then, YAML a
    /// document each
    #[arg(short, long)]
    pub watch: bool,
}

/// `shunt service get`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ServiceGetArgs {
    /// NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    pub name: String,
    /// Where the pins are.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// `shunt top`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct TopArgs {
    /// Seconds between two readings of the counters
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub interval: u16,
    /// Where the pins are.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// `shunt flows`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct FlowsArgs {
    /// Only those of this Service: NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only those to this backend: its address, with or without a port
    #[arg(long, value_name = "ADDRESS")]
    pub backend: Option<String>,
    /// Go on, and print what changes; JSON is one object a line then, YAML a document
    /// each
    #[arg(short, long)]
    pub watch: bool,
    /// Where the pins are.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// `shunt monitor`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct MonitorArgs {
    /// Only what this Service has part in: NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only what this backend has part in: its address, with or without a port
    #[arg(long, value_name = "ADDRESS", value_parser = filter::backend)]
    pub backend: Option<String>,
    /// Only these types, separated by commas
    #[arg(long = "type", value_name = "TYPE", value_enum, value_delimiter = ',')]
    pub types: Vec<Type>,
    /// Only what ends for these reasons (names of counters), separated by commas
    #[arg(long = "reason", value_name = "NAME", value_delimiter = ',')]
    #[arg(value_parser = filter::reason)]
    pub reasons: Vec<String>,
    /// One event of the datapath in so many
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Where the pins are, and the form: JSON is one object a line, YAML a document each.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// Commands on the pins of an agent.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct QueryArgs {
    /// The agent's --bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `shunt doctor`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct DoctorArgs {
    /// The agent's --cgroup, for a node where no agent says it
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
    /// Where the pins are.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// `shunt log-level`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct LogLevelArgs {
    /// A tracing filter, as of --log-level: LEVEL or MODULE=LEVEL, separated by commas; in force
    /// until the agent ends
    #[arg(value_name = "DIRECTIVES")]
    pub directives: Option<String>,
    /// The agent's --bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// `shunt cleanup`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CleanupArgs {
    /// Remove what kube-proxy left instead: its nftables tables, iptables chains and ipvs device
    #[arg(long)]
    pub kube_proxy: bool,
    /// Where the pins are.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// Form of an answer.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// For people.
    #[default]
    #[value(alias = "text")]
    Table,
    /// The same, with counts where a list has them.
    Wide,
    /// JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cleanup_needs_no_other_flag() {
        let cli = Cli::parse_from(["shunt", "cleanup", "--bpffs", "/b", "-o", "json"]);
        let Command::Cleanup(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(
            args,
            CleanupArgs {
                kube_proxy: false,
                query: QueryArgs {
                    bpffs: "/b".into(),
                    output: Output::Json
                }
            }
        );
    }
}
