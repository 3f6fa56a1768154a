//! The rules of the code that no other tool checks: sizes, and words that must not occur.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 400;
/// Lines of a function, its signature and closing brace included.
const FUNCTION_LINES_MAX: usize = 70;
/// Columns of a line.
const COLUMNS_MAX: usize = 100;

/// Checks every Rust file and script of the repository.
pub fn run() -> Result<()> {
    let mut complaints = Vec::new();
    for path in tracked()? {
        let Ok(text) = fs::read_to_string(command::root().join(&path)) else {
            continue;
        };
        complaints.extend(inspect(&path, &text));
    }
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints", complaints.len());
    }
    Ok(())
}

/// The files git knows of, ignored ones and generated ones left out.
pub fn tracked() -> Result<Vec<PathBuf>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = std::process::Command::new("git")
        .args(arguments)
        .current_dir(command::root())
        .output()
        .context("listing files with git")?;
    let list = String::from_utf8_lossy(&output.stdout);
    Ok(list
        .lines()
        .map(PathBuf::from)
        .filter(|path| is_ours(path))
        .collect())
}

fn is_ours(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let is_generated = matches!(extension, "lock" | "sum" | "mod" | "o" | "png" | "svg");
    !is_generated && path != Path::new("xtask/src/tidy.rs")
}

fn inspect(path: &Path, text: &str) -> Vec<String> {
    let mut found: Vec<String> = banned(text)
        .into_iter()
        .map(|(line, what)| format!("{}:{line}: {what}", path.display()))
        .collect();
    if path.extension().is_some_and(|extension| extension == "rs") {
        let sizes = sizes(text, is_test(path));
        found.extend(
            sizes
                .into_iter()
                .map(|(n, what)| format!("{}:{n}: {what}", path.display())),
        );
    }
    found
}

fn is_test(path: &Path) -> bool {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    stem == "tests" || path.components().any(|part| part.as_os_str() == "tests")
}

/// Words that must not occur, by line.
fn banned(text: &str) -> Vec<(usize, String)> {
    const WORDS: [(&str, &str); 10] = [
        ("#[allow(", "use #[expect(lint, reason = \"..\")]"),
        ("#![allow(", "use #![expect(lint, reason = \"..\")]"),
        ("todo!(", "finish it"),
        ("unimplemented!(", "finish it"),
        ("#[ignore", "a test runs or does not exist"),
        ("crates.io", "no registry host names"),
        ("proxy.golang.org", "no registry host names"),
        ("/home/", "no path of one machine"),
        ("/root/", "no path of one machine"),
        ("/work/", "no path of one machine"),
    ];
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (word, instead) in WORDS {
            if line.contains(word) {
                found.push((index + 1, format!("`{word}`: {instead}")));
            }
        }
    }
    found
}

/// Lines, functions and files that are too long.
fn sizes(text: &str, is_test: bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut function: Option<(usize, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !is_unbreakable(line) {
            found.push((
                index + 1,
                format!("{columns} columns, at most {COLUMNS_MAX}"),
            ));
        }
        let indent = columns - line.trim_start().chars().count();
        match function {
            None if starts_function(line) => function = Some((index, indent)),
            Some((_, start)) if indent == start && line.trim_end().ends_with(';') => {
                function = None;
            }
            Some((first, start)) if indent == start && line.trim() == "}" => {
                function = None;
                let lines = index - first + 1;
                if lines > FUNCTION_LINES_MAX {
                    let what = format!("a function of {lines} lines, at most {FUNCTION_LINES_MAX}");
                    found.push((first + 1, what));
                }
            }
            _ => {}
        }
        if starts_function(line) && line.trim_end().ends_with(['}', ';']) {
            function = None;
        }
    }
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .count();
    if lines > FILE_LINES_MAX && !is_test {
        found.push((
            lines,
            format!("{lines} lines without tests, at most {FILE_LINES_MAX}"),
        ));
    }
    found
}

/// A line of one long word (an address, a table of a macro) cannot be broken.
fn is_unbreakable(line: &str) -> bool {
    let text = line.trim_start().trim_start_matches("//").trim();
    !text.contains(' ') || text.starts_with("layout!(")
}

fn starts_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        matches!(*word, "const" | "async" | "unsafe" | "extern" | "\"C\"")
            || word.starts_with("pub")
    });
    words.next() == Some("fn")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_function_is_named_by_its_first_line() {
        let body = "    let x = 1;\n".repeat(FUNCTION_LINES_MAX);
        let text = format!("//! Doc.\n\npub(crate) fn long() {{\n{body}}}\n");
        let found = sizes(&text, false);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 3);
    }

    #[test]
    fn short_functions_in_a_row_are_not_one_long_one() {
        let text = "fn a() {}\nfn b() {\n    1;\n}\n".repeat(60);
        assert!(sizes(&text, false).is_empty());
    }

    #[test]
    fn tests_do_not_count_towards_a_file() {
        let text = format!(
            "{}#[cfg(test)]\n{}",
            "// a\n".repeat(300),
            "// b\n".repeat(300)
        );
        assert!(sizes(&text, false).is_empty());
        assert_eq!(sizes(&"// a\n".repeat(401), false).len(), 1);
    }

    #[test]
    fn banned_words_are_found_with_their_line() {
        let found = banned("fn a() {}\n#[allow(dead_code)]\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 2);
    }
}
