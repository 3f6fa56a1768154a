//! `shunt explain` over manifests: every packet of the tables in `tests/explain`.

use anyhow::{Result, bail};
use proxy_userspace::cli::explain;
use tests::packet_tables::{Question, questions};

/// Packets that there are at least: a folder that is not found is not a success.
const COUNT_MIN: usize = 130;

fn ask(question: &Question) -> Result<()> {
    let (answers, complaints) = explain::answers(&question.args)?;
    let ([answer], []) = (answers.as_slice(), complaints.as_slice()) else {
        bail!("{} answers, {complaints:?}", answers.len());
    };
    question.check(&serde_json::to_value(answer)?)
}

#[test]
fn packets_are_answered_as_the_rules_say() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let questions = questions(scratch.path())?;
    assert!(questions.len() >= COUNT_MIN, "{} packets", questions.len());
    let failures: Vec<String> = questions
        .iter()
        .filter_map(|question| {
            let error = ask(question).err()?;
            Some(format!("{}: {error:#}", question.name))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}
