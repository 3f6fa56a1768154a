//! Programs of others at the hooks that ours use.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;

use super::attach;
use super::cgroup::{self, Cgroup};
use super::clsact::{self, Direction};
use super::interfaces::Link;
use super::load::SOCKET_PROGRAMS;
use super::pin::{PinKind, Pins};
use super::sys::{self, AttachType, Hook};

/// A program of somebody else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stranger {
    /// Interface and hook, or the socket hook.
    pub place: String,
    /// Its name and id.
    pub program: String,
    /// Where it runs.
    pub order: Order,
}

/// Where a program of somebody else runs, seen from ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Order {
    /// Before ours.
    Before,
    /// After ours.
    After,
    /// None of ours is there.
    Alone,
}

/// Ids of all programs that are pinned, or run by a pinned link.
pub fn our_programs(pins: &Pins) -> BTreeSet<u32> {
    let open = |kind: PinKind, name: String| pins.open(kind, &name).ok().flatten();
    let programs = pins.names(PinKind::Programs).into_iter();
    let programs = programs.filter_map(|name| open(PinKind::Programs, name));
    let ids = programs.filter_map(|program| sys::object_id(program.as_fd()).ok());
    let links = pins.names(PinKind::Links).into_iter();
    let links = links.filter_map(|name| open(PinKind::Links, name));
    let run = links.filter_map(|link| Some(sys::link_info(link.as_fd()).ok()?.prog_id));
    ids.chain(run).collect()
}

/// Programs of others on an interface: XDP, TCX and filters of clsact.
pub fn on_interface(ours: &BTreeSet<u32>, ifindex: u32, link: &Link) -> io::Result<Vec<Stranger>> {
    let mut found = Vec::new();
    let xdp: Vec<u32> = link.xdp_program.into_iter().collect();
    found.extend(among(ours, &xdp, &format!("{} xdp", link.name)));
    let sides = [
        (AttachType::TcxIngress, Direction::Ingress, "ingress"),
        (AttachType::TcxEgress, Direction::Egress, "egress"),
    ];
    for (attach_type, direction, word) in sides {
        let place = format!("{} {word}", link.name);
        match sys::programs_at(Hook::Interface(ifindex), attach_type) {
            Ok(ids) => found.extend(among(ours, &ids, &place)),
            // The kernel has no TCX.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
        let filters = clsact::filters(ifindex, direction)?;
        let first = filters.iter().position(attach::is_ours);
        for (at, filter) in filters.iter().enumerate() {
            if Some(at) == first || filter.program.is_some_and(|id| ours.contains(&id)) {
                continue;
            }
            let (kind, priority) = (&filter.kind, filter.priority);
            found.push(Stranger {
                place: place.clone(),
                program: format!("the {kind} filter {} of priority {priority}", filter.name),
                order: order(at, first),
            });
        }
    }
    Ok(found)
}

/// Programs of others that run for the sockets of a cgroup.
pub fn on_cgroup(ours: &BTreeSet<u32>, cgroup: &Cgroup) -> io::Result<Vec<Stranger>> {
    let mut found = Vec::new();
    for name in SOCKET_PROGRAMS {
        let hook = Hook::Cgroup(cgroup.folder());
        let ids = sys::programs_at(hook, cgroup::attach_type(name))?;
        found.extend(among(ours, &ids, name));
    }
    Ok(found)
}

/// Those of a list of programs, in the order in which they run, that are not ours.
fn among(ours: &BTreeSet<u32>, ids: &[u32], place: &str) -> Vec<Stranger> {
    let first = ids.iter().position(|id| ours.contains(id));
    let others = ids.iter().enumerate().filter(|(_, id)| !ours.contains(id));
    others
        .map(|(at, &id)| Stranger {
            place: place.to_owned(),
            program: match sys::program_name(id) {
                Ok(name) if !name.is_empty() => format!("{name} (program {id})"),
                _ => format!("program {id}"),
            },
            order: order(at, first),
        })
        .collect()
}

fn order(at: usize, ours: Option<usize>) -> Order {
    match ours {
        None => Order::Alone,
        Some(ours) if at < ours => Order::Before,
        Some(_) => Order::After,
    }
}
