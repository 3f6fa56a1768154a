//! The parts of a start, in the order of S-177.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::monitors::Monitors;
use super::node_wait::{Needs, Source as NodeSource};
use super::socket::{self, Request};
use super::{AgentError, RunOptions};
use crate::config::AgentOptions;
use crate::datapath::bpf_log::{self, BpfLog};
use crate::datapath::conntrack_sysctls::{self, Roots};
use crate::datapath::interfaces::{Detect, Rules};
use crate::datapath::maps::KernelMaps;
use crate::datapath::netlink::Reader;
use crate::datapath::next_hops::NextHops;
use crate::datapath::udp_sockets::Destroyer;
use crate::datapath::xdp::XdpChoice;
use crate::datapath::{Datapath, DatapathOptions, load};
use crate::error_chain;
use crate::events::{Note, Regarding, Severity};
use crate::pipeline::watch::Source;
use crate::settings::{DetectLocalMode, Settings, SocketLb};

/// SIGTERM and SIGINT, from here on.
pub fn signals() -> Result<[Signal; 2], AgentError> {
    let wait = |kind| {
        signal(kind).map_err(|source| AgentError::Machine {
            what: "waiting for signals",
            source,
        })
    };
    Ok([
        wait(SignalKind::terminate())?,
        wait(SignalKind::interrupt())?,
    ])
}

/// What decides about interfaces.
pub fn rules(options: &AgentOptions, settings: &Settings, xdp: XdpChoice) -> Rules {
    Rules {
        globs: options.interfaces.clone(),
        detect: Detect::from(&settings.detect_local),
        xdp,
    }
}

/// What follows next hops, where XDP is wanted.
pub async fn next_hops(xdp: XdpChoice, reader: &Reader) -> Result<Option<NextHops>, AgentError> {
    match xdp {
        XdpChoice::Off => Ok(None),
        XdpChoice::Auto | XdpChoice::Native | XdpChoice::Generic => {
            Ok(Some(NextHops::subscribe(reader).await?))
        }
    }
}

/// Settings of the kernel and of this process (S-184).
pub fn kernel(options: &AgentOptions) -> Result<(), AgentError> {
    conntrack_sysctls::apply(&options.conntrack, options.cpus, Roots::default())?;
    let score = options.oom_score_adj;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(%error, score, "oom_score_adj not set");
    }
    Ok(())
}

/// `--init-only`: what needs more rights than running does (S-182).
pub fn init(options: &AgentOptions, run_options: &RunOptions) -> Result<(), AgentError> {
    kernel(options)?;
    Datapath::load(&datapath_options(options, run_options))?;
    tracing::info!("maps and programs are pinned; nothing is attached");
    Ok(())
}

/// What must be known of the Node before anything is programmed (S-172).
pub fn needs(settings: &Settings) -> Needs {
    match settings.detect_local {
        DetectLocalMode::NodeCidr => Needs::AddressesAndPodCidrs,
        _ => Needs::Addresses,
    }
}

/// Whether what a list does not say may still come.
pub fn node_source(source: &Source) -> NodeSource {
    match source {
        Source::Manifests(_) => NodeSource::Listed,
        Source::Api(_) => NodeSource::Server,
    }
}

/// Without it, an application keeps a connected UDP socket whose backend is gone (S-205).
pub fn destroyer(datapath: &Datapath) -> Option<Destroyer> {
    if !datapath.features().udp_destroy {
        tracing::warn!(
            "this kernel cannot destroy UDP sockets (CONFIG_INET_UDP_DIAG, \
             CONFIG_INET_DIAG_DESTROY): connected ones that the socket hooks translated stay with \
             a backend that is gone"
        );
        return None;
    }
    Destroyer::start(datapath.pins())
        .inspect_err(|error| {
            tracing::error!(error = error_chain(error), "no destruction of UDP sockets")
        })
        .ok()
}

/// Lets what programs log come into this process' log, if they log.
pub fn follow_bpf_log(datapath: &Datapath, level: BpfLog) {
    if level == BpfLog::Off {
        return;
    }
    let program = datapath.programs().get(load::ETHERNET_PROGRAMS[0]);
    if let Err(error) = bpf_log::follow(program) {
        let error = error_chain(&error);
        tracing::error!(error, "what BPF programs log is not read");
    }
}

/// S-162.
pub fn starting() -> Note {
    Note {
        regarding: Regarding::Node,
        severity: Severity::Normal,
        reason: "Starting",
        action: "StartShunt",
        text: format!("shunt {} serves Services", env!("CARGO_PKG_VERSION")),
    }
}

pub fn datapath_options(options: &AgentOptions, run_options: &RunOptions) -> DatapathOptions {
    let is_off = options.settings.socket_lb == SocketLb::Off;
    DatapathOptions {
        bpffs: options.bpffs.clone(),
        cgroup: Some(options.cgroup.clone()).filter(|_| !is_off),
        tc: run_options.tc,
        sizes: options.sizes,
        bpf_log: options.bpf_log,
        pause_after_swaps: run_options.pause_after_swaps,
        ..DatapathOptions::default()
    }
}

/// For tests: `more` writes are the last ones.
pub fn end_after(maps: &mut KernelMaps, more: Option<u64>) {
    if let Some(more) = more {
        tracing::warn!(more, "a test ends this agent after so many writes");
        maps.writes().kill_after(more);
    }
}

/// Without its socket the agent works, but cannot be asked. Returns where questions are put, where
/// they come, and who is told of events.
pub fn listen(datapath: &Datapath) -> (mpsc::Sender<Request>, mpsc::Receiver<Request>, Monitors) {
    let (asked, requests) = mpsc::channel(socket::QUEUED_MAX);
    let (monitors, arrivals) = Monitors::start(datapath.pins());
    let path = socket::path(datapath.pins());
    let listening = path.and_then(|path| socket::listen(&path, asked.clone(), arrivals));
    if let Err(error) = listening {
        tracing::warn!(%error, "no socket: `shunt status` reads the pins");
    }
    (asked, requests, monitors)
}
