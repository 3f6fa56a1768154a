//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Given;
use crate::datapath::TcChoice;

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
    /// Look at Services
    Service(ServiceArgs),
    /// Remove every program, map and pin of shunt from this node
    Cleanup(QueryArgs),
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
    /// Make this file when everything is programmed
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Everything else.
    #[command(flatten)]
    pub given: Given,
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
    List(QueryArgs),
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

/// Form of an answer.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// One JSON object.
    Json,
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
            QueryArgs {
                bpffs: "/b".into(),
                output: Output::Json
            }
        );
    }
}
