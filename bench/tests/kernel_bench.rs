//! The benchmarks themselves, small: they must go on working, and what does not depend on the
//! machine must hold.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::rules;

/// All that the benchmark prints, and the JSON of its last line.
fn run(words: &[&str]) -> Result<(String, Value)> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = bench.args(words).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let last = text.lines().last().context("it printed nothing")?;
    let figures = serde_json::from_str(last).with_context(|| last.to_owned())?;
    Ok((text, figures))
}

#[test]
fn control_plane_is_measured_and_changes_touch_one_service_alone() -> Result<()> {
    rules(&["S-006", "S-007", "S-216"]);
    let words = "control-plane --services 200 --endpoints 2000 --changes 50 --storm-secs 1 \
                 --storm-rate 200 --json";
    let (text, figures) = run(&words.split(' ').collect::<Vec<_>>())?;
    for field in [
        "cold_start_s",
        "cold_cpu_ms",
        "rss_mib",
        "maps_mib",
        "flow_maps_mib",
    ] {
        let value = figures[field].as_f64();
        ensure!(
            value.is_some_and(|value| value > 0.0),
            "{field} in {figures}"
        );
    }
    for field in ["p50", "p99"] {
        let value = figures["change_us"][field].as_f64();
        ensure!(
            value.is_some_and(|value| value > 0.0),
            "{field} in {figures}"
        );
    }
    ensure!(figures["change_from_api_ms"].is_null(), "{figures}");
    // One backend made, a region written, the frontend's word stored, the old backend freed.
    ensure!(figures["writes_per_change"] == 5.0, "{figures}");
    ensure!(text.contains("exact state: 200 Services"), "{text}");
    Ok(())
}

#[test]
fn datapath_is_measured_with_a_ratio_to_the_yardstick_in_every_row() -> Result<()> {
    let (_, figures) = run(&["datapath", "--quick", "--json"])?;
    let rows = figures["rows"].as_array().context("no rows")?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows {
        let (ns, ratio) = (row["ns"].as_f64(), row["ratio"].as_f64());
        ensure!(ns.is_some_and(|ns| ns > 0.0), "{row}");
        ensure!(ratio.is_some_and(|ratio| ratio > 0.0), "{row}");
        let what = row["what"].as_str().with_context(|| row.to_string())?;
        ensure!(what != "yardstick" || ratio == Some(1.0), "{row}");
        let program = row["program"].as_str().with_context(|| row.to_string())?;
        *seen.entry(format!("{program} {what}")).or_default() += 1;
    }
    // Every kind of row for each program and family.
    ensure!(seen.len() == 2 * 8, "{seen:?}");
    ensure!(seen.values().all(|count| count % 2 == 0), "{seen:?}");
    Ok(())
}

#[test]
fn soak_of_one_round_loses_nothing_and_tells_what_it_did() -> Result<()> {
    rules(&["S-120", "S-178"]);
    let picture = concat!(env!("CARGO_TARGET_TMPDIR"), "/soak.svg");
    let (_, figures) = run(&["soak", "--deeds", "1", "--json", "--plot", picture])?;
    let drawn = std::fs::read_to_string(picture)?;
    ensure!(drawn.contains("agent that lives all the time"), "{drawn}");
    let deeds = figures["deeds"].as_object().context("no deeds")?;
    ensure!(
        deeds.len() == 8 && deeds.values().all(|times| *times == 1),
        "{figures}"
    );
    ensure!(
        figures["lost"] == 0 && figures["connections"].as_u64() > Some(0),
        "{figures}"
    );
    Ok(())
}
