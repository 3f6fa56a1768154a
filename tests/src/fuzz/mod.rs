//! A mutational fuzzer of the packet's path, on the host: packets of a corpus are damaged in ways
//! that mean something to a parser, and what the path makes of them is checked ([`check`]).
//!
//! It needs no instrumented build: an input is worth keeping if the path ended in a way that no
//! earlier input has led to ([`check::Shape`]). With the same seed and the same number of inputs, a
//! run is the same. The corpus is the Case table, and the packets of `tests/corpus/packets.txt`:
//! one a line, with the family and the name of the case whose world it meets.

pub mod check;
mod mutate;

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail};
use proxy_ebpf::{V4, V6};

use crate::cases::Case;
use crate::cases::table::table;
use check::{Shape, Target};
use mutate::Mutator;

/// Packets that were found, in their text.
pub const FOUND: &str = include_str!("../../corpus/packets.txt");

/// Address family of an input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A packet and the world that it meets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Input {
    /// Which program sees it.
    pub version: Version,
    /// Position of the case whose world and hook it meets.
    pub case: usize,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What a run has done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Packets that were sent down the path.
    pub executions: u64,
    /// Those that left translated.
    pub translated: u64,
    /// Answers to translated packets that became what the client expects.
    pub restored: u64,
    /// Packets beside the corpus that led to counters, or a kind of packet, of their own.
    pub kept: Vec<String>,
    /// What went wrong, with the line of the corpus that shows it.
    pub findings: Vec<String>,
}

/// The fuzzer.
#[derive(Debug)]
pub struct Fuzzer {
    target: Target,
    cases: Vec<Case>,
    corpus: Vec<Input>,
    shapes: BTreeSet<Shape>,
    ends: BTreeSet<Shape>,
    mutator: Mutator,
    /// So far.
    pub report: Report,
}

/// After this many findings a run ends.
const FINDINGS_MAX: usize = 20;

impl Fuzzer {
    /// Over the Case table and further lines of a corpus, all of which are tried first.
    pub fn new(target: Target, seed: u64, found: &str) -> Result<Self> {
        let is_ip = |case: &Case| case.packet.frame.is_ip() && case.mark == 0;
        let cases: Vec<Case> = table().into_iter().filter(is_ip).collect();
        let mut fuzzer = Self {
            target,
            mutator: Mutator::new(seed),
            corpus: Vec::new(),
            shapes: BTreeSet::new(),
            ends: BTreeSet::new(),
            report: Report::default(),
            cases,
        };
        for index in 0..fuzzer.cases.len() {
            for version in [Version::V4, Version::V6] {
                let case = &fuzzer.cases[index];
                let (holds, bytes) = match version {
                    Version::V4 => (case.holds_for::<V4>(), case.bytes::<V4>()),
                    Version::V6 => (case.holds_for::<V6>(), case.bytes::<V6>()),
                };
                if holds {
                    fuzzer.try_seed(Input {
                        version,
                        case: index,
                        bytes,
                    });
                }
            }
        }
        for line in found.lines().filter(|line| !line.is_empty()) {
            let input = fuzzer.parse(line).with_context(|| line.to_owned())?;
            fuzzer.try_seed(input);
        }
        fuzzer.report.kept.clear();
        Ok(fuzzer)
    }

    /// Tries this many damaged packets, or until too much has been found.
    pub fn run(&mut self, count: u64) {
        for _ in 0..count {
            if self.report.findings.len() >= FINDINGS_MAX {
                return;
            }
            let mut input = self.mutator.pick(&self.corpus).clone();
            let other = self.mutator.pick(&self.corpus).bytes.clone();
            self.mutator.damage(input.version, &mut input.bytes, &other);
            if self.mutator.is_one_of(16) {
                // The same packet in the world of another case.
                input.case = self.mutator.pick(&self.corpus).case;
            }
            if self.try_input(&input) {
                self.corpus.push(input);
            }
        }
    }

    fn try_seed(&mut self, input: Input) {
        self.try_input(&input);
        self.corpus.push(input);
    }

    /// True if it has led to an end that no earlier one has led to.
    fn try_input(&mut self, input: &Input) -> bool {
        let case = &self.cases[input.case];
        let target = self.target;
        let outcome = catch_unwind(AssertUnwindSafe(|| match input.version {
            Version::V4 => check::run::<V4>(target, case, &input.bytes),
            Version::V6 => check::run::<V6>(target, case, &input.bytes),
        }));
        self.report.executions += 1;
        match outcome.unwrap_or_else(|panic| Err(words(panic.as_ref()))) {
            Ok(end) => {
                self.report.translated += u64::from(end.is_translated);
                self.report.restored += u64::from(end.is_restored);
                if self.ends.insert(end.end) {
                    self.report.kept.push(self.line(input));
                }
                self.shapes.insert(end.shape)
            }
            Err(complaint) => {
                let finding = format!("{complaint}\n{}", self.line(input));
                self.report.findings.push(finding);
                false
            }
        }
    }

    fn line(&self, input: &Input) -> String {
        let digits = input.bytes.iter().map(|byte| format!("{byte:02x}"));
        let digits: String = digits.collect();
        let name = &self.cases[input.case].name;
        format!("{:?} {digits} {name}", input.version)
    }

    fn parse(&self, line: &str) -> Result<Input> {
        let mut words = line.splitn(3, ' ');
        let version = match words.next() {
            Some("V4") => Version::V4,
            Some("V6") => Version::V6,
            other => bail!("family {other:?}"),
        };
        let digits = words.next().context("no bytes")?;
        let pairs = (0..digits.len()).step_by(2);
        let bytes = pairs.map(|at| u8::from_str_radix(digits.get(at..at + 2).unwrap_or("?"), 16));
        let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
        let name = words.next().context("no case")?;
        let case = self.cases.iter().position(|case| case.name == name);
        Ok(Input {
            version,
            case: case.context("no such case")?,
            bytes,
        })
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("a panic: {}", text.unwrap_or_default())
}
