//! `shunt agent`.

use std::time::Duration;

use anyhow::Context as _;

use super::args::{AgentArgs, Output, QueryArgs};
use super::cleanup;
use crate::agent::config_file::ConfigFile;
use crate::agent::{self, RunOptions};
use crate::config::{self, Machine};
use crate::logging;

/// Runs the agent until it is told to stop.
pub fn agent(args: AgentArgs) -> anyhow::Result<()> {
    if args.cleanup {
        return cleanup::clean(&QueryArgs {
            bpffs: args.given.bpffs.unwrap_or_else(|| "/sys/fs/bpf".into()),
            output: Output::Table,
        });
    }
    let (machine, path) = (Machine::this(), args.config.as_deref());
    if let Some(target) = args.write_config_to {
        let text = config::written(args.given, path, &machine)?;
        return std::fs::write(&target, text)
            .with_context(|| format!("writing {}", target.display()));
    }
    let run_options = RunOptions {
        tc: args.tc,
        xdp: args.xdp,
        ready_file: args.ready_file,
        config: path.map(ConfigFile::read),
        kill_after_writes: args.kill_after_writes,
        kill_after_first_writes: args.kill_after_first_writes,
        pause_after_swaps: Duration::from_millis(args.pause_after_swaps),
    };
    let options = config::load(args.given, path, &machine)?;
    logging::start(&options.log_level, options.log_format)?;
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    for flag in args.kube_proxy.given() {
        tracing::warn!(flag, "accepted, but of no use here");
    }
    if args.init_only {
        return Ok(agent::init(&options, &run_options)?);
    }
    // One thread: the agent is one closed loop, and the node's processors are for its pods.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    Ok(runtime.block_on(agent::run(options, run_options))?)
}
