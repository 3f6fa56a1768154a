use std::net::Ipv4Addr;

use proxy_common::flow::{Carried, Path};
use proxy_common::{Addr4, NextHop, protocol};

use super::*;

const NOW: u32 = 5_000;

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Tuple<Addr4> {
    Tuple {
        src: Ipv4Addr::from(src).into(),
        dst: Ipv4Addr::from(dst).into(),
        sport: Be16::new(sport),
        dport: Be16::new(dport),
    }
}

fn dialed() -> Tuple<Addr4> {
    tuple([198, 51, 100, 9], 40_000, [192, 0, 2, 11], 30_080)
}

fn sent() -> Tuple<Addr4> {
    tuple([192, 0, 2, 11], 61_001, [10, 4, 2, 5], 8080)
}

/// Both entries of a connection, the client's last packet `idle` seconds old, the backend's one
/// second more.
fn pair(protocol: u8, idle: u32, more: u16) -> [(FlowKey<Addr4>, Connection<Addr4>); 2] {
    let key = FlowKey::new(dialed(), protocol);
    let other_key = FlowKey::new(sent().reversed(), protocol);
    let out = Path {
        kind: path::INGRESS_NEIGH,
        ifindex: 77_777,
        ..Path::default()
    };
    let original = Connection {
        to: sent(),
        tag: key.tag(),
        last_seen_secs: NOW - idle,
        backend: 3,
        generation: 0,
        frontend: 2,
        began_secs: NOW - 60,
        path: out,
        other_path: Path::default(),
        next_hop: NextHop::default(),
        flags: flags::SNAT | more,
        seen: 0,
        next_hops: 0,
        pad_end: 0,
        carried: Carried::one(100).pack(),
        packets: 7,
        bytes: 700,
    };
    let reply = Connection {
        to: dialed().reversed(),
        tag: other_key.tag(),
        last_seen_secs: NOW - idle - 1,
        path: Path::default(),
        other_path: out,
        flags: original.flags | flags::REPLY,
        seen: seen::ANSWER,
        carried: 0,
        packets: 3,
        bytes: 4000,
        ..original
    };
    [(key, original), (other_key, reply)]
}

fn only(found: &FoundFlows<Addr4>) -> Option<FlowView> {
    assert_eq!(found.len(), 1);
    let ((protocol, tuple), found) = found.first_key_value()?;
    view(*protocol, tuple, found, (&Timeouts::default(), NOW))
}

#[test]
fn two_entries_are_one_connection_in_any_order_and_each_alone() {
    let entries = pair(protocol::TCP, 4, flags::CONFIRMED);
    let [original, reply] = entries;
    for (entries, state, idle) in [
        (vec![original, reply], FlowState::Established, 4),
        (vec![reply, original], FlowState::Established, 4),
        (vec![original], FlowState::Established, 4),
        (vec![reply], FlowState::Established, 5),
    ] {
        let count = entries.len();
        let mut found = FoundFlows::new();
        for (key, entry) in entries {
            add(&mut found, &key, entry, FlowTable::Flows);
        }
        let view = only(&found).unwrap();
        assert_eq!(view.client.to_string(), "198.51.100.9:40000");
        assert_eq!(view.frontend.to_string(), "192.0.2.11:30080");
        assert_eq!(view.source.to_string(), "192.0.2.11:61001");
        assert_eq!(view.backend.to_string(), "10.4.2.5:8080");
        assert_eq!(view.redirected_to.as_deref(), Some("#77777"));
        assert_eq!((view.state, view.idle_secs), (state, idle));
        assert_eq!(view.expires_secs, 24 * 3600 - idle);
        assert!(view.snat && !view.hairpin);
        assert_eq!(view.age_secs, Some(60));
        let of = view.traffic;
        // The one entry has 7 packets and one that is not reported; the other one none.
        let is_known = idle == 4;
        assert_eq!(
            (of.packets_to, of.bytes_to),
            if is_known { (8, 800) } else { (0, 0) }
        );
        let is_reply_known = count == 2 || idle == 5;
        let expected = if is_reply_known { (3, 4000) } else { (0, 0) };
        assert_eq!((of.packets_from, of.bytes_from), expected);
    }
}

#[test]
fn states_follow_what_was_seen() {
    for (bits, table, expected) in [
        (0, FlowTable::Handshakes, FlowState::Unanswered),
        (seen::ANSWER, FlowTable::Handshakes, FlowState::Answered),
        (seen::ANSWER, FlowTable::Flows, FlowState::Established),
        (seen::FIN_ORIGINAL, FlowTable::Flows, FlowState::Closing),
        (
            seen::FIN_ORIGINAL | seen::FIN_REPLY,
            FlowTable::Handshakes,
            FlowState::Closed,
        ),
        (seen::RST_REPLY, FlowTable::Handshakes, FlowState::Reset),
    ] {
        assert_eq!(state(bits, table), expected, "{bits:#x}");
    }
}

#[test]
fn what_is_over_or_being_reused_is_not_shown() {
    let timeouts = Timeouts::default();
    for (idle, is_there) in [
        (timeouts.udp_unreplied_secs, true),
        (timeouts.udp_unreplied_secs + 1, false),
    ] {
        let [(key, original), _] = pair(protocol::UDP, idle, 0);
        let mut found = FoundFlows::new();
        add(&mut found, &key, original, FlowTable::Handshakes);
        assert_eq!(only(&found).is_some(), is_there, "{idle}");
    }
    let [(key, original), _] = pair(protocol::TCP, 0, 0);
    let mut found = FoundFlows::new();
    let torn = Connection {
        tag: original.tag ^ 1,
        ..original
    };
    add(&mut found, &key, torn, FlowTable::Handshakes);
    assert!(found.is_empty());
}
