//! The programs in the kernel, and one test run.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{Program as Loaded, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bench_ebpf::{FAILED, Plan};
use proxy_userspace::datapath::{environment, load, sys};
use tests::cases::kernel;
use tests::cases::raw_map::{self, KernelTables};
use tests::cases::world::{CaseFamily, POD};

use super::tables;
use super::what::What;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// tc.
    Tc,
}

impl Program {
    /// Its name in figures and of its programs.
    pub fn name(self) -> &'static str {
        match self {
            Program::Tc => "tc",
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

/// Both objects, with maps for one family.
pub struct Programs {
    ours: Ebpf,
    bench: Ebpf,
    targets: ProgramArray<MapData>,
    /// Our maps.
    pub tables: KernelTables,
    /// Kernel ticks per second.
    pub hz: u32,
}

impl Programs {
    /// Loads everything; the flow tables have room for `flows` connections of family `F`.
    pub fn load<F: CaseFamily>(flows: u32) -> Result<Self> {
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
        load_classifiers(&mut ours, &["tc_ingress", "tc_egress", load::JIFFIES])?;
        let family = tables::suffix::<F>();
        let yardsticks = [
            format!("tc_yardstick{family}"),
            format!("tc_yardstick_new{family}"),
        ];
        let names = ["tc_wrapper", "tc_null", &yardsticks[0], &yardsticks[1]];
        load_classifiers(&mut bench, &names)?;
        let targets = bench.take_map("TC_TARGETS").context("TC_TARGETS")?;
        let hz = environment::measure_hz(program(&ours, load::JIFFIES)?.fd()?.as_fd())?;
        Ok(Self {
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

    /// Tells the wrapper what to do.
    pub fn set_plan(&self, plan: &Plan) -> Result<()> {
        let map = self.map("PLANS")?;
        sys::map_update(map, &0_u32.to_ne_bytes(), bytemuck::bytes_of(plan)).context("PLANS")
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
        let (ebpf, name) = match target {
            Target::Null => (&self.bench, "tc_null".to_owned()),
            Target::Of(what @ (What::Yardstick | What::YardstickNew)) => {
                (&self.bench, format!("tc_{}{family}", what.name()))
            }
            Target::Of(what) => match what.hook() {
                proxy_ebpf::Hook::Ingress => (&self.ours, "tc_ingress".to_owned()),
                proxy_ebpf::Hook::Egress => (&self.ours, "tc_egress".to_owned()),
                proxy_ebpf::Hook::Xdp => (&self.ours, "xdp_ingress".to_owned()),
            },
        };
        let fd: &ProgramFd = program(ebpf, &name)?.fd()?;
        self.targets.set(0, fd, 0).with_context(|| name.clone())?;
        let mut context = [0_u32; 48];
        context[IFINDEX_WORD] = POD;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(bytemuck::cast_slice(&context));
        options.repeat = repeat;
        let wrapper = program(&self.bench, "tc_wrapper")?;
        let result = wrapper.test_run(options).context("BPF_PROG_TEST_RUN")?;
        ensure!(
            result.return_value != FAILED,
            "the wrapper failed for {name}"
        );
        Ok(result.duration.as_nanos() as f64)
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

fn load_classifiers(ebpf: &mut Ebpf, names: &[&str]) -> Result<()> {
    for name in names {
        let program = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        <&mut SchedClassifier>::try_from(program)?
            .load()
            .with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    match ebpf.program(name) {
        Some(Loaded::SchedClassifier(program)) => Ok(program),
        _ => bail!("no classifier {name}"),
    }
}
