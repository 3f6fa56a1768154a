//! The Case table in the kernel: the programs of the BPF object by BPF_PROG_TEST_RUN as tc and as
//! XDP.

use tests::cases::kernel;
use tests::cases::table::table;
use tests::rules;

#[test]
fn every_case_holds_in_the_kernel() {
    let complaints = kernel::run_all(&table()).expect("root, and the BPF object");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_case_at_xdp_ends_in_the_kernel_as_on_the_host() {
    rules(&["P-10"]);
    let complaints = kernel::run_all_at_xdp(&table()).expect("root, and the BPF object");
    // Kernel 5.10 test-runs XDP at the loopback device only: there `net_xdp` has to do.
    let complaints = complaints.unwrap_or_default();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
