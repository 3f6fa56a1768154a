//! What transitional programs are told: which flow tables are exchanged, and where values of the
//! old ones have their fields (decision 0017).

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use aya::EbpfLoader;
use proxy_common::exchange::{
    ABSENT, AFFINITY_FIELDS, CONNECTION_FIELDS, OLD_VALUE_MAX, SOCKET_FIELDS, bits4, bits6,
};

use super::abi::Abi;
use super::pin::{PinError, PinKind, Pins};
use super::sys;

/// A flow table, the one in the object that stands for what it replaces, and its bit.
const TABLES: [(&str, &str, u8); 8] = [
    ("HANDSHAKES4", "HANDSHAKES4_OLD", bits4::HANDSHAKES),
    ("FLOWS4", "FLOWS4_OLD", bits4::FLOWS),
    ("AFFINITY4", "AFFINITY4_OLD", bits4::AFFINITY),
    ("SOCKETS4", "SOCKETS4_OLD", bits4::SOCKETS),
    ("HANDSHAKES6", "HANDSHAKES6_OLD", bits6::HANDSHAKES),
    ("FLOWS6", "FLOWS6_OLD", bits6::FLOWS),
    ("AFFINITY6", "AFFINITY6_OLD", bits6::AFFINITY),
    ("SOCKETS6", "SOCKETS6_OLD", bits6::SOCKETS),
];

/// Globals of transitional programs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transition {
    exchanged: u8,
    connection4: [u16; CONNECTION_FIELDS.len()],
    connection6: [u16; CONNECTION_FIELDS.len()],
    affinity: [u16; AFFINITY_FIELDS.len()],
    socket4: [u16; SOCKET_FIELDS.len()],
    socket6: [u16; SOCKET_FIELDS.len()],
}

impl Transition {
    /// For flow tables out of `names`, whose old ones are as `theirs` says; `None` where there are
    /// none that programs could write both of.
    pub fn new(ours: &Abi, theirs: &Abi, names: &BTreeSet<&str>) -> Option<Self> {
        let mut transition = Self {
            connection4: offsets(theirs, "Connection4", CONNECTION_FIELDS),
            connection6: offsets(theirs, "Connection6", CONNECTION_FIELDS),
            affinity: offsets(theirs, "AffinityEntry", AFFINITY_FIELDS),
            socket4: offsets(theirs, "SocketEntry4", SOCKET_FIELDS),
            socket6: offsets(theirs, "SocketEntry6", SOCKET_FIELDS),
            exchanged: 0,
        };
        for (name, _, bit) in TABLES {
            let fits = theirs
                .sizes(name)
                .is_some_and(|[_, value]| value <= OLD_VALUE_MAX);
            let is_told = ours.has_keys_of(theirs, name) && ours.converters(theirs, name).is_ok();
            if names.contains(name) && fits && is_told {
                transition.exchanged |= bit;
            }
        }
        (transition.exchanged != 0).then_some(transition)
    }

    /// Where an exchange was begun and not ended.
    pub fn interrupted(pins: &Pins) -> Result<Option<Self>, PinError> {
        let olds = pins.names(PinKind::OldMaps);
        let mut names = BTreeSet::new();
        for (name, ..) in TABLES.into_iter().filter(|(name, ..)| olds.contains(*name)) {
            let ids = [PinKind::OldMaps, PinKind::Maps].map(|kind| {
                let map = pins.open(kind, name).ok().flatten();
                map.and_then(|map| sys::object_id(map.as_fd()).ok())
            });
            if ids[0] != ids[1] {
                names.insert(name);
            }
        }
        let ours = Abi::current();
        let theirs = Abi::read(pins, PinKind::OldMaps)?.unwrap_or_else(|| ours.clone());
        Ok(Self::new(&ours, &theirs, &names))
    }

    /// Lets programs that `loader` loads be transitional, with the old tables that are pinned in
    /// `old`.
    pub fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>, pins: &Pins, old: PinKind) {
        loader
            .override_global("EXCHANGED", &self.exchanged, true)
            .override_global("OLD_CONNECTION4", &self.connection4, true)
            .override_global("OLD_CONNECTION6", &self.connection6, true)
            .override_global("OLD_AFFINITY", &self.affinity, true)
            .override_global("OLD_SOCKET4", &self.socket4, true)
            .override_global("OLD_SOCKET6", &self.socket6, true);
        for (name, in_object, bit) in TABLES {
            if self.exchanged & bit != 0 {
                loader.map_pin_path(in_object, pins.path(old, name));
            }
        }
    }
}

fn offsets<const N: usize>(theirs: &Abi, layout: &str, names: [&str; N]) -> [u16; N] {
    let fields = theirs
        .fields(layout)
        .map_or(Vec::new(), |(fields, _)| fields);
    names.map(|name| {
        let found = fields.iter().find(|(field, ..)| *field == name);
        found.map_or(ABSENT, |(_, offset, _)| *offset as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_old_values_lack_are_absent() {
        let ours = Abi::current();
        let theirs = Abi::parse(&super::super::abi::text().replace(" generation", " made_up"));
        let names = BTreeSet::from(["FLOWS4", "AFFINITY6", "SLOTS"]);
        let found = Transition::new(&ours, &theirs, &names).unwrap();
        assert_eq!(found.exchanged, bits4::FLOWS | bits6::AFFINITY);
        assert_eq!(found.affinity, [0, ABSENT, 8, 12]);
        assert_eq!(found.connection4[..6], [0, 12, 24, 52, ABSENT, 60]);
        assert_eq!(
            Transition::new(&ours, &ours, &BTreeSet::from(["SLOTS"])),
            None
        );
    }
}
