//! `shunt explain` over manifests: every file in `tests/explain`, a table of packets each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser as _;
use proxy_userspace::cli::args::{Cli, Command, ExplainArgs};
use proxy_userspace::cli::explain;
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

/// Runs a row and says what is wrong with the answer.
fn run(table: &Table, row: &Row, objects: &Path, packets: &Path) -> Result<()> {
    fs::write(packets, json!([row.packet]).to_string())?;
    let mut words = vec!["--manifests".to_owned()];
    for path in [folder().join("common"), objects.to_owned()] {
        words.push(path.display().to_string());
    }
    words.extend(["--packets".to_owned(), packets.display().to_string()]);
    words.extend(flags(&table.args, &row.args));
    let (answers, complaints) = explain::answers(&parse(words)?)?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    let [answer] = answers.as_slice() else {
        bail!("{} answers", answers.len());
    };
    let found = serde_json::to_value(answer)?;
    ensure!(row.answer.contains_key("verdict"), "no verdict is expected");
    for (field, expected) in &row.answer {
        ensure!(
            found[field] == *expected,
            "{field} is {}, not {expected}:\n{found:#}",
            found[field]
        );
    }
    check(&found)
}

/// What holds of every answer.
fn check(answer: &Value) -> Result<()> {
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

#[test]
fn packets_are_answered_as_the_rules_say() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (objects, packets) = (scratch.path().join("o.yaml"), scratch.path().join("p.yaml"));
    let mut failures = Vec::new();
    let mut count = 0;
    let mut paths: Vec<_> = fs::read_dir(folder())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    for path in paths {
        let name = path.display();
        let text = fs::read_to_string(&path)?;
        let table: Table =
            serde_saphyr::from_str(&text).with_context(|| format!("reading {name}"))?;
        fs::write(&objects, &table.objects)?;
        for (index, row) in table.packets.iter().enumerate() {
            assert!(
                !row.rules.is_empty(),
                "{name}: packet {index} cites nothing"
            );
            count += 1;
            if let Err(error) = run(&table, row, &objects, &packets) {
                let (rules, packet) = (row.rules.join(" "), &row.packet);
                failures.push(format!("{name}: {rules} {packet}: {error:#}"));
            }
        }
    }
    assert!(count >= 80, "{count} packets");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}
