//! What the BPF programs cost the verifier, and the budget that a change may not exceed unseen.

mod book;
mod stack;
mod xlated;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::EbpfLoader;
use aya::programs::Program;

pub use book::Book;

/// What one program costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Instructions that the verifier walked; the kernel refuses more than a million. 0 below Linux
    /// 5.16, which does not tell (kernel commit aba64c7da983).
    pub explored: u32,
    /// Bytes of stack of the deepest chain of calls, as the verifier counts them: each frame
    /// rounded up to 32; the kernel refuses more than 512.
    pub stack: u32,
}

/// What is added to the names of programs that run while flow tables are exchanged (decision 0017).
pub const TRANSITIONAL: &str = "+old";

/// What is added to the names of programs that log all that they can.
pub const LOGGING: &str = "+log";

/// Loads every program of the object into the running kernel, and the transitional kind of each,
/// attaches none, and says what each costs; the one that logs too, where the kernel tells what it
/// explored. Below, it may refuse these, and the agent goes without. A program that logs nothing
/// has no kind that logs.
///
/// # Errors
/// The verifier's last words where it refuses a program.
pub fn measure(object: &[u8]) -> Result<BTreeMap<String, Cost>> {
    let mut costs = BTreeMap::new();
    measure_kind(object, "", None, &mut costs)?;
    measure_kind(object, TRANSITIONAL, Some("EXCHANGED"), &mut costs)?;
    if costs.values().any(|cost| cost.explored > 0) {
        measure_kind(object, LOGGING, Some("LOGGED"), &mut costs)?;
    }
    let is_other = |name: &str, cost: &Cost| {
        let plain = name.strip_suffix(LOGGING);
        plain.is_none_or(|plain| costs.get(plain) != Some(cost))
    };
    let kept = costs.iter().filter(|(name, cost)| is_other(name, cost));
    Ok(kept.map(|(name, cost)| (name.clone(), *cost)).collect())
}

fn measure_kind(
    object: &[u8],
    suffix: &str,
    switch: Option<&str>,
    costs: &mut BTreeMap<String, Cost>,
) -> Result<()> {
    let mut loader = EbpfLoader::new();
    if let Some(switch) = switch {
        loader.override_global(switch, &u8::MAX, true);
    }
    let mut ebpf = loader.load(object).context("the object's maps and BTF")?;
    let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let program = ebpf.program_mut(&name).context("just listed")?;
        let name = format!("{name}{suffix}");
        load(program).with_context(|| name.clone())?;
        let info = program.info()?;
        let explored = info.verified_instruction_count().unwrap_or(0);
        let stack = stack::deepest(&xlated::instructions(program.fd()?)?)?;
        costs.insert(name, Cost { explored, stack });
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<()> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        other => bail!("unexpected type {:?}", other.prog_type()),
    };
    loaded.map_err(|error| {
        let text = format!("{error:?}").replace("\\n", "\n");
        let lines: Vec<&str> = text.lines().collect();
        anyhow::anyhow!(lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
    })
}

/// Of what the verifier says about a program that it refuses.
const LAST_LINES: usize = 60;
