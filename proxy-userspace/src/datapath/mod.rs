//! The kernel's side of the agent: the maps, the programs and where they are attached.
//!
//! Everything is pinned and outlives the agent. A start adopts what is pinned, swaps the programs
//! in place and lets go of what is not wanted; only [`cleanup`] takes everything away.

pub mod abi;
mod adopt;
pub mod attach;
pub mod audit;
pub mod bpf_log;
pub mod catalog;
pub mod cgroup;
mod clsact;
pub mod conntrack_sysctls;
mod containers;
pub mod elements;
pub mod environment;
pub mod event_ring;
mod exchange;
pub mod features;
pub mod fill;
mod glob;
pub mod interfaces;
pub mod left_alone;
pub mod load;
pub mod maps;
pub mod mmap;
pub mod netlink;
pub mod next_hops;
pub mod pin;
pub mod running;
pub mod runs;
pub mod serve;
pub mod snat_use;
pub mod strangers;
pub mod sys;
mod transition;
pub mod udp_sockets;
pub mod writes;
pub mod xdp;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::attach::{AttachError, TcMode};
use self::audit::PinnedMaps;
use self::bpf_log::BpfLog;
use self::catalog::MapSizes;
use self::cgroup::{Cgroup, CgroupError};
use self::features::{FeatureError, Features};
use self::interfaces::Plan;
use self::load::{EMBEDDED_OBJECT, LoadError, Patch, Programs};
use self::maps::KernelMaps;
use self::pin::{PinError, PinKind, PinLock, Pins};
use self::xdp::XdpError;
use crate::maps::Maps as _;

/// Why the datapath could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// This machine cannot.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// TCX was demanded and is not there.
    #[error("this kernel has no TCX (6.6): use --tc auto or --tc clsact")]
    NoTcx,
    /// Pins.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Socket programs.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Interfaces.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// XDP.
    #[error(transparent)]
    Xdp(#[from] XdpError),
}

/// Which means to attach programs to interfaces is wanted.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TcChoice {
    /// TCX where the kernel has it.
    #[default]
    Auto,
    /// TCX or nothing.
    Tcx,
    /// clsact filters.
    Clsact,
}

/// What the datapath needs to know from the options.
#[derive(Clone, Debug)]
pub struct DatapathOptions {
    /// A folder on a bpffs.
    pub bpffs: PathBuf,
    /// The cgroup whose sockets are served; `None`: the socket programs are off.
    pub cgroup: Option<PathBuf>,
    /// Means for interfaces.
    pub tc: TcChoice,
    /// Sizes of maps that are made.
    pub sizes: MapSizes,
    /// The BPF object.
    pub object: &'static [u8],
    /// What programs log.
    pub bpf_log: BpfLog,
    /// For tests: how long to wait after each program that is swapped.
    pub pause_after_swaps: Duration,
}

impl Default for DatapathOptions {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from("/sys/fs/bpf"),
            cgroup: Some(PathBuf::from("/sys/fs/cgroup")),
            tc: TcChoice::Auto,
            sizes: MapSizes::default(),
            object: EMBEDDED_OBJECT,
            bpf_log: BpfLog::Off,
            pause_after_swaps: Duration::ZERO,
        }
    }
}

/// The loaded datapath. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    _lock: PinLock,
    pinned: PinnedMaps,
    programs: Programs,
    features: Features,
    mode: TcMode,
    cgroup: Option<Cgroup>,
    interfaces: BTreeMap<u32, Plan>,
    /// Those that could not be served at the last try: name, and why.
    unserved: BTreeMap<u32, (String, String)>,
    /// Why the XDP program could not be attached.
    xdp_refused: BTreeMap<u32, String>,
}

impl Datapath {
    /// Checks everything that can be checked, then takes the lock, adopts or makes the maps and
    /// loads the programs. Nothing runs differently until something is attached.
    pub fn load(options: &DatapathOptions) -> Result<(Self, KernelMaps), DatapathError> {
        let features = Features::probe()?;
        let mode = match options.tc {
            TcChoice::Tcx if !features.tcx => return Err(DatapathError::NoTcx),
            TcChoice::Clsact => TcMode::Clsact,
            _ if features.tcx => TcMode::Tcx,
            _ => TcMode::Clsact,
        };
        let cgroup = options.cgroup.as_deref().map(Cgroup::open).transpose()?;
        if options.object.is_empty() {
            return Err(LoadError::NoObject.into());
        }
        let pins = Pins::create(&options.bpffs)?;
        let lock = pins.lock()?;
        let patch = Patch {
            set_retval: features.set_retval,
            bpf_log: options.bpf_log,
        };
        let mut programs = load::load(options.object, &pins, &options.sizes, patch)?;
        programs.pause_after_swaps = options.pause_after_swaps;
        let maps = KernelMaps::open(&pins)?;
        let pinned = PinnedMaps::open(&pins)?;
        let datapath = Self {
            pins,
            _lock: lock,
            pinned,
            programs,
            features,
            mode,
            cgroup,
            interfaces: BTreeMap::new(),
            unserved: BTreeMap::new(),
            xdp_refused: BTreeMap::new(),
        };
        Ok((datapath, maps))
    }

    /// What the kernel can do.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// How interfaces are served.
    pub fn mode(&self) -> TcMode {
        self.mode
    }

    /// The pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The loaded programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Attaches or swaps the socket programs, or takes them away where they are off.
    pub fn attach_sockets(&self) -> Result<(), DatapathError> {
        match &self.cgroup {
            Some(cgroup) => cgroup::attach(&self.pins, &self.programs, cgroup)?,
            None => cgroup::detach(&self.pins)?,
        }
        Ok(())
    }

    /// Ends an exchange of maps: to be called when every program was swapped. Transitional programs
    /// give way to those that know only the new tables, once these hold what the old ones do.
    pub fn finish_exchange(&mut self) -> Result<(), DatapathError> {
        if self.programs.is_transitional() {
            sys::await_programs();
            exchange::copy_flows(&self.pins)?;
            self.programs.settle(&self.pins)?;
            let interfaces = self.interfaces.clone();
            for (ifindex, plan) in interfaces.iter().filter(|(_, plan)| plan.is_attached()) {
                self.attach_xdp(*ifindex, plan);
                if let Err(error) = self.attach(*ifindex, plan) {
                    let error = crate::error_chain(&error);
                    tracing::error!(interface = plan.name, error, "program not swapped");
                    // The next reading of the interfaces tries again.
                    self.interfaces.remove(ifindex);
                }
            }
            self.attach_sockets()?;
        }
        Ok(exchange::finish(&self.pins)?)
    }
}

/// The name of an interface of this network namespace; `None` where there is none.
pub fn interface_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?;
    // Where there is none, nix returns the empty buffer that the C library left alone.
    name.into_string().ok().filter(|name| !name.is_empty())
}

/// Takes everything of ours below `bpffs` away: programs off their hooks first, then all pins.
/// Where nothing is, nothing happens. Works with the agent gone, and refuses while one runs.
pub fn cleanup(bpffs: &Path) -> Result<(), DatapathError> {
    let pins = Pins::at(bpffs);
    if !pins.exist() {
        return Ok(());
    }
    let _lock = pins.lock()?;
    let config = maps::KernelMaps::open(&pins)
        .ok()
        .and_then(|maps| maps.config());
    for ifindex in attach::attached(&pins) {
        attach::detach(&pins, ifindex)?;
    }
    for name in pins.names(PinKind::Links) {
        pins.remove_link(&name)?;
    }
    for kind in PinKind::ALL {
        for name in pins.names(kind) {
            pins.remove(kind, &name)?;
        }
    }
    pins.remove_folders()?;
    if let Some(config) = config
        && let Err(error) = environment::release(&config.snat_ports)
    {
        tracing::warn!(%error, "SNAT ports are still in ip_local_reserved_ports");
    }
    Ok(())
}
