//! What `shunt agent` cannot work with: it ends with one sentence that says what to do, and has
//! changed nothing. Nothing here reaches the kernel: each is refused on the way.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Cites the rules that a test is about: read by `cargo xtask rules`.
const fn rules(_rules: &[&str]) {}

/// What the agent says, given these arguments and a folder that is neither a bpffs nor a cgroup.
fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
    command.args(["agent", "--node-name", "n1", "--log-level", "error"]);
    command.arg("--bpffs").arg(folder);
    let output = command.args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?}: {text}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{arguments:?}");
    text
}

fn check(arguments: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(folder.path(), arguments);
    let lines = text.trim_end().lines().count();
    assert_eq!(lines, 1, "{arguments:?}: {text}");
    for part in parts {
        assert!(
            text.contains(part),
            "{arguments:?}: {part:?} is not in {text}"
        );
    }
}

#[test]
fn options_are_refused_by_name() {
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--nodeport-addresses", "primary,primary"],
            &["nodeport-addresses", "primary is given twice"],
        ),
        (
            &["--nodeport-addresses", "10.0.0.0/99"],
            &["nodeport-addresses", "10.0.0.0/99", "primary"],
        ),
        (&["--cluster-cidr", "10.4.0.0"], &["cluster-cidr", "CIDR"]),
        (&["--snat-ports", "5-1"], &["snat-ports", "5-1"]),
        (&["--max-flows", "0"], &["max-flows", "1024"]),
        (&["--config", "/none.yaml"], &["/none.yaml"]),
    ];
    for (arguments, parts) in cases {
        check(arguments, parts);
    }
}

#[test]
fn unknown_options_and_values_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(folder.path(), &["--nope"]);
    assert!(text.contains("'--nope'"), "{text}");
    let text = refusal(folder.path(), &["--socket-lb", "maybe"]);
    assert!(
        text.contains("'maybe'") && text.contains("on, off, host"),
        "{text}"
    );
}

#[test]
fn machine_is_looked_at_before_it_is_changed() {
    rules(&["S-177"]);
    let missing = ["--manifests", "/none/of/these"];
    check(&missing, &["/none/of/these", "--manifests"]);
    let there = tempfile::tempdir().unwrap();
    let path = there.path().to_str().unwrap();
    check(
        &["--manifests", path, "--cgroup", path],
        &[path, "cgroup v2", "--cgroup"],
    );
    // Without the BPF object that comes first.
    let text = refusal(there.path(), &["--manifests", path, "--socket-lb", "off"]);
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(
        text.contains("is not on a bpffs; mount one") || text.contains("cargo xtask build"),
        "{text}"
    );
}
