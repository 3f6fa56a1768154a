//! `shunt agent`.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::args::AgentArgs;
use crate::agent::{self, RunOptions};
use crate::config::{self, AgentOptions, LogFormat, Machine};

/// Runs the agent until it is told to stop.
pub fn agent(args: AgentArgs) -> anyhow::Result<()> {
    let run_options = RunOptions {
        tc: args.tc,
        ready_file: args.ready_file,
    };
    let options = config::load(args.given, args.config.as_deref(), &Machine::this())?;
    start_log(&options)?;
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    // One thread: the agent is one closed loop, and the node's processors are for its pods.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    Ok(runtime.block_on(agent::run(options, run_options))?)
}

fn start_log(options: &AgentOptions) -> anyhow::Result<()> {
    // aya logs every relocation at the level debug: only where it is asked for by name.
    let filter = EnvFilter::try_new(format!("aya=info,aya_obj=info,{}", options.log_level))
        .with_context(|| format!("log-level: {:?} is no filter", options.log_level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match options.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(false).init(),
    }
    Ok(())
}
