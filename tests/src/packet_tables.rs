//! Packets with the answers that the rules give: the tables in `tests/explain`.
//!
//! One table is one set of objects. `shunt explain` answers every packet of them on the host, and
//! the programs of the BPF object answer the same packets in the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser as _;
use proxy_userspace::cli::args::{Cli, Command, ExplainArgs};
use serde::Deserialize;
use serde_json::{Value, json};

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// Flags.
    args: String,
    /// Manifests beside the common ones.
    objects: String,
    packets: Vec<Row>,
}

/// One packet with the answer that is expected.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// What it is about.
    rules: Vec<String>,
    /// As in the file of `--packets`.
    packet: Value,
    /// Flags in place of the file's.
    #[serde(default)]
    args: String,
    /// Fields of the answer; what is left out of it is not looked at.
    answer: BTreeMap<String, Value>,
}

/// One packet, ready to be asked about.
#[derive(Debug)]
pub struct Question {
    /// File, rules and packet.
    pub name: String,
    /// What the command line says.
    pub args: ExplainArgs,
    /// Fields of the answer.
    answer: BTreeMap<String, Value>,
}

impl Question {
    /// Compares the fields that are expected, and what holds of every answer.
    pub fn check(&self, found: &Value) -> Result<()> {
        for (field, expected) in &self.answer {
            ensure!(
                found[field] == *expected,
                "{field} is {}, not {expected}:\n{found:#}",
                found[field]
            );
        }
        is_consistent(found)
    }
}

/// Every packet of every table. What the questions read is written to `scratch`, and must stay
/// there.
pub fn questions(scratch: &Path) -> Result<Vec<Question>> {
    let mut paths: Vec<_> = fs::read_dir(folder())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    let mut questions = Vec::new();
    for path in paths {
        let name = path.display();
        let text = fs::read_to_string(&path)?;
        let table: Table =
            serde_saphyr::from_str(&text).with_context(|| format!("reading {name}"))?;
        let file_name = path.file_name().context("a file")?;
        let objects = scratch.join(file_name);
        fs::write(&objects, &table.objects)?;
        for (index, row) in table.packets.iter().enumerate() {
            let packets = objects.with_extension(format!("{index}.json"));
            let question = question(&table, row, &objects, &packets);
            questions.push(question.with_context(|| format!("{name}: packet {index}"))?);
        }
    }
    Ok(questions)
}

fn question(table: &Table, row: &Row, objects: &Path, packets: &Path) -> Result<Question> {
    ensure!(!row.rules.is_empty(), "no rule is cited");
    ensure!(row.answer.contains_key("verdict"), "no verdict is expected");
    fs::write(packets, json!([row.packet]).to_string())?;
    let mut words = vec!["--manifests".to_owned()];
    for path in [folder().join("common"), objects.to_owned()] {
        words.push(path.display().to_string());
    }
    words.extend(["--packets".to_owned(), packets.display().to_string()]);
    words.extend(flags(&table.args, &row.args));
    let (rules, file) = (row.rules.join(" "), objects.file_name().unwrap_or_default());
    Ok(Question {
        name: format!("{}: {rules} {}", file.display(), row.packet),
        args: parse(words)?,
        answer: row.answer.clone(),
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("explain")
}

/// Flags by name: those of a row replace those of its file.
fn flags(file: &str, row: &str) -> Vec<String> {
    let mut flags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in [file, row] {
        let mut name = String::new();
        for word in text.split_whitespace() {
            if word.starts_with("--") {
                name = word.split('=').next().unwrap_or(word).to_owned();
                flags.insert(name.clone(), vec![word.to_owned()]);
            } else {
                flags.entry(name.clone()).or_default().push(word.to_owned());
            }
        }
    }
    flags.into_values().flatten().collect()
}

fn parse(words: impl IntoIterator<Item = String>) -> Result<ExplainArgs> {
    let command = ["shunt".to_owned(), "explain".to_owned()];
    match Cli::try_parse_from(command.into_iter().chain(words))?.command {
        Command::Explain(args) => Ok(*args),
        other => bail!("{other:?}"),
    }
}

/// What holds of every answer.
fn is_consistent(answer: &Value) -> Result<()> {
    let backends = answer["backends"].as_array().context("backends")?;
    let is_dnat = answer["verdict"] == "dnat";
    ensure!(is_dnat != backends.is_empty(), "backends of {answer:#}");
    ensure!(
        is_dnat == answer["chosen"].is_string(),
        "chosen of {answer:#}"
    );
    if is_dnat {
        ensure!(backends.contains(&answer["chosen"]), "{answer:#}");
    } else {
        let rest = (&answer["snat"], &answer["hairpin"]);
        ensure!(rest == (&json!(false), &json!(false)), "{answer:#}");
    }
    ensure!(
        answer["snat"] == true || answer["snat_address"].is_null(),
        "{answer:#}"
    );
    ensure!(
        answer["hairpin"] == false || answer["snat"] == true,
        "{answer:#}"
    );
    Ok(())
}
