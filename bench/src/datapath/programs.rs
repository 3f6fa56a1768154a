//! The programs in the kernel, and one test run.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::xdp::{Xdp, XdpMode};
use aya::programs::{Program as Loaded, ProgramFd, TestRun as _, TestRunOptions, TestRunResult};
use aya::{Ebpf, EbpfLoader};
use bench_ebpf::{FAILED, Plan};
use proxy_ebpf::Hook;
use proxy_userspace::datapath::{environment, load, sys};
use tests::cases::kernel;
use tests::cases::raw_map::{self, KernelTables};
use tests::cases::world::{CaseFamily, POD, Role, UPLINK};

use super::tables;
use super::what::What;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Program {
    /// tc: pods dial a ClusterIP, the stack routes.
    Tc,
    /// XDP: clients from outside dial a load balancer's address, XDP sends.
    Xdp,
}

impl Program {
    /// Its name in figures and of its programs.
    pub fn name(self) -> &'static str {
        match self {
            Program::Tc => "tc",
            Program::Xdp => "xdp",
        }
    }

    /// Who sends.
    pub fn client(self) -> Role {
        match self {
            Program::Tc => Role::Pod,
            Program::Xdp => Role::Client,
        }
    }

    /// What is dialed.
    pub fn dialed(self) -> Role {
        match self {
            Program::Tc => Role::ClusterIp,
            Program::Xdp => Role::Vip,
        }
    }
}

/// What a test run runs behind the wrapper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nothing.
    Null,
    /// A yardstick, or our own program.
    Of(What),
}

/// Entries of the maps that do not matter.
const ENTRIES_MIN: u32 = 4096;
/// Word of `struct __sk_buff` that has the interface.
const IFINDEX_WORD: usize = 10;
/// Words of `struct xdp_md` that a test run sets: where the packet ends, and the interface.
const XDP_END_WORD: usize = 1;
const XDP_IFINDEX_WORD: usize = 3;

/// Both objects, with maps for one family.
pub struct Programs {
    program: Program,
    ours: Ebpf,
    bench: Ebpf,
    targets: ProgramArray<MapData>,
    /// Our maps.
    pub tables: KernelTables,
    /// Kernel ticks per second.
    pub hz: u32,
}

impl Programs {
    /// Loads everything; the flow tables have room for `flows` connections of family `F`. `hz` is
    /// asked for where it is not known.
    pub fn load<F: CaseFamily>(program: Program, flows: u32, hz: Option<u32>) -> Result<Self> {
        // An LRU table evicts before it is full.
        let established = (flows * 5 / 2).max(ENTRIES_MIN);
        let new = (flows * 2).max(ENTRIES_MIN);
        let mut loader = EbpfLoader::new();
        let mut names = Vec::new();
        for family in ["4", "6"] {
            let is_used = family == tables::suffix::<F>();
            for (name, entries) in [
                ("FLOWS", established),
                ("HANDSHAKES", new),
                ("YARDSTICKS", established),
                ("NEW_YARDSTICKS", new),
                ("AFFINITY", ENTRIES_MIN),
                ("FRAGMENTS", ENTRIES_MIN),
                ("SOCKETS", ENTRIES_MIN),
            ] {
                let entries = if is_used { entries } else { ENTRIES_MIN };
                names.push((format!("{name}{family}"), entries));
            }
        }
        for (name, entries) in &names {
            loader.map_max_entries(name, *entries);
        }
        let mut ours = loader.load(&kernel::object()?)?;
        let mut bench = loader.load(&object()?)?;
        load(&mut ours, &[load::JIFFIES])?;
        let family = tables::suffix::<F>();
        let kind = program.name();
        let names = ["wrapper", "null", "yardstick", "yardstick_new"];
        let names = names.map(|name| match name {
            "wrapper" | "null" => format!("{kind}_{name}"),
            _ => format!("{kind}_{name}{family}"),
        });
        load(&mut bench, &names.each_ref().map(String::as_str))?;
        match program {
            Program::Tc => load(&mut ours, &["tc_ingress", "tc_egress"])?,
            Program::Xdp => {
                load(&mut ours, &[load::XDP_PROGRAM])?;
                // A test run borrows a receive queue, which is there while a program is attached.
                let program = ours.program_mut(load::XDP_PROGRAM).context("XDP")?;
                <&mut Xdp>::try_from(program)?.attach(&format!("dev{UPLINK}"), XdpMode::Driver)?;
            }
        }
        let targets = format!("{}_TARGETS", kind.to_uppercase());
        let targets = bench.take_map(&targets).context(targets)?;
        let hz = environment::hz(hz, fd(&ours, load::JIFFIES)?.as_fd())?;
        Ok(Self {
            program,
            targets: targets.try_into()?,
            tables: KernelTables::open::<F>(&ours)?,
            hz,
            ours,
            bench,
        })
    }

    /// A map of either object.
    pub fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let map = self.ours.map(name).or_else(|| self.bench.map(name));
        let map: &Map = map.with_context(|| format!("no map {name}"))?;
        let data = raw_map::data(map).with_context(|| format!("{name} is {map:?}"))?;
        Ok(data.fd().as_fd())
    }

    /// Seconds of the programs' clock at this moment.
    pub fn now(&self) -> Result<u32> {
        let jiffies = fd(&self.ours, load::JIFFIES)?;
        Ok(environment::now_secs(jiffies.as_fd(), self.hz)?)
    }

    /// Tells the wrapper what to do.
    pub fn set_plan(&self, plan: &Plan) -> Result<()> {
        // The packets of another test run begin elsewhere.
        let key = 0_u32.to_ne_bytes();
        sys::map_update(self.map("STARTS")?, &key, &0_u64.to_ne_bytes()).context("STARTS")?;
        sys::map_update(self.map("PLANS")?, &key, bytemuck::bytes_of(plan)).context("PLANS")
    }

    /// Runs `target` on `repeat` packets, and returns what one took, in nanoseconds, with the
    /// wrapper.
    pub fn run<F: CaseFamily>(
        &mut self,
        target: Target,
        packet: &[u8],
        repeat: u32,
    ) -> Result<f64> {
        let family = tables::suffix::<F>();
        let kind = self.program.name();
        let (ebpf, name) = match target {
            Target::Null => (&self.bench, format!("{kind}_null")),
            Target::Of(what @ (What::Yardstick | What::YardstickNew)) => {
                (&self.bench, format!("{kind}_{}{family}", what.name()))
            }
            Target::Of(what) => match what.hook(self.program) {
                Hook::Ingress => (&self.ours, "tc_ingress".to_owned()),
                Hook::Egress => (&self.ours, "tc_egress".to_owned()),
                Hook::Xdp => (&self.ours, load::XDP_PROGRAM.to_owned()),
            },
        };
        let fd = fd(ebpf, &name)?;
        self.targets.set(0, fd, 0).with_context(|| name.clone())?;
        let result = self.run_wrapper(packet, repeat)?;
        ensure!(
            result.return_value != FAILED,
            "the wrapper failed for {name}"
        );
        Ok(result.duration.as_nanos() as f64)
    }

    fn run_wrapper(&self, packet: &[u8], repeat: u32) -> Result<TestRunResult> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.repeat = repeat;
        let mut skb = [0_u32; 48];
        skb[IFINDEX_WORD] = POD;
        let mut frame = [0_u32; 6];
        frame[XDP_END_WORD] = packet.len() as u32;
        frame[XDP_IFINDEX_WORD] = UPLINK;
        let name = format!("{}_wrapper", self.program.name());
        let result = match self.bench.program(&name) {
            Some(Loaded::SchedClassifier(wrapper)) => {
                options.ctx_in = Some(bytemuck::cast_slice(&skb));
                wrapper.test_run(options)
            }
            Some(Loaded::Xdp(wrapper)) => {
                options.ctx_in = Some(bytemuck::cast_slice(&frame));
                wrapper.test_run(options)
            }
            _ => bail!("no program {name}"),
        };
        result.context("BPF_PROG_TEST_RUN")
    }
}

/// The object that `build-ebpf` leaves beside the agent's.
fn object() -> Result<Vec<u8>> {
    let path = std::env::var("SHUNT_EBPF_OBJECT").map_or_else(
        |_| format!("{}/../target/bpf/bench-ebpf.o", env!("CARGO_MANIFEST_DIR")),
        |path| path.replace("shunt-ebpf.o", "bench-ebpf.o"),
    );
    std::fs::read(&path).with_context(|| format!("{path}: run cargo xtask build-ebpf"))
}

fn load(ebpf: &mut Ebpf, names: &[&str]) -> Result<()> {
    for name in names {
        let loaded = match ebpf.program_mut(name) {
            Some(Loaded::SchedClassifier(program)) => program.load(),
            Some(Loaded::Xdp(program)) => program.load(),
            _ => bail!("no program {name}"),
        };
        loaded.with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

fn fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a ProgramFd> {
    match ebpf.program(name) {
        Some(Loaded::SchedClassifier(program)) => Ok(program.fd()?),
        Some(Loaded::Xdp(program)) => Ok(program.fd()?),
        _ => bail!("no program {name}"),
    }
}
