//! `docs/kernel-support.md`: what was found and what ran, a column for each kernel.

use super::{Kernel, Outcome};

/// What a kernel without a feature does instead, by the feature's name in `shunt status`.
const WITHOUT: [(&str, &str, &str); 5] = [
    ("tcx", "TCX links at interfaces (6.6)", "clsact filters"),
    (
        "setRetval",
        "`bpf_set_retval` for refused socket calls (5.18)",
        "the packet path refuses",
    ),
    (
        "udpDestroy",
        "destruction of UDP sockets (CONFIG_INET_UDP_DIAG)",
        "connected ones stay with a lost backend",
    ),
    ("btf", "the kernel's own BTF", "not needed"),
    ("ringBuffer", "ring buffer (5.8)", "not needed"),
];

const HEAD: &str = "\
# Kernels that are tested

Written by `cargo xtask kernels`. Every program of the BPF object passed each kernel's verifier, the
Case table and the packets of `tests/explain` gave in the kernel what they gave on the host, and
real sockets in network namespaces reached their Services over every path. A feature that its
release should have and that is missing is a failure, and so is a test that is left out.

";

const TAIL: &str = "
A feature that is missing stands with what is done instead. `guest_*` need modules that the running
kernel may lack: they run in the machines that are booted.
";

/// The page.
pub fn text(outcomes: &[(Kernel, Outcome)]) -> String {
    let mut page = HEAD.to_owned();
    let mut row = |first: &str, cell: &dyn Fn(&Outcome) -> String| {
        let cells: Vec<String> = outcomes.iter().map(|(_, found)| cell(found)).collect();
        page += &format!("| {first} | {} |\n", cells.join(" | "));
    };
    // Of a kernel that somebody built for himself, what follows the version tells nobody anything.
    row("", &|found| match found.release.split_once('-') {
        Some((version, _)) if !found.release.ends_with("-amd64") => version.to_owned(),
        _ => found.release.clone(),
    });
    row("---", &|_| "---".to_owned());
    for (name, what, instead) in WITHOUT {
        row(what, &|found| match found.features.get(name) {
            Some(value) if value == true => "yes".to_owned(),
            _ => format!("no: {instead}"),
        });
    }
    for name in in_order(outcomes, |found| &found.facts) {
        row(&name, &|found| {
            let of_name = found.facts.iter().find(|(fact, _)| *fact == name);
            of_name.map_or_else(|| "-".to_owned(), |(_, value)| value.clone())
        });
    }
    for name in in_order(outcomes, |found| &found.tests) {
        row(&format!("tests of `{name}`"), &|found| {
            let of_name = found.tests.iter().find(|(test, _)| *test == name);
            of_name.map_or_else(|| "-".to_owned(), |(_, test)| test.passed.to_string())
        });
    }
    page + TAIL
}

/// The names of a list, as the kernels with most of them have it.
fn in_order<T>(
    outcomes: &[(Kernel, Outcome)],
    list: fn(&Outcome) -> &Vec<(String, T)>,
) -> Vec<String> {
    let longest = outcomes
        .iter()
        .map(|(_, found)| list(found))
        .max_by_key(|list| list.len());
    let names = longest.into_iter().flatten();
    names.map(|(name, _)| name.clone()).collect()
}
