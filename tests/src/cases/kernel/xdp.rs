//! Cases as XDP, at a device of the world.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::xdp::{Xdp, XdpMode};
use aya::programs::{Program, TestRun as _, TestRunOptions};
use proxy_common::Counter;
use proxy_ebpf::Verdict;
use proxy_userspace::datapath::load::XDP_PROGRAM;

use super::{HZ, OUT_MAX, Output, Runner, is_runnable, sockets};
use crate::cases::world::{CaseFamily, UPLINK};
use crate::cases::{Case, Outcome, events, host};

/// `struct xdp_md` as 32-bit words, and the words that a test run sets.
type Context32 = [u32; 6];
const DATA_END_WORD: usize = 1;
const INGRESS_IFINDEX_WORD: usize = 3;
/// The first kernel whose test runs of XDP programs take an interface.
const XDP_CONTEXT: (u32, u32) = (5, 14);

/// The XDP program, attached to the uplink: a device's receive queue, which a test run borrows, is
/// there only while a program is. False where the kernel is too old for that.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<bool> {
    if release() < XDP_CONTEXT {
        return Ok(false);
    }
    let program = ebpf.program_mut(XDP_PROGRAM).context(XDP_PROGRAM)?;
    let program = <&mut Xdp>::try_from(program)?;
    program.attach(&format!("dev{UPLINK}"), XdpMode::Driver)?;
    Ok(true)
}

/// The running kernel's first two numbers.
fn release() -> (u32, u32) {
    let uname = nix::sys::utsname::uname().expect("uname");
    let text = uname.release().to_string_lossy().into_owned();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    next()
        .zip(next())
        .expect("a release begins with two numbers")
}

/// Runs the XDP program once on a frame that enters by `ifindex`.
fn test_run(ebpf: &Ebpf, ifindex: u32, bytes: &[u8]) -> Result<Output> {
    let Some(Program::Xdp(program)) = ebpf.program(XDP_PROGRAM) else {
        bail!("no XDP program");
    };
    let mut context: Context32 = [0; 6];
    context[DATA_END_WORD] = bytes.len() as u32;
    context[INGRESS_IFINDEX_WORD] = ifindex;
    let mut out = vec![0; OUT_MAX];
    let mut options = TestRunOptions::new();
    options.data_in = Some(bytes);
    options.data_out = Some(&mut out);
    options.ctx_in = Some(bytemuck::cast_slice(&context));
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    out.truncate(result.data_size_out as usize);
    Ok(Output {
        action: result.return_value,
        mark: 0,
        bytes: out,
    })
}

impl Runner {
    /// Runs a case at XDP and compares with the host's; what went wrong, in words.
    pub(super) fn run_at_xdp<F: CaseFamily>(
        &mut self,
        case: &Case,
        now: u32,
    ) -> Result<Option<String>> {
        let bytes = case.bytes::<F>();
        if !is_runnable::<F>(&bytes) {
            return Ok(None);
        }
        let _sockets = sockets::<F>(&case.world)?;
        let on_host = case.world.tables::<F>(HZ, now);
        let expected = crate::cases::xdp::send(case, &on_host, now);
        let tables = case.world.tables::<F>(HZ, now);
        let kernel = self.tables::<F>();
        kernel.clear()?;
        kernel.fill(&tables)?;
        let output = test_run(&self.ebpf, case.ifindex, &bytes)
            .with_context(|| format!("{} ({})", case.name, F::NAME))?;
        let kernel = self.tables::<F>();
        let mut flows = kernel.flows::<F>();
        let outcome = outcome(&output, expected.verdict, case, kernel.counters()?)?;
        flows.written.get_mut().events = self.told.take();
        let parts = [
            outcome.differs(&expected),
            host::flows_differ(&flows, &on_host),
            host::bindings_differ(&flows, &on_host),
            events::differ(&flows, &on_host),
        ];
        Ok(parts.into_iter().flatten().reduce(|all, part| all + &part))
    }
}

fn outcome(
    output: &Output,
    expected: Verdict,
    case: &Case,
    counters: BTreeMap<Counter, u64>,
) -> Result<Outcome> {
    // `enum xdp_action` of linux/bpf.h.
    const DROP: u32 = 1;
    const PASS: u32 = 2;
    const TX: u32 = 3;
    const REDIRECT: u32 = 4;
    let verdict = match (output.action, expected) {
        (PASS, _) => Verdict::Pass,
        (DROP, _) => Verdict::Drop,
        // Where a frame leaves by the interface that it entered by.
        (TX, Verdict::Redirect(ifindex)) if ifindex == case.ifindex => expected,
        (TX, _) => Verdict::Return,
        (REDIRECT, Verdict::Redirect(ifindex)) if ifindex != case.ifindex => expected,
        (action, _) => bail!("XDP action {action}"),
    };
    Ok(Outcome::of_run(verdict, output.bytes.clone(), counters))
}
