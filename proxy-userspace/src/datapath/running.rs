//! Where our programs run, by the pins: with an agent or without.

use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};

use super::attach;
use super::clsact::{self, Direction};
use super::load::SOCKET_PROGRAMS;
use super::pin::{PinKind, Pins};
use super::{interface_name, sys};

/// One of our programs at its hook.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningProgram {
    /// Index of the interface; absent for a socket program.
    pub ifindex: Option<u32>,
    /// Its name; absent where it is gone.
    pub interface: Option<String>,
    /// `ingress`, `egress`, `xdp` or a socket hook.
    pub hook: String,
    /// `tcx`, `clsact`, `native`, `generic` or `cgroup`.
    pub mode: String,
    /// Name of the program; absent where the hook is empty, because somebody has detached it.
    pub program: Option<String>,
    /// The kernel's id of the program.
    pub program_id: Option<u32>,
    /// The kernel's id of the link; a filter has none.
    pub link_id: Option<u32>,
    /// The kernel's id of the cgroup.
    pub cgroup_id: Option<u64>,
}

impl RunningProgram {
    /// True if somebody has detached it. An interface that is gone takes its programs with it.
    pub fn is_detached(&self) -> bool {
        let is_there = self.ifindex.is_none() || self.interface.is_some();
        self.program_id.is_none() && self.program.is_none() && is_there
    }

    /// Interface and hook.
    pub fn place(&self) -> String {
        match (&self.interface, self.ifindex) {
            (Some(interface), _) => format!("{interface} {}", self.hook),
            (None, Some(ifindex)) => format!("interface {ifindex} {}", self.hook),
            (None, None) => self.hook.clone(),
        }
    }
}

/// Every place where the pins say that a program of ours runs.
pub fn running(pins: &Pins) -> Vec<RunningProgram> {
    let links = pins.names(PinKind::Links).into_iter();
    let mut all: Vec<_> = links.filter_map(|name| link(pins, &name)).collect();
    for mark in pins.names(PinKind::Clsact) {
        // Beside the mark of an interface there may be one of its qdisc.
        if let Ok(ifindex) = mark.parse() {
            all.extend([Direction::Ingress, Direction::Egress].map(|at| filter(ifindex, at)));
        }
    }
    all.sort();
    all
}

/// `None` for what is no link of this version.
fn link(pins: &Pins, pin: &str) -> Option<RunningProgram> {
    let (ifindex, hook, mode) = place(pin)?;
    let link = pins.open(PinKind::Links, pin).ok().flatten();
    let info = link.and_then(|link| sys::link_info(link.as_fd()).ok());
    let target = info.map(|info| info.target).unwrap_or_default();
    // What somebody has detached has no target, and a link may outlive its interface.
    let is_there = match ifindex {
        Some(ifindex) => target as u32 == ifindex,
        None => target != 0,
    };
    let program_id = info.map(|info| info.prog_id).filter(|_| is_there);
    Some(RunningProgram {
        ifindex,
        interface: ifindex.and_then(interface_name),
        hook: hook.to_owned(),
        mode: mode.to_owned(),
        program: program_id.and_then(|id| sys::program_name(id).ok()),
        program_id,
        link_id: info.map(|info| info.id),
        cgroup_id: ifindex.is_none().then_some(target),
    })
}

/// Interface, hook and mode by the name of a link's pin.
fn place(pin: &str) -> Option<(Option<u32>, &str, &str)> {
    if SOCKET_PROGRAMS.contains(&pin) {
        return Some((None, pin, "cgroup"));
    }
    let (ifindex, rest) = pin.split_once('_')?;
    let ifindex = Some(ifindex.parse().ok()?);
    match rest.split_once('_') {
        Some(("xdp", mode)) => Some((ifindex, "xdp", mode)),
        None if matches!(rest, "ingress" | "egress") => Some((ifindex, rest, "tcx")),
        _ => None,
    }
}

fn filter(ifindex: u32, direction: Direction) -> RunningProgram {
    let filters = clsact::filters(ifindex, direction).unwrap_or_default();
    let ours = filters.into_iter().find(attach::is_ours);
    let hook = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    RunningProgram {
        ifindex: Some(ifindex),
        interface: interface_name(ifindex),
        hook: hook.to_owned(),
        mode: "clsact".to_owned(),
        program_id: ours.as_ref().and_then(|filter| filter.program),
        program: ours.map(|filter| filter.name),
        link_id: None,
        cgroup_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn pins_of_links_tell_their_hooks() {
        assert_eq!(place("12_ingress"), Some((Some(12), "ingress", "tcx")));
        assert_eq!(place("3_xdp_native"), Some((Some(3), "xdp", "native")));
        assert_eq!(place("connect4"), Some((None, "connect4", "cgroup")));
        // On its way to the name without the end.
        assert_eq!(place("12_ingress_next"), None);
        assert_eq!(place("strange"), None);
    }
}
