//! Scenarios: text files with objects in steps and the maps expected after them.
//!
//! A file begins with `# rules: S-0xx, S-0yy` and goes on in steps, each a line `> word arguments`
//! and its text up to the next one:
//!
//! - `> settings NAME VALUE ...`: before anything else (see [`setting`]).
//! - `> addresses ADDR ...`: the node's addresses; `lo:ADDR` on the loopback interface.
//! - `> apply`: manifests; what labels hide comes and goes as in the watch.
//! - `> delete KIND NAMESPACE/NAME`: the object goes.
//! - `> unsynced`: the lists are not complete yet; `> sync`: they are.
//! - `> relist`: everything is listed again. `> restart`: the agent starts anew on the maps.
//! - `> expect`: reconciles; the maps look like the text. Lines of a kind that the text does not
//!   mention (`cluster-ip`, `node-address`, `config`) are not compared.
//! - `> expect-no-writes`: reconciles, and nothing is written.
//! - `> expect-problems N`: so many entries and objects were left out.
//!
//! Every Scenario runs three times: plainly; with a tenth of all writes failing; and killed after
//! each single write of each step, with a restart on what is there. All must end in the same maps.
//! At the end everything is deleted, and the maps must be empty.

mod compare;
mod setting;
mod world;

use anyhow::{Context, Result};

use setting::setting;
use world::World;

/// How writes fail while a Scenario runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They do not.
    Plain,
    /// A tenth of them, by this seed.
    Failing(u64),
    /// Killed after each write of each step.
    Killed,
}

/// One file.
#[derive(Debug)]
pub struct Scenario {
    /// The rules that it is about.
    pub rules: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    line: usize,
    word: String,
    arguments: Vec<String>,
    text: String,
}

impl Scenario {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self> {
        let rules = text.lines().find_map(|line| line.strip_prefix("# rules:"));
        let rules = rules.context("no line `# rules:`")?;
        let rules: Vec<String> = rules
            .split(',')
            .map(|rule| rule.trim().to_owned())
            .collect();
        let mut steps: Vec<Step> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if let Some(head) = line.strip_prefix("> ") {
                let mut words = head.split_whitespace().map(str::to_owned);
                let word = words.next().unwrap_or_default();
                let arguments = words.collect();
                steps.push(Step {
                    line: index + 1,
                    word,
                    arguments,
                    text: String::new(),
                });
            } else if let Some(step) = steps.last_mut() {
                step.text.push_str(line);
                step.text.push('\n');
            }
        }
        Ok(Self { rules, steps })
    }

    /// Runs all steps, then deletes everything.
    pub fn run(&self, mode: Mode) -> Result<()> {
        let mut world = World::new(mode);
        for step in &self.steps {
            let place = || format!("line {}: {}", step.line, step.word);
            world.step(step).with_context(place)?;
        }
        world
            .delete_everything()
            .context("at the end, with everything deleted")
    }
}
