//! Property 8: the kernel does what the host does, for any packet in any world.

use anyhow::Result;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use proxy_ebpf::{V4, V6};
use tests::cases::kernel::{HZ, Input, Runner, address_to_device, is_runnable, namespace};
use tests::cases::world::CaseFamily;
use tests::cases::{Case, host, random};
use tests::net::Sandbox;

/// Random packets a family.
const CASES: u32 = 600;

fn equal<F: CaseFamily>(runner: &mut Runner, case: &Case, now: u32) -> Result<Option<String>> {
    let bytes = case.bytes::<F>();
    if !is_runnable::<F>(&bytes) {
        return Ok(None);
    }
    let (mut on_host, host_flows) = host::run::<F>(case, HZ, now);
    address_to_device(&mut on_host);
    let input = Input {
        hook: case.hook,
        ifindex: case.ifindex,
        mark: case.mark,
        segment_len: case.segment_len,
        bytes: &bytes,
    };
    let tables = case.world.tables::<F>(HZ, now);
    let (in_kernel, kernel_flows) = runner.send(&tables, input, on_host.verdict)?;
    let parts = [
        in_kernel.differs(&on_host),
        host::flows_differ(&kernel_flows, &host_flows),
    ];
    Ok(parts.into_iter().flatten().reduce(|all, part| all + &part))
}

fn all_equal<F: CaseFamily>(runner: &mut Runner, now: u32) {
    let runner = std::cell::RefCell::new(runner);
    let mut tests = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let result = tests.run(&random::any_damaged_case(), |case| {
        match equal::<F>(&mut runner.borrow_mut(), &case, now) {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => Err(TestCaseError::fail(difference)),
            Err(error) => Err(TestCaseError::fail(format!("{error:#}"))),
        }
    });
    if let Err(error) = result {
        panic!("{}: {error}", F::NAME);
    }
}

#[test]
fn the_kernel_does_what_the_host_does() {
    let sandbox = Sandbox::new().expect("root");
    let netns = namespace(&sandbox).expect("devices and routes");
    let inside = || {
        let mut runner = Runner::new().expect("the BPF object");
        let now = runner.now().expect("the clock");
        all_equal::<V4>(&mut runner, now);
        all_equal::<V6>(&mut runner, now);
    };
    netns.enter(inside).expect("the namespace");
}
