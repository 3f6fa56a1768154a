//! Expected and found maps, as lines.

use anyhow::{Result, ensure};

/// Kinds of lines that are compared only where a text mentions them.
const OPTIONAL_LINES: [&str; 4] = ["cluster-ip", "node-address", "service-cidr", "pods"];

/// Compares line by line, without comments, blank lines and what the expected text leaves out.
pub(super) fn compare(expected: &str, found: &str) -> Result<()> {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    let (mut expected_lines, mut found_lines) = (lines(expected), lines(found));
    for word in OPTIONAL_LINES {
        if !expected_lines.is_empty() && !expected_lines.iter().any(|line| line.starts_with(word)) {
            found_lines.retain(|line| !line.starts_with(word));
        }
    }
    expected_lines.retain(|line| line != "nothing");
    expected_lines.sort();
    found_lines.sort();
    let missing: Vec<_> = expected_lines
        .iter()
        .filter(|line| !found_lines.contains(line))
        .collect();
    let surplus: Vec<_> = found_lines
        .iter()
        .filter(|line| !expected_lines.contains(line))
        .collect();
    ensure!(
        expected_lines == found_lines,
        "the maps differ\n  missing: {missing:#?}\n  surplus: {surplus:#?}"
    );
    Ok(())
}
