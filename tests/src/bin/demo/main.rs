//! `cargo xtask demo`: Services at work in a small cluster of network namespaces.
//!
//! It makes two nodes, three backend pods, a client pod and a client outside, runs the real agent
//! on each node, and has real sockets connect over every path. What it reports was counted from
//! the servers' own answers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use tests::net;

use checks::Outcome;
use manifests::Manifests;
use show::Words;
use stage::Stage;

mod checks;
mod manifests;
mod removal;
mod show;
mod signals;
mod stage;

/// Shows Services at work.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    json: bool,
    /// Leave the cluster up and print how to enter it
    #[arg(long)]
    keep: bool,
    /// Remove a cluster that was kept
    #[arg(long, value_name = "NAME")]
    end: Option<String>,
    /// The folder of manifests
    #[arg(long, default_value = "deploy/demo")]
    manifests: PathBuf,
}

/// The JSON result.
#[derive(Serialize)]
struct Summary<'a> {
    ok: bool,
    checks: Vec<&'a Outcome>,
    removal_ms: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.end {
        Some(name) => net::remove(name).map(|()| true),
        None => signals::listen().and_then(|()| demo(&arguments)),
    };
    signals::yield_to_interrupt();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    let words = if arguments.json {
        Words::Aside
    } else {
        Words::Out
    };
    let started = Instant::now();
    words.say("Making a cluster: two nodes, three backend pods, a client pod, a client outside.");
    let mut stage = Stage::build()?;
    let folder = stage.cluster.sandbox().dir().join("manifests");
    let manifests = Manifests::copy(&arguments.manifests, folder)?;
    stage.start_servers(&manifests)?;
    words.say(&show::picture(&stage));
    words.say(&show::services(&manifests)?);
    words.say("Starting an agent on each node, on the manifests of deploy/demo.");
    stage.start_agents(&manifests.folder)?;
    let routes = checks::routes(&manifests, &stage)?;
    stage.wait_until_ready(&routes)?;
    words.say("Every path answers. Who answers how often, over real sockets:\n");
    let mut outcomes = Vec::new();
    for route in &routes {
        let outcome = checks::follow(route, &mut stage)?;
        words.say(&show::table(route, &outcome, &stage.cluster.pods));
        outcomes.push(outcome);
    }
    words.say("Taking web-3 out of the manifest of shop, while connections run:\n");
    let removal = removal::run(&manifests, &mut stage)?;
    words.say(&show::removal(&removal));
    look_further(words, &stage);
    outcomes.push(removal.outcome);
    let ok = outcomes.iter().all(|outcome| outcome.ok);
    let passed = outcomes.iter().filter(|outcome| outcome.ok).count();
    words.say(&format!("{passed} of {} checks passed.", outcomes.len()));
    finish(arguments, words, stage)?;
    words.say(&format!("Took {:.1} s.", started.elapsed().as_secs_f64()));
    if arguments.json {
        let checks = outcomes.iter().collect();
        let summary = Summary {
            ok,
            checks,
            removal_ms: removal.milliseconds,
        };
        println!("{}", serde_json::to_string(&summary)?);
    }
    Ok(ok)
}

/// Shows what the agent itself says, as far as it does.
fn look_further(words: Words, stage: &Stage) {
    for verb in [["service", "list"].as_slice(), ["status"].as_slice()] {
        let shown = verb.join(" ");
        match stage.ask_agent(verb) {
            Ok(text) => words.say(&format!("`shunt {shown}` on n1:\n\n{text}")),
            Err(error) => words.say(&format!("`shunt {shown}` on n1 failed: {error:#}\n")),
        }
    }
}

fn finish(arguments: &Arguments, words: Words, stage: Stage) -> Result<()> {
    if arguments.keep {
        words.say(&show::kept(&stage));
        return stage.keep().map(drop);
    }
    words.say("Removing the cluster.");
    drop(stage);
    Ok(())
}
