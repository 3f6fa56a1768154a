//! Asking the agent, or its pins where no agent runs.

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

use super::args::QueryArgs;
use crate::agent::socket::{self, Question};
use crate::datapath::maps::KernelMaps;
use crate::datapath::pin::Pins;

/// Who answers.
#[derive(Debug)]
pub enum Answer<T> {
    /// The agent.
    Agent(T),
    /// The maps that are pinned.
    Maps(Box<KernelMaps>),
}

/// Asks the agent of the pins; opens the pinned maps where none runs.
pub fn ask<T: DeserializeOwned>(args: &QueryArgs, question: Question) -> anyhow::Result<Answer<T>> {
    let pins = Pins::at(&args.bpffs);
    if !pins.exist() {
        bail!(
            "nothing is pinned below {}: start an agent, or name its folder by --bpffs",
            pins.root().display()
        );
    }
    let path = socket::path(&pins).context("finding the agent's socket")?;
    let answer = socket::ask(&path, question)
        .with_context(|| format!("asking the agent at {}", path.display()))?;
    match answer {
        Some(text) => {
            let value = serde_json::from_str(&text).context("reading the agent's answer")?;
            Ok(Answer::Agent(value))
        }
        None => {
            let maps = KernelMaps::open(&pins).context("no agent runs; reading its pins")?;
            Ok(Answer::Maps(Box::new(maps)))
        }
    }
}

/// Says on standard error that names of Services are not known: once, until an agent answers again.
#[derive(Debug, Default)]
pub struct Nameless {
    is_told: bool,
}

impl Nameless {
    /// Whether an agent has answered.
    pub fn note(&mut self, is_answered: bool) {
        if !is_answered && !self.is_told {
            eprintln!("no agent answers: read from the pins, which do not name Services");
        }
        self.is_told = !is_answered;
    }
}
