//! Every program of the BPF object passes the running kernel's verifier, within its budget.

use tests::verifier::{Book, LOGGING, TRANSITIONAL, measure};

/// The BPF object that `cargo xtask build-ebpf` leaves.
fn object() -> Vec<u8> {
    let path = std::env::var("SHUNT_EBPF_OBJECT")
        .unwrap_or_else(|_| format!("{}/../target/bpf/shunt-ebpf.o", env!("CARGO_MANIFEST_DIR")));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; run build-ebpf"))
}

#[test]
fn every_program_passes_the_verifier_within_its_budget() {
    let costs = measure(&object()).expect("every program is accepted");
    println!("{costs:#?}");
    let count = |kind| costs.keys().filter(|name| name.ends_with(kind)).count();
    let transitional = count(TRANSITIONAL);
    let plain = costs.len() - transitional - count(LOGGING);
    println!("\n@fact programs that passed the verifier = {plain}");
    println!("@fact transitional programs, too (decision 0017) = {transitional}");
    let book = Book::parse(include_str!("../../docs/verifier.md")).expect("docs/verifier.md");
    // Names and stack are of any kernel; what was explored is looked at by `cargo xtask check`.
    let complaints = book.complaints("any", &costs);
    assert_eq!(complaints, [""; 0]);
}
