use std::path::Path;

use super::*;

const DOCUMENT: &str = "\
- **S-001 Watched objects.** Services.
  Ex: **S-009** is no item.
- **S-119a Per family.** Some.
- **S-190** QUIRK: a rule without a title of its own, yet with words.
- **W-1** Service a.
| **S-003** | no |
";

fn id(text: &str) -> RuleId {
    RuleId::parse(text).expect("a number")
}

fn citations(files: &[(&str, &str)]) -> Vec<Citation> {
    let mut package = Package::default();
    for (path, text) in files {
        package.read(Path::new(path), text).expect("Rust");
    }
    package.citations()
}

fn complaints(exceptions: &str, citations: Vec<Citation>) -> Vec<String> {
    let (exceptions, complaints) = book::exceptions(exceptions);
    judge(book::rules(DOCUMENT), exceptions, citations, complaints).complaints
}

fn cited(rules: &str) -> Citation {
    Citation {
        path: "a.rs".into(),
        line: 1,
        rules: book::list(rules).expect("numbers"),
        label: "a".into(),
        tests: BTreeSet::from(["a".into()]),
    }
}

#[test]
fn numbers_are_read_and_shown_alike() {
    for text in ["S-001", "S-119a", "S-216", "W-7", "P-14"] {
        assert_eq!(id(text).to_string(), text);
    }
    for text in [
        "S-",
        "S-1234",
        "S-119ab",
        "s-001",
        "X-1",
        "S-001 to S-003",
        "S-0a1",
    ] {
        assert_eq!(RuleId::parse(text), None, "{text}");
    }
    assert!(book::list("S-001, W-2").is_some_and(|list| list.len() == 2));
    assert_eq!(book::list("see S-001"), None);
}

#[test]
fn rules_of_the_document_have_titles() {
    let rules = book::rules(DOCUMENT);
    let titles: Vec<String> = rules
        .values()
        .map(|rule| format!("{} {}", rule.id, rule.title))
        .collect();
    let expected = [
        "S-001 Watched objects",
        "S-119a Per family",
        "S-190 QUIRK: a rule without a title of its",
        "W-1 Service a.",
    ];
    assert_eq!(titles, expected);
}

#[test]
fn fields_of_what_a_test_runs_are_citations() {
    let found = citations(&[(
        "tests/tests/one.rs",
        r#"
        const ROWS: &[Row] = &[row("a row", "S-001, S-119a", 1), Row { name: "b", rules: "W-1" }];
        const fn rules(_rules: &[&str]) {}
        fn cases() -> Vec<Case> { vec![case(format!("{} of", 1), &["S-001", "S-190"], 2)] }
        #[test]
        fn rows_hold() { check(ROWS); cases(); }
        proptest! { #[test] fn random(x in any()) { rules(&["S-190"]); } }
        "#,
    )]);
    let found: Vec<String> = found
        .iter()
        .map(|c| format!("{}: {:?} by {:?}", c.label, rules_of(c), c.tests))
        .collect();
    let expected = [
        r#"a row: ["S-001", "S-119a"] by {"rows_hold"}"#,
        r#"b: ["W-1"] by {"rows_hold"}"#,
        r#"{} of: ["S-001", "S-190"] by {"rows_hold"}"#,
        r#"random: ["S-190"] by {"random"}"#,
    ];
    assert_eq!(found, expected);
}

fn rules_of(citation: &Citation) -> Vec<String> {
    citation.rules.iter().map(RuleId::to_string).collect()
}

#[test]
fn comments_and_prose_cite_nothing() {
    let found = citations(&[(
        "tests/tests/one.rs",
        "//! S-001\n/// S-001\n#[test]\nfn one() { /* \"S-001\" */ ok(\"as S-001 says\"); }",
    )]);
    assert_eq!(found, []);
}

#[test]
fn what_no_test_runs_is_a_complaint() {
    let unused = r#"fn unused() { rules(&["S-001"]); }"#;
    let orphan = r#"#[test] fn orphan() { rules(&["S-001"]); }"#;
    let found = citations(&[
        ("tests/tests/one.rs", unused),
        ("a/src/b/orphan.rs", orphan),
    ]);
    assert!(found.iter().all(|citation| citation.tests.is_empty()));
    let found = complaints("", found);
    assert_eq!(
        found[..2],
        [
            "tests/tests/one.rs:1: no test runs `unused`",
            "a/src/b/orphan.rs:1: no test runs `orphan`",
        ]
    );
    let declared = citations(&[("a/src/b.rs", "mod orphan;"), ("a/src/b/orphan.rs", orphan)]);
    assert_eq!(declared[0].tests, BTreeSet::from(["orphan".into()]));
    let moved = "#[path = \"b/orphan.rs\"]\nmod other;";
    let declared = citations(&[("a/src/b.rs", moved), ("a/src/b/orphan.rs", orphan)]);
    assert_eq!(declared[0].tests, BTreeSet::from(["orphan".into()]));
}

#[test]
fn rules_without_a_test_need_a_reason() {
    let all = || vec![cited("S-001, S-119a, S-190, W-1, P-3")];
    assert_eq!(complaints("", all()), Vec::<String>::new());
    let most = || vec![cited("S-001, S-119a, S-190")];
    assert_eq!(complaints("", most()), ["no test cites W-1 Service a."]);
    let later = "| rule | part | why |\n| --- | --- | --- |\n| W-1 | issue 7 | later |\n";
    assert_eq!(complaints(later, most()), Vec::<String>::new());
    assert_eq!(
        complaints(later, all()),
        ["docs/rules.md: W-1 is cited, so not `issue 7: later`"]
    );
    let rest = "| W-1 | rest: issue 7 | more |\n";
    assert_eq!(complaints(rest, all()), Vec::<String>::new());
    assert_eq!(
        complaints(rest, most()),
        ["docs/rules.md: W-1 is not cited, so not `the rest in issue 7: more`"]
    );
    assert_eq!(
        complaints("| W-1 | not for us | |\n", most()),
        ["W-1: no part or no reason"]
    );
}

#[test]
fn unknown_numbers_are_complaints() {
    let found = complaints(
        "| S-778 | issue 7 | a |\n| S-77 a | issue 7 | a |\n",
        vec![cited("S-001, S-119a, S-190, W-1, S-777")],
    );
    assert_eq!(
        found,
        [
            "`S-77 a` is no number of a rule",
            "a.rs:1: there is no rule S-777",
            "docs/rules.md: there is no rule S-778",
        ]
    );
}

#[test]
fn text_files_cite_in_headers_and_rows() {
    let found = |text| -> Vec<String> {
        let fields = book::fields(text).into_iter();
        fields
            .map(|field| format!("{} {} {}", field.line, field.label, field.rules.len()))
            .collect()
    };
    assert_eq!(
        found("# About\n# rules: S-001, W-1\n> apply\n"),
        ["2 Scenario 2"]
    );
    let table = "packets:\n- rules: [S-001, W-1]\n  packet: {dport: 80}\n  about: S-001\n";
    assert_eq!(found(table), ["2 packet: {dport: 80} 2"]);
    assert_eq!(found("S-001\n# see rules: [S-001]\n"), [""; 0]);
}

#[test]
fn every_rule_of_this_repository_is_cited() {
    let findings = find().expect("the sources");
    assert_eq!(findings.complaints, Vec::<String>::new());
    assert!(findings.rules.len() > 150, "{}", findings.rules.len());
}

#[test]
fn results_of_the_last_run_are_shown() {
    let text = "test a::one ... ok\ntest b::two ... FAILED\ntest three ... ok\nrunning 3 tests\n";
    let results = parse_results(text);
    assert_eq!(results.len(), 3);
    let mut citation = cited("S-001");
    assert_eq!(outcome(&citation, &results), None);
    citation.tests = BTreeSet::from(["one".into(), "three".into()]);
    assert_eq!(outcome(&citation, &results), Some(Outcome::Passed));
    citation.tests.insert("two".into());
    assert_eq!(outcome(&citation, &results), Some(Outcome::Failed));
    let findings = judge(
        book::rules(DOCUMENT),
        BTreeMap::new(),
        vec![citation],
        Vec::new(),
    );
    let text = summary(&findings, &results);
    assert!(
        text.ends_with("in the last test run 0 passed, 1 failed"),
        "{text}"
    );
    let text = row(&findings.rules[&id("S-001")], &findings, &results);
    assert_eq!(text, "S-001   Watched objects\n        FAILED  a.rs:1  a\n");
}
