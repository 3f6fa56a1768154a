//! `cargo xtask bench`: what shunt costs, measured against something in the same run.

mod all;
mod apiserver;
mod cluster;
mod control_plane;
mod datapath;
mod fed_agent;
mod in_process;
mod lookup;
mod network;
mod objects;
mod peers;
mod pictures;
mod plot;
mod process;
mod soak;
mod state;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Measures shunt.")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Cold start, changes and memory of the agent
    ControlPlane(control_plane::Options),
    /// What the agents of a large cluster do to its API servers, by simulation
    Cluster(cluster::Options),
    /// One packet in our programs, over yardsticks
    Datapath(datapath::Options),
    /// Real sockets through shunt and through kube-proxy, over a direct way
    Network(network::Options),
    /// All of these with their peers, into one page
    All(all::Options),
    /// What an operator sees of a small cluster under traffic, as pictures
    Pictures(pictures::Options),
    /// Everything that happens to a node, over and over, under traffic
    Soak(soak::Options),
    /// The agent's part of `control-plane --source in-process`
    #[command(hide = true)]
    FedAgent(fed_agent::Options),
    /// A process of `network` that serves or dials
    #[command(hide = true)]
    Traffic(network::traffic::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::ControlPlane(options) => control_plane::run(&options),
        What::Cluster(options) => cluster::run(&options),
        What::Datapath(options) => datapath::run(&options),
        What::Network(options) => network::run(&options),
        What::All(options) => all::run(&options),
        What::Pictures(options) => pictures::run(&options),
        What::Soak(options) => soak::run(&options),
        What::FedAgent(options) => fed_agent::run(&options),
        What::Traffic(options) => network::traffic::run(&options),
    }
}
