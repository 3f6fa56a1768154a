//! Cases in the kernel: the programs that the agent attaches, run by BPF_PROG_TEST_RUN as tc, in a
//! network namespace whose devices and routes are those of the world.

mod xdp;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use proxy_common::{Counter, protocol};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, V4, V6, Verdict};
use proxy_userspace::datapath::load::XDP_PROGRAM;
use proxy_userspace::datapath::pin::{PinKind, Pins};
use socket2::{Domain, Socket, Type};

use super::events::Told;
use super::raw_map::{self, KernelTables};
use super::world::*;
use super::{Case, Outcome, events, host, packets};
use crate::net::{Netns, Sandbox};

/// Ticks of the programs' clock in a second: so many that it stands still during a test.
pub const HZ: u32 = 1 << 31;
/// Largest packet out.
const OUT_MAX: usize = 4096;
/// `TC_ACT_OK`.
const OK: u32 = 0;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
/// Entries of the large maps: what a case needs, and room for the LRU's own lists.
const ENTRIES: u32 = 4096;

/// The namespace of the kernel runs, with the devices and routes of the world.
pub fn namespace(sandbox: &Sandbox) -> Result<Netns> {
    let netns = sandbox.netns("cases")?;
    let mut lines = String::new();
    for device in DEVICES {
        let index = device.ifindex;
        let mac = mac_text(packets::mac_of(index));
        lines += &if index == BRIDGE {
            format!("link add name dev{index} index {index} address {mac} type bridge\n")
        } else {
            let peer = index + 100;
            format!(
                "link add name dev{index} index {index} mtu {} address {mac} type veth \
                 peer name dev{peer} index {peer}\nlink set dev{peer} up\n",
                device.mtu
            )
        };
    }
    for device in DEVICES {
        let index = device.ifindex;
        if device.bridge != 0 {
            lines += &format!("link set dev{index} master dev{}\n", device.bridge);
        }
        lines += &format!("link set dev{index} up\n");
    }
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        netns.sysctl(key, value)?;
    }
    netns.ip(&lines)?;
    netns.ip(&addresses::<V4>())?;
    netns.ip(&addresses::<V6>())?;
    Ok(netns)
}

/// Own addresses and routes of one family, as `ip` commands.
fn addresses<F: CaseFamily>() -> String {
    let (all, nodad) = if F::VERSION == 4 {
        ("0.0.0.0/0", "")
    } else {
        ("::/0", "nodad")
    };
    let text = |role| ip::<F>(role);
    let mut lines = String::new();
    for (role, _) in OWN {
        let device = DEVICES.iter().find(|device| device.address == Some(role));
        let index = device.map_or(UPLINK, |device| device.ifindex);
        let address = text(role);
        let bits = <F::Addr as proxy_common::Address>::BITS;
        lines += &format!("addr add {address}/{bits} dev dev{index} {nodad}\n");
    }
    for (role, index) in ROUTES {
        lines += &format!("route add {} dev dev{index}\n", text(role));
    }
    for role in UNREACHABLE {
        lines += &format!("route add unreachable {}\n", text(role));
    }
    let router = text(Role::Router);
    lines += &format!("route add {router} dev dev{UPLINK}\n");
    lines += &format!("route add {all} via {router} dev dev{UPLINK}\n");
    let mac = mac_text(ROUTER_MAC);
    lines += &format!("neigh add {router} lladdr {mac} dev dev{UPLINK} nud permanent\n");
    lines
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The address of a role, as text.
fn ip<F: CaseFamily>(role: Role) -> std::net::IpAddr {
    let octets = F::octets(F::address(role));
    match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(octets)
            .expect("octets of a family")
            .into(),
    }
}

/// The loaded object. Runs belong inside the namespace.
#[derive(Debug)]
pub struct Runner {
    ebpf: Ebpf,
    tables: BTreeMap<u8, KernelTables>,
    told: Told,
}

/// The object that `build-ebpf` leaves, or SHUNT_EBPF_OBJECT.
pub fn object() -> Result<Vec<u8>> {
    let path = std::env::var("SHUNT_EBPF_OBJECT")
        .unwrap_or_else(|_| format!("{}/../target/bpf/shunt-ebpf.o", env!("CARGO_MANIFEST_DIR")));
    std::fs::read(&path).with_context(|| format!("{path}: run cargo xtask build-ebpf"))
}

/// Loads the object with small flow tables, and its tc programs for Ethernet.
pub fn load() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let names = ["HANDSHAKES", "FLOWS", "AFFINITY", "FRAGMENTS", "SOCKETS"];
    let names: Vec<String> = names
        .iter()
        .flat_map(|name| [format!("{name}4"), format!("{name}6")])
        .collect();
    for name in &names {
        loader.map_max_entries(name, ENTRIES);
    }
    let mut ebpf = loader.load(&object()?)?;
    for name in ["tc_ingress", "tc_egress"] {
        let program = ebpf.program_mut(name).context(name)?;
        <&mut SchedClassifier>::try_from(program)?.load()?;
    }
    let program = ebpf.program_mut(XDP_PROGRAM).context(XDP_PROGRAM)?;
    <&mut Xdp>::try_from(program)?.load()?;
    Ok(ebpf)
}

/// Pins every map where the agent's own code looks for it.
pub fn pin_maps(ebpf: &Ebpf, pins: &Pins) -> Result<()> {
    for (name, map) in ebpf.maps() {
        let path = pins.path(PinKind::Maps, name);
        match raw_map::data(map) {
            Some(data) if !name.starts_with('.') => data.pin(path)?,
            _ => {}
        }
    }
    Ok(())
}

/// `struct __sk_buff` as 32-bit words, and the words that a test run may set.
type Context32 = [u32; 48];
const MARK_WORD: usize = 2;
const IFINDEX_WORD: usize = 10;
const GSO_SIZE_WORD: usize = 44;

/// What a test run takes.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The hook.
    pub hook: Hook,
    /// Its interface.
    pub ifindex: u32,
    /// The mark that the packet carries.
    pub mark: u32,
    /// Payload of each segment; 0 for a single packet.
    pub segment_len: u32,
    /// The packet.
    pub bytes: &'a [u8],
}

/// What it gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// `TC_ACT_*`.
    pub action: u32,
    /// The mark that the packet carries.
    pub mark: u32,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// Runs the program of a hook once.
pub fn test_run(ebpf: &Ebpf, input: Input<'_>) -> Result<Output> {
    let name = match input.hook {
        Hook::Ingress => "tc_ingress",
        Hook::Egress => "tc_egress",
        Hook::Xdp => bail!("a frame is not an skb"),
    };
    let Some(Program::SchedClassifier(program)) = ebpf.program(name) else {
        bail!("no classifier {name}");
    };
    let mut context: Context32 = [0; 48];
    context[MARK_WORD] = input.mark;
    context[IFINDEX_WORD] = input.ifindex;
    context[GSO_SIZE_WORD] = input.segment_len;
    let mut context_out: Context32 = [0; 48];
    let mut bytes = vec![0; OUT_MAX];
    let mut options = TestRunOptions::new();
    options.data_in = Some(input.bytes);
    options.data_out = Some(&mut bytes);
    options.ctx_in = Some(bytemuck::cast_slice(&context));
    options.ctx_out = Some(bytemuck::cast_slice_mut(&mut context_out));
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    bytes.truncate(result.data_size_out as usize);
    Ok(Output {
        action: result.return_value,
        mark: context_out[MARK_WORD],
        bytes,
    })
}

impl Runner {
    /// Loads the programs and opens their maps.
    pub fn new() -> Result<Self> {
        let ebpf = load()?;
        let tables = BTreeMap::from([
            (4, KernelTables::open::<V4>(&ebpf)?),
            (6, KernelTables::open::<V6>(&ebpf)?),
        ]);
        let told = Told::open(&ebpf)?;
        Ok(Self { ebpf, tables, told })
    }

    /// The maps of a family.
    pub fn tables<F: CaseFamily>(&mut self) -> &mut KernelTables {
        self.tables.get_mut(&F::VERSION).expect("both are open")
    }

    /// The programs.
    pub fn ebpf(&self) -> &Ebpf {
        &self.ebpf
    }

    /// Fills the maps from `tables`, sends `input`, and reads what came of it. The verdict's
    /// interface is not visible from outside: it is taken from `expected`.
    pub fn send<F: CaseFamily>(
        &mut self,
        tables: &HostTables<F>,
        input: Input<'_>,
        expected: Verdict,
    ) -> Result<(Outcome, HostTables<F>)> {
        let kernel = self.tables::<F>();
        kernel.clear()?;
        kernel.fill(tables)?;
        let output = test_run(&self.ebpf, input)?;
        let kernel = self.tables::<F>();
        let mut flows = kernel.flows::<F>();
        let counters = kernel.counters()?;
        flows.written.get_mut().events = self.told.take();
        let outcome = outcome(&output, expected, counters)?;
        Ok((outcome, flows))
    }

    /// Seconds of the programs' clock, as a flow that they create shows it.
    pub fn now(&mut self) -> Result<u32> {
        let case = super::case(
            "the clock",
            &[],
            packets::udp((Role::Pod, CLIENT_PORT), (Role::ClusterIp, PORT)),
        );
        let tables = case.world.tables::<V4>(HZ, 0);
        let bytes = case.bytes::<V4>();
        let (_, flows) = self.send(&tables, input(&case, &bytes), Verdict::Pass)?;
        let written = flows.written.borrow();
        let flow = written.handshakes.values().next();
        Ok(flow.context("no flow was created")?.last_seen_secs)
    }

    /// Runs a case; what went wrong, in words.
    pub fn run<F: CaseFamily>(&mut self, case: &Case, now: u32) -> Result<Option<String>> {
        let _sockets = sockets::<F>(&case.world)?;
        let bytes = case.bytes::<F>();
        if !is_runnable::<F>(&bytes) {
            return Ok(None);
        }
        let mut expected = case.expected::<F>();
        address_to_device(&mut expected);
        let tables = case.world.tables::<F>(HZ, now);
        let (outcome, flows) = self
            .send(&tables, input(case, &bytes), expected.verdict)
            .with_context(|| format!("{} ({})", case.name, F::NAME))?;
        // What the programs remember is what the host's pipeline remembers.
        let (_, on_host) = host::run::<F>(case, HZ, now);
        let parts = [
            outcome.differs(&expected),
            host::flows_differ(&flows, &on_host),
            host::bindings_differ(&flows, &on_host),
            host::counts_differ(&flows, &on_host),
            events::differ(&flows, &on_host),
        ];
        Ok(parts.into_iter().flatten().reduce(|all, part| all + &part))
    }
}

/// False for a packet without a whole IP header, which the kernel does not test-run.
pub fn is_runnable<F: CaseFamily>(bytes: &[u8]) -> bool {
    bytes.len() >= packets::L3 + F::HEADER_LEN
}

/// A delivered packet is addressed to the device that it enters by; the hook does that, behind
/// the pipeline.
pub fn address_to_device(outcome: &mut Outcome) {
    if let Verdict::Deliver(ifindex) = outcome.verdict {
        outcome.bytes[..6].copy_from_slice(&packets::mac_of(ifindex));
    }
}

fn input<'a>(case: &Case, bytes: &'a [u8]) -> Input<'a> {
    Input {
        hook: case.hook,
        ifindex: case.ifindex,
        mark: case.mark,
        segment_len: case.segment_len,
        bytes,
    }
}

fn outcome(
    output: &Output,
    expected: Verdict,
    counters: BTreeMap<Counter, u64>,
) -> Result<Outcome> {
    let is_marked = output.mark & MARK != 0;
    let verdict = match (output.action, is_marked) {
        (OK, false) => Verdict::Pass,
        (SHOT, false) => Verdict::Drop,
        (REDIRECT, true) => match expected {
            Verdict::Pass | Verdict::Drop => Verdict::Return,
            redirected => redirected,
        },
        (action, _) => bail!("action {action} with mark {:#x}", output.mark),
    };
    Ok(Outcome::of_run(verdict, output.bytes.clone(), counters))
}

/// The connected sockets of the world, in the namespace of the calling thread. A TCP one stays
/// where its SYN was sent.
fn sockets<F: CaseFamily>(world: &World) -> Result<Vec<Socket>> {
    let open = |(own, peer, protocol): &(At, At, u8)| {
        let (own, peer) = ((ip::<F>(own.0), own.1), (ip::<F>(peer.0), peer.1));
        let (own, peer) = (SocketAddr::from(own), SocketAddr::from(peer));
        let kind = match *protocol {
            protocol::TCP => Type::STREAM,
            _ => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(own), kind, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&own.into())?;
        match socket.connect(&peer.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    };
    let opened: Result<Vec<Socket>, _> = world.sockets.iter().map(open).collect();
    opened.context("a socket of the world")
}

/// As what a case is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum As {
    Tc,
    Xdp,
}

/// Runs every case in a namespace of its own and returns what went wrong, in words.
pub fn run_all(cases: &[Case]) -> Result<Vec<String>> {
    in_namespace(|runner| runner.complaints(cases.iter(), As::Tc))
}

/// The same with every case that XDP may see, as XDP; `None` where the kernel cannot test-run XDP
/// at an interface.
pub fn run_all_at_xdp(cases: &[Case]) -> Result<Option<Vec<String>>> {
    in_namespace(|runner| {
        if !xdp::attach(&mut runner.ebpf)? {
            return Ok(None);
        }
        let cases = cases.iter().filter(|case| super::xdp::applies(case));
        runner.complaints(cases, As::Xdp).map(Some)
    })
}

fn in_namespace<T: Send>(run: impl FnOnce(&mut Runner) -> Result<T> + Send) -> Result<T> {
    let sandbox = Sandbox::new()?;
    let netns = namespace(&sandbox)?;
    netns.enter(|| run(&mut Runner::new()?))?
}

impl Runner {
    fn complaints<'a>(
        &mut self,
        cases: impl Iterator<Item = &'a Case>,
        how: As,
    ) -> Result<Vec<String>> {
        let now = self.now()?;
        let mut complaints = Vec::new();
        for case in cases {
            complaints.extend(self.complaint::<V4>(case, now, how)?);
            complaints.extend(self.complaint::<V6>(case, now, how)?);
        }
        Ok(complaints)
    }

    fn complaint<F: CaseFamily>(
        &mut self,
        case: &Case,
        now: u32,
        how: As,
    ) -> Result<Option<String>> {
        if !case.holds_for::<F>() {
            return Ok(None);
        }
        let text = match how {
            As::Tc => self.run::<F>(case, now)?,
            As::Xdp => self.run_at_xdp::<F>(case, now)?,
        };
        Ok(text.map(|text| format!("{} ({}): {text}", case.name, F::NAME)))
    }
}
