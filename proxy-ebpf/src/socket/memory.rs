//! What a socket has been given: its next datagrams go the same way (S-205), and it sees the
//! frontend as its peer.

use proxy_common::socket::{PEER_IS_BACKEND, PEER_IS_FRONTEND};
use proxy_common::{Backend, Be16, SocketEntry, SocketKey, protocol};

use super::{Call, Dial, Outcome};
use crate::pipeline::select::is_usable;
use crate::{Family, Tables};

/// What a socket gets.
pub(super) type Chosen<F> = (
    SocketEntry<<F as Family>::Addr>,
    Backend<<F as Family>::Addr>,
);

/// The frontend's address for an address that a translated socket sees, or `None`.
#[inline(always)]
pub fn peer<F: Family, T: Tables<F>>(
    tables: &T,
    cookie: u64,
    addr: F::Addr,
    port: Be16,
    protocol: u8,
) -> Option<(F::Addr, Be16)> {
    let found = tables.socket(&key::<F>(cookie, addr, port, protocol, PEER_IS_BACKEND))?;
    Some((found.addr, found.port))
}

/// The backend that this socket already uses for this frontend: datagrams of one 4-tuple stay
/// together (S-205) until the backend is gone (S-124).
#[inline(always)]
pub(super) fn bound<F: Family, T: Tables<F>>(tables: &T, dial: &Dial<F>) -> Option<Chosen<F>> {
    if dial.protocol != protocol::UDP || !matches!(dial.call, Call::Send) {
        return None;
    }
    let key = key::<F>(
        dial.cookie,
        dial.addr,
        dial.port,
        dial.protocol,
        PEER_IS_FRONTEND,
    );
    let entry = tables.socket(&key)?;
    let backend = tables.backend(entry.backend)?;
    if backend.generation != entry.generation || !is_usable(backend.state) {
        return None;
    }
    Some((entry, backend))
}

/// Whether the choice of a backend is this call's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// It is.
    New,
    /// It was remembered of an earlier call ([`bound`]).
    Remembered,
}

/// Remembers both directions and translates. A datagram after the first writes nothing, unless what
/// was remembered has been evicted: to write costs several times what it costs to look.
#[inline(always)]
pub(super) fn translate<F: Family, T: Tables<F>>(
    tables: &T,
    dial: &Dial<F>,
    entry: SocketEntry<F::Addr>,
    choice: Choice,
) -> Outcome<F> {
    let frontend = SocketEntry {
        addr: dial.addr,
        port: dial.port,
        ..entry
    };
    let by_backend = key::<F>(
        dial.cookie,
        entry.addr,
        entry.port,
        dial.protocol,
        PEER_IS_BACKEND,
    );
    let is_known = matches!(choice, Choice::Remembered)
        && tables
            .socket(&by_backend)
            .is_some_and(|found| found == frontend);
    if !is_known {
        tables.insert_socket(&by_backend, &frontend);
    }
    remember_choice(tables, dial, &entry, choice);
    Outcome::Translate(entry.addr, entry.port)
}

/// The next datagram to this frontend goes the same way (S-205), also to the packet path.
#[inline(always)]
pub(super) fn remember_choice<F: Family, T: Tables<F>>(
    tables: &T,
    dial: &Dial<F>,
    entry: &SocketEntry<F::Addr>,
    choice: Choice,
) {
    let is_remembered = matches!(choice, Choice::Remembered);
    if dial.protocol == protocol::UDP && matches!(dial.call, Call::Send) && !is_remembered {
        let by_frontend = key::<F>(
            dial.cookie,
            dial.addr,
            dial.port,
            dial.protocol,
            PEER_IS_FRONTEND,
        );
        tables.insert_socket(&by_frontend, entry);
    }
}

#[inline(always)]
fn key<F: Family>(
    cookie: u64,
    addr: F::Addr,
    port: Be16,
    protocol: u8,
    peer: u8,
) -> SocketKey<F::Addr> {
    SocketKey {
        cookie: [cookie as u32, (cookie >> 32) as u32],
        addr,
        port,
        protocol,
        peer,
    }
}
