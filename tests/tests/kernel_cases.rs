//! The Case table in the kernel: the programs of the BPF object by BPF_PROG_TEST_RUN as tc.

use tests::cases::kernel;
use tests::cases::table::table;

#[test]
fn every_case_holds_in_the_kernel() {
    let complaints = kernel::run_all(&table()).expect("root, and the BPF object");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
