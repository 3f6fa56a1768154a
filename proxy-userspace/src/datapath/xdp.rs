//! The XDP program at interfaces: a pinned link where the driver takes it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use proxy_common::interface::{Interface, flags};
use serde::{Deserialize, Serialize};

use super::interfaces::Plan;
use super::load::{Programs, XDP_PROGRAM};
use super::pin::{PinError, PinKind, Pins};
use super::sys::{self, AttachType, LinkTarget};
use super::{Datapath, DatapathError};

/// Where XDP is wanted: on uplinks, never on a pod's side.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpChoice {
    /// Natively where the driver has it, veth and bonds over veth excepted: they drop what XDP
    /// sends where their peer runs no program
    #[default]
    Auto,
    /// Natively, on veth too
    Native,
    /// In the kernel's generic code, which is slower than tc: to try it out
    Generic,
    /// Nowhere
    Off,
}

/// How the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic code, after the skb was made.
    Generic,
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    fn pin(self, ifindex: u32) -> String {
        format!("{ifindex}_xdp_{self}")
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Why the program could not be attached to or detached from an interface.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The driver or the kernel refused, or another program is there.
    #[error("attaching {XDP_PROGRAM} to the interface {ifindex} ({mode})")]
    Link {
        /// Interface.
        ifindex: u32,
        /// How.
        mode: XdpMode,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl Datapath {
    /// What XDP does not get goes on to tc, so a driver that refuses it loses nothing.
    pub(super) fn attach_xdp(&mut self, ifindex: u32, plan: &Plan) {
        let attached = match plan.xdp {
            Some(mode) => self
                .programs
                .require(&self.pins, &[XDP_PROGRAM])
                .map_err(DatapathError::from)
                .and_then(|()| Ok(attach(&self.pins, &self.programs, ifindex, mode)?)),
            None => detach(&self.pins, ifindex).map_err(DatapathError::from),
        };
        self.xdp_refused.remove(&ifindex);
        if let Err(error) = attached {
            let error = crate::error_chain(&error);
            tracing::warn!(interface = plan.name, error, "no XDP here: tc does it all");
            self.xdp_refused.insert(ifindex, error);
        }
    }

    /// What INTERFACES is to say: XDP sends frames out only where its program is in the driver.
    pub(super) fn entry(&self, ifindex: u32, plan: &Plan) -> Interface {
        let mut entry = plan.interface;
        if mode(&self.pins, ifindex) == Some(XdpMode::Native) {
            entry.flags |= flags::XDP;
        }
        entry
    }
}

/// Attaches the program, or swaps the one that is there; a link of another mode goes first.
pub fn attach(
    pins: &Pins,
    programs: &Programs,
    ifindex: u32,
    mode: XdpMode,
) -> Result<(), XdpError> {
    for other in XdpMode::ALL.into_iter().filter(|other| *other != mode) {
        pins.remove_link(&other.pin(ifindex))?;
    }
    let program = programs.get(XDP_PROGRAM);
    let pin = mode.pin(ifindex);
    if let Some(link) = pins.open(PinKind::Links, &pin)? {
        if is_at(link.as_fd(), ifindex) && sys::link_update(link.as_fd(), program).is_ok() {
            programs.swapped();
            return Ok(());
        }
        // Its interface is gone, and the number belongs to another one.
        pins.remove_link(&pin)?;
    }
    let link = sys::link_create(program, LinkTarget::Xdp(ifindex, mode), AttachType::Xdp).map_err(
        |source| XdpError::Link {
            ifindex,
            mode,
            source,
        },
    )?;
    Ok(pins.replace(PinKind::Links, &pin, link.as_fd())?)
}

/// Takes the program away, where it is.
pub fn detach(pins: &Pins, ifindex: u32) -> Result<(), XdpError> {
    for mode in XdpMode::ALL {
        pins.remove_link(&mode.pin(ifindex))?;
    }
    Ok(())
}

/// How an interface runs the program, by the pins.
pub fn mode(pins: &Pins, ifindex: u32) -> Option<XdpMode> {
    let is_pinned = |mode: &XdpMode| pins.path(PinKind::Links, &mode.pin(ifindex)).exists();
    XdpMode::ALL.into_iter().find(is_pinned)
}

/// True if the link that is pinned for an interface, if any, still runs our program there.
pub fn is_intact(pins: &Pins, programs: &Programs, ifindex: u32) -> bool {
    let Some(mode) = mode(pins, ifindex) else {
        return true;
    };
    let link = pins.open(PinKind::Links, &mode.pin(ifindex));
    let (Ok(Some(link)), Ok(id)) = (link, sys::object_id(programs.get(XDP_PROGRAM))) else {
        return false;
    };
    let info = sys::link_info(link.as_fd());
    info.is_ok_and(|info| info.prog_id == id && info.target as u32 == ifindex)
}

fn is_at(link: BorrowedFd<'_>, ifindex: u32) -> bool {
    sys::link_info(link).is_ok_and(|info| info.target as u32 == ifindex)
}
