//! `docs/verifier.md`: the budget of each program, with what it took when the file was written.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::{Cost, LOGGING, TRANSITIONAL};

/// What the kernel grants each program.
const EXPLORED_MAX: u32 = 1_000_000;
/// As above.
const STACK_MAX: u32 = 512;
/// A new budget leaves this many hundredths for changes that matter little.
const ROOM_PERCENT: u32 = 5;
/// And is rounded up to this.
const STEP: u32 = 1_000;

const HEAD: &str = "\
# Verifier budget

What each BPF program costs the kernel's verifier: instructions explored (the kernel refuses more
than 1,000,000) and bytes of stack of the deepest chain of calls (more than 512), each frame rounded
up to 32. `cargo xtask verifier` measures by loading the programs without attaching them;
`cargo xtask check` fails where a program exceeds its budget, and `cargo xtask verifier --update`
writes this file anew: a commit that moves a budget says why. Other kernels explore other numbers of
instructions; there only the kernel's own bounds count. With `+old` are the programs that run while
flow tables are exchanged (decision 0017), with `+log` those that log (`--bpf-log debug`).
";

/// Budgets by program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Book {
    /// Kernel whose verifier was asked, as `major.minor`.
    pub kernel: String,
    /// What each program may cost.
    pub budgets: BTreeMap<String, Cost>,
}

impl Book {
    /// Reads the file.
    ///
    /// # Errors
    /// Names the line that is no row of the table.
    pub fn parse(text: &str) -> Result<Self> {
        let kernel = text.lines().find_map(|line| {
            let rest = line.strip_prefix("Measured on Linux ")?;
            Some(rest.trim_end_matches('.').to_owned())
        });
        let kernel = kernel.context("no line `Measured on Linux X.Y.`")?;
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let budgets = rows.map(|line| row(line).with_context(|| format!("`{line}`")));
        Ok(Self {
            kernel,
            budgets: budgets.collect::<Result<_>>()?,
        })
    }

    /// What exceeds its budget, or has none, in words.
    pub fn complaints(&self, kernel: &str, costs: &BTreeMap<String, Cost>) -> Vec<String> {
        let mut found = Vec::new();
        let kernels_own = Cost {
            explored: EXPLORED_MAX,
            stack: STACK_MAX,
        };
        for (name, cost) in costs {
            let Some(budget) = self.budgets.get(name) else {
                found.push(format!("{name} has no budget"));
                continue;
            };
            let budget = if kernel == self.kernel {
                *budget
            } else {
                Cost {
                    stack: budget.stack,
                    ..kernels_own
                }
            };
            for (what, took, may) in [
                ("instructions explored", cost.explored, budget.explored),
                ("bytes of stack", cost.stack, budget.stack),
            ] {
                if took > may {
                    found.push(format!("{name}: {took} {what}, the budget is {may}"));
                }
            }
        }
        // Those of the other kinds are not known on every kernel.
        let is_gone = |name: &&String| {
            let mut kinds = [TRANSITIONAL, LOGGING].into_iter();
            let known = kinds.find_map(|kind| name.strip_suffix(kind));
            !costs.contains_key(*name) && known.is_none_or(|known| !costs.contains_key(known))
        };
        let gone = self.budgets.keys().filter(is_gone);
        found.extend(gone.map(|name| format!("{name} is no program any more")));
        found
    }

    /// The file for what was measured on `kernel`.
    pub fn text(kernel: &str, costs: &BTreeMap<String, Cost>) -> String {
        let mut out = format!("{HEAD}\nMeasured on Linux {kernel}.\n\n");
        out += "| program | explored | budget | stack | budget |\n|---|---|---|---|---|\n";
        for (name, cost) in costs {
            let budget = cost.explored + cost.explored / 100 * ROOM_PERCENT;
            let budget = budget.next_multiple_of(STEP).min(EXPLORED_MAX);
            let Cost { explored, stack } = cost;
            let _ = writeln!(
                out,
                "| `{name}` | {explored} | {budget} | {stack} | {stack} |"
            );
        }
        out
    }
}

/// The name and the two budgets of a row.
fn row(line: &str) -> Result<(String, Cost)> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let number = |at: usize| -> Result<u32> {
        let text = cells.get(at).context("a cell is missing")?;
        text.parse()
            .with_context(|| format!("`{text}` is no number"))
    };
    let name = cells.get(1).context("a name is missing")?;
    let cost = Cost {
        explored: number(3)?,
        stack: number(5)?,
    };
    Ok((name.trim_matches('`').to_owned(), cost))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(explored: u32, stack: u32) -> BTreeMap<String, Cost> {
        BTreeMap::from([("tc_ingress".to_owned(), Cost { explored, stack })])
    }

    #[test]
    fn budget_leaves_little_room_and_is_read_back() {
        let text = Book::text("6.18", &costs(100_000, 448));
        let book = Book::parse(&text).expect("our own file");
        assert_eq!(book.budgets, costs(105_000, 448));
        assert_eq!(book.complaints("6.18", &costs(105_000, 448)), [""; 0]);
        assert_eq!(
            book.complaints("6.18", &costs(105_001, 480)),
            [
                "tc_ingress: 105001 instructions explored, the budget is 105000",
                "tc_ingress: 480 bytes of stack, the budget is 448"
            ]
        );
        // Another kernel walks in its own way.
        assert_eq!(book.complaints("6.1", &costs(400_000, 448)), [""; 0]);
    }

    #[test]
    fn program_without_a_row_and_row_without_a_program_are_named() {
        let book = Book::parse(&Book::text("6.18", &costs(1, 32))).expect("our own file");
        let other = BTreeMap::from([(
            "xdp".to_owned(),
            Cost {
                explored: 1,
                stack: 32,
            },
        )]);
        assert_eq!(
            book.complaints("6.18", &other),
            ["xdp has no budget", "tc_ingress is no program any more"]
        );
    }

    #[test]
    fn broken_row_is_named() {
        let text = Book::text("6.18", &costs(1, 32)).replace(" 32 |", " many |");
        let error = format!("{:#}", Book::parse(&text).expect_err("no number"));
        assert!(error.contains("`many` is no number"), "{error}");
    }
}
