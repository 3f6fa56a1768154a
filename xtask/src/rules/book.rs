//! The rules, their numbers, and the list of those that no test cites.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Words of a rule's text that stand for its title where it has none.
const TITLE_WORDS: usize = 8;

/// A number: `S-119a`, `W-3`, or `P-8` of the datapath's design.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RuleId {
    letter: char,
    number: u32,
    /// `a` in `S-119a`.
    suffix: Option<char>,
}

/// A rule as the document has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub id: RuleId,
    pub title: String,
}

/// Why no test cites a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exception {
    /// A part that is not there yet brings it.
    Later { part: String, what: String },
    /// Tests cite what is there of it; a part that is not there yet brings the rest.
    Rest { part: String, what: String },
    /// It asks nothing of this code.
    NotForUs { reason: String },
}

impl RuleId {
    /// Reads a number; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (letter, rest) = text.split_once('-')?;
        let letter = match letter {
            "S" => 'S',
            "W" => 'W',
            "P" => 'P',
            _ => return None,
        };
        let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let is_short = !digits.is_empty() && digits.len() <= 3;
        if !is_short || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let mut suffix = rest[digits.len()..].chars();
        let id = Self {
            letter,
            number: digits.parse().ok()?,
            suffix: suffix.next(),
        };
        suffix.next().is_none().then_some(id)
    }

    /// True for a rule of the datapath's design, which the document does not hold.
    pub fn is_of_design(&self) -> bool {
        self.letter == 'P'
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.letter == 'S' { 3 } else { 1 };
        write!(f, "{}-{:0width$}", self.letter, self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

impl Exception {
    /// What the table says.
    pub fn text(&self) -> String {
        match self {
            Self::Later { part, what } => format!("{part}: {what}"),
            Self::Rest { part, what } => format!("the rest in {part}: {what}"),
            Self::NotForUs { reason } => format!("not for us: {reason}"),
        }
    }
}

/// Numbers separated by commas, and nothing else.
pub fn list(text: &str) -> Option<BTreeSet<RuleId>> {
    text.split(',')
        .map(|part| RuleId::parse(part.trim()))
        .collect()
}

/// A field of a text file that cites.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// From 1.
    pub line: usize,
    pub rules: BTreeSet<RuleId>,
    pub label: String,
}

/// The header `# rules: ...` of a Scenario, and the fields `rules: [...]` of a table's rows, which
/// are called by the line after them.
pub fn fields(text: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let row = line.trim_start().trim_start_matches("- ");
        let row = row
            .strip_prefix("rules: [")
            .and_then(|row| row.strip_suffix(']'));
        let (rules, label) = match (line.strip_prefix("# rules:"), row) {
            (Some(header), _) => (header, "Scenario"),
            (None, Some(row)) => (row, lines.get(index + 1).map_or("", |next| next.trim())),
            (None, None) => continue,
        };
        fields.extend(list(rules).map(|rules| Field {
            line: index + 1,
            rules,
            label: label.to_owned(),
        }));
    }
    fields
}

/// The rules of the document: items that begin with a number in bold letters.
pub fn rules(text: &str) -> BTreeMap<RuleId, Rule> {
    let mut rules = BTreeMap::new();
    for line in text.lines() {
        let Some((bold, rest)) = line
            .strip_prefix("- **")
            .and_then(|item| item.split_once("**"))
        else {
            continue;
        };
        let (number, title) = bold.split_once(' ').unwrap_or((bold, ""));
        let number = number.trim_end_matches(':');
        let Some(id) = RuleId::parse(number) else {
            continue;
        };
        let title = if title.is_empty() {
            let words: Vec<&str> = rest.split_whitespace().take(TITLE_WORDS).collect();
            words.join(" ")
        } else {
            title.trim_end_matches(['.', ':']).to_owned()
        };
        rules.insert(id.clone(), Rule { id, title });
    }
    rules
}

/// The table of exceptions: rows `| S-148 | issue 7 | what it brings |`, `rest: issue 7` where a
/// part of the rule is there, or `not for us` with the reason. Also what is wrong with it.
pub fn exceptions(text: &str) -> (BTreeMap<RuleId, Exception>, Vec<String>) {
    let (mut exceptions, mut complaints) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", rule, part, why, ""] = cells[..] else {
            continue;
        };
        if rule == "rule" || rule.starts_with("--") {
            continue;
        }
        let Some(id) = RuleId::parse(rule) else {
            complaints.push(format!("`{rule}` is no number of a rule"));
            continue;
        };
        if why.is_empty() || part.is_empty() {
            complaints.push(format!("{id}: no part or no reason"));
        }
        let exception = match (part, part.strip_prefix("rest: ")) {
            ("not for us", _) => Exception::NotForUs { reason: why.into() },
            (_, Some(part)) => Exception::Rest {
                part: part.into(),
                what: why.into(),
            },
            (part, None) => Exception::Later {
                part: part.into(),
                what: why.into(),
            },
        };
        if exceptions.insert(id.clone(), exception).is_some() {
            complaints.push(format!("{id} stands there twice"));
        }
    }
    (exceptions, complaints)
}
