//! Programs at interfaces: TCX links, or filters of a clsact qdisc where the kernel has no TCX.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{Link as _, ProgramError, SchedClassifier, TcAttachType};

use super::clsact::{self, Filter};
use super::load::Programs;
use super::pin::{PinError, PinKind, Pins};
use super::sys::{self, AttachType, LinkTarget, Place};

/// Our filters come before those of others, as our TCX programs do.
const FILTER_PRIORITY: u16 = 1;
/// Tells our filters from others of the same priority.
const FILTER_HANDLE: TcHandle = TcHandle::new(0x5348, 0x544e);

/// Why a program could not be attached to or detached from an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// TCX.
    #[error("attaching {program} to {interface}")]
    Link {
        /// Which program.
        program: &'static str,
        /// Interface name.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// clsact.
    #[error("attaching {program} to {interface} as a clsact filter")]
    Filter {
        /// Which program.
        program: &'static str,
        /// Interface name.
        interface: String,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// By which means programs are attached to interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcMode {
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl fmt::Display for TcMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Whether packets of an interface begin with an Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// They do.
    Ethernet,
    /// They begin with the IP header (P-9).
    Ip,
}

/// An interface as attaching needs it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: &'a str,
    /// How its packets begin.
    pub layer: Layer,
}

/// A direction, as the name of a link ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn program(self, layer: Layer) -> &'static str {
        match (self, layer) {
            (Self::Ingress, Layer::Ethernet) => "tc_ingress",
            (Self::Egress, Layer::Ethernet) => "tc_egress",
            (Self::Ingress, Layer::Ip) => "tc_ingress_l3",
            (Self::Egress, Layer::Ip) => "tc_egress_l3",
        }
    }

    fn pin(self, ifindex: u32) -> String {
        match self {
            Self::Ingress => format!("{ifindex}_ingress"),
            Self::Egress => format!("{ifindex}_egress"),
        }
    }

    /// On the way in we come first, on the way out last: programs of others see the packet
    /// between client and backend in both directions (P-1).
    fn tcx(self) -> (AttachType, Place) {
        match self {
            Self::Ingress => (AttachType::TcxIngress, Place::First),
            Self::Egress => (AttachType::TcxEgress, Place::Last),
        }
    }

    fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// Attaches our programs to an interface, or swaps those that are there, without a gap.
pub fn attach(
    pins: &Pins,
    programs: &Programs,
    mode: TcMode,
    target: Target<'_>,
) -> Result<(), AttachError> {
    for direction in Direction::BOTH {
        match mode {
            TcMode::Tcx => attach_link(pins, programs, direction, target)?,
            TcMode::Clsact => attach_filter(pins, programs, direction, target)?,
        }
    }
    // What the other means left behind, after a restart with another mode.
    match mode {
        TcMode::Tcx => detach_filters(pins, target.ifindex),
        TcMode::Clsact => remove_links(pins, target.ifindex),
    }
}

/// True if an interface carries our programs as [`attach`] left it.
pub fn is_attached(pins: &Pins, programs: &Programs, mode: TcMode, target: Target<'_>) -> bool {
    Direction::BOTH.into_iter().all(|direction| match mode {
        TcMode::Tcx => {
            let program = programs.get(direction.program(target.layer));
            let link = pins.open(PinKind::Links, &direction.pin(target.ifindex));
            let (Ok(Some(link)), Ok(id)) = (link, sys::object_id(program)) else {
                return false;
            };
            // A link that somebody detached has no interface.
            sys::link_info(link.as_fd())
                .is_ok_and(|info| info.prog_id == id && info.target as u32 == target.ifindex)
        }
        TcMode::Clsact => {
            let at = match direction {
                Direction::Ingress => clsact::Direction::Ingress,
                Direction::Egress => clsact::Direction::Egress,
            };
            let filters = clsact::filters(target.ifindex, at);
            filters.is_ok_and(|filters| filters.iter().any(is_ours))
        }
    })
}

/// True for a filter that [`attach`] has put there.
pub(super) fn is_ours(filter: &Filter) -> bool {
    (filter.priority, filter.handle) == (FILTER_PRIORITY, u32::from(FILTER_HANDLE))
}

/// Detaches our programs from an interface, which may be gone.
pub fn detach(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    remove_links(pins, ifindex)?;
    detach_filters(pins, ifindex)
}

/// Indexes of all interfaces that carry our programs according to the pins.
pub fn attached(pins: &Pins) -> Vec<u32> {
    let links = pins.names(PinKind::Links).into_iter();
    let marks = pins.names(PinKind::Clsact).into_iter();
    let numbers = links.chain(marks).filter_map(|name| {
        let number = name.split('_').next()?;
        number.parse().ok()
    });
    let unique: std::collections::BTreeSet<u32> = numbers.collect();
    unique.into_iter().collect()
}

fn attach_link(
    pins: &Pins,
    programs: &Programs,
    direction: Direction,
    target: Target<'_>,
) -> Result<(), AttachError> {
    let name = direction.program(target.layer);
    let program = programs.get(name);
    let pin = direction.pin(target.ifindex);
    if let Some(link) = pins.open(PinKind::Links, &pin)? {
        if sys::link_update(link.as_fd(), program).is_ok() {
            programs.swapped();
            return Ok(());
        }
        // Its interface is gone, and the number belongs to another one.
        pins.remove_link(&pin)?;
    }
    let (attach_type, place) = direction.tcx();
    let link = sys::link_create(
        program,
        LinkTarget::Interface(target.ifindex, place),
        attach_type,
    )
    .map_err(|source| AttachError::Link {
        program: name,
        interface: target.name.to_owned(),
        source,
    })?;
    Ok(pins.replace(PinKind::Links, &pin, link.as_fd())?)
}

fn remove_links(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    for direction in Direction::BOTH {
        pins.remove_link(&direction.pin(ifindex))?;
    }
    Ok(())
}

fn attach_filter(
    pins: &Pins,
    programs: &Programs,
    direction: Direction,
    target: Target<'_>,
) -> Result<(), AttachError> {
    let name = direction.program(target.layer);
    let failed = |source: ProgramError| AttachError::Filter {
        program: name,
        interface: target.name.to_owned(),
        source: Box::new(source),
    };
    match tc::qdisc_add_clsact(target.name) {
        Ok(()) => {
            let mark = qdisc_mark(target.ifindex);
            pins.replace(PinKind::Clsact, &mark, programs.get(name))?;
        }
        Err(error) if os_error(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(error.into())),
    }
    pins.replace(
        PinKind::Clsact,
        &target.ifindex.to_string(),
        programs.get(name),
    )?;
    let pinned = pins.path(PinKind::Programs, name);
    let mut program = SchedClassifier::from_pin(pinned).map_err(failed)?;
    let link = put_filter(&mut program, direction, target).map_err(failed)?;
    // A link that is dropped detaches; the filter is to outlive this process.
    std::mem::forget(link);
    programs.swapped();
    Ok(())
}

/// Adds our filter, or replaces it in place: same priority, same handle.
fn put_filter(
    program: &mut SchedClassifier,
    direction: Direction,
    target: Target<'_>,
) -> Result<SchedClassifierLink, ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: FILTER_PRIORITY,
        handle: FILTER_HANDLE,
        classid: None,
    });
    let added = program.attach_with_options(target.name, direction.clsact(), options);
    let id = match added {
        Err(ProgramError::TcError(error)) if os_error(&error) == Some(libc::EEXIST) => {
            program.attach_to_link(our_filter(direction, target.name)?)?
        }
        other => other?,
    };
    program.take_link(id)
}

fn our_filter(direction: Direction, interface: &str) -> Result<SchedClassifierLink, ProgramError> {
    let attach_type = direction.clsact();
    let (priority, handle) = (FILTER_PRIORITY, FILTER_HANDLE);
    SchedClassifierLink::attached(interface, attach_type, priority, handle, None)
        .map_err(|error| TcError::IoError(error).into())
}

/// Says that the qdisc of an interface was made for our filters.
fn qdisc_mark(ifindex: u32) -> String {
    format!("{ifindex}_qdisc")
}

/// Removes our filters from an interface that carries our mark, and the qdisc if it was made for
/// them and nobody else uses it.
fn detach_filters(pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    let (mark, marks) = (ifindex.to_string(), pins.names(PinKind::Clsact));
    if !marks.contains(&mark) {
        return Ok(());
    }
    if let Some(name) = super::interface_name(ifindex) {
        for direction in Direction::BOTH {
            let Ok(filter) = our_filter(direction, &name) else {
                continue;
            };
            if let Err(error) = filter.detach() {
                tracing::debug!(interface = name, %error, "filter not removed: none there");
            }
        }
        if marks.contains(&qdisc_mark(ifindex))
            && let Err(error) = clsact::remove_unused(ifindex)
        {
            tracing::warn!(interface = name, %error, "the clsact qdisc stays");
        }
    }
    pins.remove(PinKind::Clsact, &qdisc_mark(ifindex))?;
    Ok(pins.remove(PinKind::Clsact, &mark)?)
}

fn os_error(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
