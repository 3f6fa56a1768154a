//! What connections carry is counted once, in their entries and for their backends.

use proxy_common::flow::{Carried, flags};
use proxy_common::{BackendCounts, Connection, protocol};
use proxy_ebpf::pipeline::conntrack::RENEWAL_SECS;
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, V4, V6};
use tests::cases::host::{self, HostEnvironment};
use tests::cases::packets::{self, ACK, Extras, FIN, L3, PacketSpec, SYN};
use tests::cases::tables::backend_id;
use tests::cases::world::*;

const CLIENT_AT: At = (Role::Pod, CLIENT_PORT);
const DIALED: At = (Role::ClusterIp, PORT);
const BACKEND_AT: At = (Role::LocalBackend, TARGET);

/// Tables, and what has been sent through them.
struct Sent<F: CaseFamily> {
    world: World,
    tables: HostTables<F>,
    to: Carried,
    from: Carried,
}

impl<F: CaseFamily> Sent<F> {
    fn new() -> Self {
        let world = World::default();
        Self {
            tables: world.tables::<F>(1, host::NOW),
            world,
            to: Carried::default(),
            from: Carried::default(),
        }
    }

    /// A packet of this connection, from its client at ingress or from its backend at egress, where
    /// each is translated; and at the other hook, where it is not and must not be counted.
    fn send(&mut self, packet: PacketSpec, payload: usize, secs: u32) {
        let is_reply = packet.src == BACKEND_AT;
        let mut packet = packet;
        packet.payload = vec![7; payload];
        let bytes = packet.bytes::<F>();
        let (carried, hooks) = match is_reply {
            true => (
                &mut self.from,
                [(Hook::Ingress, LOCAL), (Hook::Egress, POD)].as_slice(),
            ),
            false => (&mut self.to, [(Hook::Ingress, POD)].as_slice()),
        };
        carried.packets += 1;
        carried.bytes += (bytes.len() - L3) as u64;
        for (hook, ifindex) in hooks {
            let env = HostEnvironment::new(&self.world, *hook, *ifindex, host::NOW + secs);
            host::send(&self.tables, &env, bytes.clone(), 0);
        }
    }

    /// What BACKEND_COUNTS says.
    fn counted(&self, protocol: u8) -> BackendCounts {
        let written = self.tables.written.borrow();
        written.backend_counts[&backend_id(protocol, 0)]
    }

    /// What both entries say: to the backend, and from it.
    fn of_entries(&self) -> [Carried; 2] {
        let written = self.tables.written.borrow();
        let mut found = [Carried::default(); 2];
        for entry in written.handshakes.values().chain(written.flows.values()) {
            let direction = &mut found[usize::from(entry.flags & proxy_common::flow::flags::REPLY)];
            let carried = Carried::unpack(entry.carried);
            direction.packets += entry.packets + carried.packets;
            direction.bytes += entry.bytes + carried.bytes;
            assert_eq!(entry.began_secs, host::NOW);
        }
        found
    }
}

fn expected<F: CaseFamily>(sent: &Sent<F>) -> BackendCounts {
    BackendCounts {
        connections: 1,
        packets_to: sent.to.packets,
        bytes_to: sent.to.bytes,
        packets_from: sent.from.packets,
        bytes_from: sent.from.bytes,
    }
}

fn tcp_counts<F: CaseFamily>() {
    let mut sent = Sent::<F>::new();
    let tcp = |flags| packets::tcp(CLIENT_AT, DIALED, flags);
    let answer = |flags| packets::tcp(BACKEND_AT, CLIENT_AT, flags);
    sent.send(tcp(SYN), 0, 0);
    sent.send(answer(SYN | ACK), 0, 0);
    sent.send(answer(SYN | ACK), 0, 0);
    sent.send(tcp(ACK), 0, 0);
    assert_eq!(sent.of_entries(), [sent.to, sent.from], "established");
    for round in 0..5 {
        for size in [1, 100, 1400] {
            sent.send(tcp(ACK), size, round);
            sent.send(answer(ACK), size + 7, round);
            // What the short way is not for.
            sent.send(tcp(ACK).extras(Extras::Options), size, round);
            sent.send(answer(ACK).extras(Extras::Options), size, round);
        }
        assert_eq!(sent.of_entries(), [sent.to, sent.from], "round {round}");
    }
    let before = sent.counted(protocol::TCP);
    assert!(
        before.bytes_to < sent.to.bytes && before.bytes_to > 0,
        "{before:?}"
    );
    sent.send(tcp(FIN | ACK), 0, 4);
    sent.send(answer(FIN | ACK), 0, 4);
    assert_eq!(sent.of_entries(), [sent.to, sent.from]);
    assert_eq!(sent.counted(protocol::TCP), expected(&sent));
}

#[test]
fn tcp_is_counted_until_its_end() {
    tcp_counts::<V4>();
    tcp_counts::<V6>();
}

fn udp_counts<F: CaseFamily>() {
    let mut sent = Sent::<F>::new();
    sent.send(packets::udp(CLIENT_AT, DIALED), 30, 0);
    sent.send(packets::udp(BACKEND_AT, CLIENT_AT), 200, 0);
    // A question and its answer: nothing comes after them.
    assert_eq!(sent.counted(protocol::UDP), expected(&sent));
    assert_eq!(sent.of_entries(), [sent.to, sent.from]);
    for secs in 1..4 {
        sent.send(packets::udp(CLIENT_AT, DIALED), 50, secs);
        sent.send(packets::udp(BACKEND_AT, CLIENT_AT), 500, secs);
        assert_eq!(sent.of_entries(), [sent.to, sent.from], "{secs} s");
    }
}

#[test]
fn udp_is_counted_from_its_first_datagram_on() {
    udp_counts::<V4>();
    udp_counts::<V6>();
}

/// In `RENEWAL_SECS` both entries are written once. In between a packet writes to its own alone; it
/// is told to its backend all the same, once a second.
fn both_entries_are_renewed<F: CaseFamily>() {
    let mut sent = Sent::<F>::new();
    let tcp = |flags| packets::tcp(CLIENT_AT, DIALED, flags);
    let start = RENEWAL_SECS - host::NOW % RENEWAL_SECS;
    sent.send(tcp(SYN), 0, start);
    sent.send(packets::tcp(BACKEND_AT, CLIENT_AT, SYN | ACK), 0, start);
    sent.send(tcp(ACK), 0, start);
    let reply = |sent: &mut Sent<F>| {
        let mut written = sent.tables.written.borrow_mut();
        let is_reply = |entry: &Connection<F::Addr>| entry.flags & flags::REPLY != 0;
        let key = written.flows.iter().find(|(_, entry)| is_reply(entry));
        let key = *key?.0;
        let entry = written.flows.remove(&key)?;
        Some(entry.last_seen_secs)
    };
    assert_eq!(reply(&mut sent), Some(host::NOW + start));
    for secs in start + 1..start + RENEWAL_SECS {
        sent.send(tcp(ACK), 10, secs);
        assert_eq!(reply(&mut sent), None, "{secs} s");
        assert_eq!(
            sent.counted(protocol::TCP).packets_to,
            sent.to.packets,
            "{secs} s"
        );
    }
    let next = start + RENEWAL_SECS;
    sent.send(tcp(ACK), 10, next);
    assert_eq!(reply(&mut sent), Some(host::NOW + next));
}

#[test]
fn both_entries_are_written_once_in_a_while_and_backends_are_told_each_second() {
    both_entries_are_renewed::<V4>();
    both_entries_are_renewed::<V6>();
}

/// A direction that was evicted and put back has carried nothing since.
#[test]
fn direction_that_is_put_back_begins_at_nothing() {
    let mut sent = Sent::<V4>::new();
    sent.send(packets::udp(CLIENT_AT, DIALED), 30, 0);
    sent.send(packets::udp(BACKEND_AT, CLIENT_AT), 200, 0);
    sent.send(packets::udp(CLIENT_AT, DIALED), 50, 1);
    sent.send(packets::udp(CLIENT_AT, DIALED), 50, 1);
    let is_reply = |flags: u16| flags & proxy_common::flow::flags::REPLY != 0;
    let mut written = sent.tables.written.borrow_mut();
    let before = written.flows.len();
    written.flows.retain(|_, entry| !is_reply(entry.flags));
    assert_eq!(written.flows.len() + 1, before);
    drop(written);
    sent.from = Carried::default();
    let renewal = RENEWAL_SECS - host::NOW % RENEWAL_SECS;
    sent.send(packets::udp(CLIENT_AT, DIALED), 50, renewal);
    assert_eq!(sent.tables.written.borrow().flows.len(), before);
    assert_eq!(sent.of_entries(), [sent.to, sent.from]);
}

#[test]
fn counts_do_not_go_to_the_next_backend_of_an_id() {
    let mut sent = Sent::<V4>::new();
    sent.send(packets::udp(CLIENT_AT, DIALED), 30, 0);
    let before = sent.counted(protocol::UDP);
    let id = backend_id(protocol::UDP, 0);
    sent.tables
        .backends
        .get_mut(&id)
        .expect("a backend")
        .generation += 1;
    sent.send(packets::udp(BACKEND_AT, CLIENT_AT), 200, 0);
    assert_eq!(sent.counted(protocol::UDP), before);
    assert_eq!(sent.of_entries(), [sent.to, sent.from]);
}
