//! `shunt log-level`.

use anyhow::{Context as _, bail};

use super::Misuse;
use super::args::LogLevelArgs;
use crate::agent::socket;
use crate::datapath::pin::Pins;
use crate::logging::LevelAnswer;

/// Shows the level of the agent's log, or sets it until the agent ends.
pub fn run(args: &LogLevelArgs) -> anyhow::Result<()> {
    let directives = args.directives.as_deref().unwrap_or_default().trim();
    let is_empty = args.directives.is_some() && directives.is_empty();
    if is_empty || directives.contains(char::is_control) {
        return Err(Misuse(format!("log-level: {directives:?} is no level")).into());
    }
    if directives.len() >= socket::QUESTION_MAX / 2 {
        return Err(Misuse("log-level: too many directives".to_owned()).into());
    }
    let pins = Pins::at(&args.bpffs);
    if !pins.exist() {
        bail!("nothing is pinned below {}", pins.root().display());
    }
    let path = socket::path(&pins).context("finding the agent's socket")?;
    let answer = socket::ask_log_level(&path, directives)
        .with_context(|| format!("asking the agent at {}", path.display()))?;
    let Some(text) = answer else {
        bail!(
            "no agent runs with the pins below {}",
            pins.root().display()
        );
    };
    let answer: LevelAnswer = serde_json::from_str(&text).context("reading the agent's answer")?;
    if let Some(error) = answer.error {
        return Err(Misuse(format!("{error}; it stays {:?}", answer.level)).into());
    }
    super::print(&answer.level).map(drop)
}
