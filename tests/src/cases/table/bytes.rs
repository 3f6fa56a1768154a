//! Headers of every shape: options, fragments, odd checksums, and packets that end early.

use proxy_common::{Counter, Counter::*, protocol};

use super::super::flows::{Flow, snat, stack};
use super::super::packets::*;
use super::super::{Families, case};
use super::*;

pub fn cases() -> Vec<Case> {
    let parts = [options(), fragments(), checksums(), damaged(), tagged()];
    [parts.concat(), cut_short()].concat()
}

fn options() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, packet) in first_packets(POD_AT, VIP) {
        let packet = packet.extras(Extras::Options);
        cases.push(
            case(
                format!("IP options or extension headers before {name}"),
                &["S-133"],
                packet.clone(),
            )
            .passed(packet.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        );
    }
    let many = syn(POD_AT, VIP).extras(Extras::TooMany);
    let foreign = many.clone().dst((Role::Foreign, PORT));
    let balanced = many.clone().dst((Role::Vip, PORT));
    let rules = &["S-133"];
    for too_many in [
        case("more extension headers than we walk", rules, many).dropped(Unparsable),
        case(
            "too many extension headers to a load balancer's address",
            rules,
            balanced,
        )
        .dropped(Unparsable),
        case(
            "too many extension headers to a foreign host",
            rules,
            foreign,
        )
        .left_alone(TooManyHeaders),
    ] {
        cases.push(Case {
            families: Families::V6,
            ..too_many
        });
    }
    cases
}

fn fragments() -> Vec<Case> {
    let first = udp(POD_AT, VIP).len(64).part(0, true);
    let later = udp(POD_AT, VIP).len(40).later(protocol::UDP, 9);
    let known = World {
        fragments: vec![(POD_AT, VIP, 0x4711, protocol::UDP)],
        ..World::default()
    };
    let flow = stack(POD_AT, VIP, LOCAL_AT).udp();
    vec![
        case("a first fragment starts a flow", &["S-131"], first.clone())
            .passed(first.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "a later fragment follows the first",
            &["S-131"],
            later.clone(),
        )
        .world(known.clone())
        .flow(flow)
        .passed(later.clone().dst(LOCAL_AT), &[Fragment]),
        case(
            "a later fragment whose first was not seen",
            &["S-131", "S-133"],
            later.clone(),
        )
        .flow(flow)
        .dropped(FrontendFragment),
        case(
            "a later fragment to a load balancer's address",
            &["S-131", "S-133"],
            later.clone().dst((Role::Vip, PORT)),
        )
        .dropped(FrontendFragment),
        case(
            "a foreign later fragment",
            &["S-131", "P-14"],
            later.clone().dst((Role::Foreign, PORT)),
        )
        .left_alone(FragmentUnknown),
        case("a later fragment starts no flow", &["S-131"], later)
            .world(known)
            .dropped(FrontendFragment),
    ]
}

fn checksums() -> Vec<Case> {
    let mut none = udp(POD_AT, VIP);
    none.body = Body::UdpChecksum(0);
    let mut unfinished = sctp(POD_AT, VIP);
    unfinished.body = Body::SctpUnfinished;
    let mut padded = syn(POD_AT, (Role::ClusterIp, 81));
    let reset = reset_of(&padded);
    padded.padding = 6;
    vec![
        case(
            "UDP without a checksum stays without",
            &["S-136"],
            none.clone(),
        )
        .passed(none.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "SCTP whose checksum is to be computed later stays so",
            &["S-129", "S-136"],
            unfinished.clone(),
        )
        .passed(unfinished.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "a long SCTP packet of odd length",
            &["S-129"],
            sctp(POD_AT, VIP).len(1401),
        )
        .passed(
            sctp(POD_AT, VIP).len(1401).dst(LOCAL_AT),
            &[NewFlow, OriginalStack],
        ),
        case(
            "an answer of SCTP shows the ClusterIP",
            &["S-129"],
            sctp(LOCAL_AT, POD_AT),
        )
        .egress(POD)
        .flow(Flow {
            protocol: protocol::SCTP,
            ..stack(POD_AT, VIP, LOCAL_AT)
        })
        .passed(sctp(LOCAL_AT, POD_AT).src(VIP), &[ReplyStack]),
        case(
            "the first fragment of an SCTP packet with another port",
            &["S-129", "S-131"],
            sctp(POD_AT, VIP).len(1400).part(0, true),
        )
        .ends(Verdict::Drop, Out::Unchanged, &[NewFlow, SctpFragment]),
        case(
            "Ethernet's padding is not part of a segment",
            &["S-104"],
            padded,
        )
        .answered(reset, RejectClusterIp),
        case(
            "a payload of odd length",
            &["S-136"],
            udp(POD_AT, VIP).len(7),
        )
        .passed(
            udp(POD_AT, VIP).len(7).dst(LOCAL_AT),
            &[NewFlow, OriginalStack],
        ),
    ]
}

fn damaged() -> Vec<Case> {
    let poked = |name: &str, at, value| Case {
        poke: Some((at, value)),
        ..case(name, &["S-133"], syn(POD_AT, VIP)).left_alone(BadHeader)
    };
    let frame = |name: &str, frame, rules, to| {
        let packet = PacketSpec {
            frame,
            ..syn(POD_AT, to)
        };
        case(name, rules, packet)
    };
    let unknown = (Role::ClusterIp, 81);
    vec![
        frame("neither IPv4 nor IPv6", Frame::NotIp, &["P-14"], VIP).left_alone(NotIp),
        frame(
            "a broadcast frame is never answered",
            Frame::Broadcast,
            &["S-104"],
            unknown,
        )
        .dropped(AnswerSuppressed),
        poked("an IP version that does not match the EtherType", 0, 0x55),
        poked("an IPv4 header of four words", 0, 0x44),
    ]
}

/// What a VLAN's frames say of themselves: customer and service tags (IEEE 802.1Q, 802.1ad).
const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;

/// Frames of VLANs, whatever is in them, are for the VLAN's device: they pass as they came, at XDP
/// too. XDP sees the tag of a frame inside it, as here. tc sees only what is left inside behind the
/// first one, which the kernel has taken out: `net_xdp` has real frames.
fn tagged() -> Vec<Case> {
    const TAGS: [(&str, &[Tag]); 4] = [
        ("of a VLAN", &[(C_TAG, 7)]),
        ("with a priority and of no VLAN", &[(C_TAG, 5 << 13)]),
        ("of a VLAN in a provider's VLAN", &[(S_TAG, 3), (C_TAG, 7)]),
        (
            "of a VLAN in a VLAN of the same kind",
            &[(C_TAG, 3), (C_TAG, 7)],
        ),
    ];
    let tagged = |(name, tags): (&str, &'static [Tag])| {
        let frame = Frame::Tagged(tags);
        let balanced = |packet: PacketSpec| PacketSpec { frame, ..packet };
        let to_vip = (Role::Vip, PORT);
        let refused = (Role::ClusterIp, 81);
        let flow = snat(CLIENT_AT, to_vip, SNAT_AT, REMOTE_AT, [UPLINK, UPLINK]);
        [
            case(
                format!("a first packet {name}"),
                TAGGED,
                balanced(syn(CLIENT_AT, to_vip)),
            ),
            case(
                format!("a flow's packet {name}"),
                TAGGED,
                balanced(udp(CLIENT_AT, to_vip)),
            )
            .flow(flow.udp()),
            case(
                format!("a packet to refuse {name}"),
                TAGGED,
                balanced(syn(CLIENT_AT, refused)),
            ),
        ]
        .map(|case| case.ingress(UPLINK).left_alone(NotIp))
    };
    TAGS.into_iter().flat_map(tagged).collect()
}

/// The rules that frames of VLANs show.
const TAGGED: &[&str] = &["P-10", "P-14"];

/// A packet that ends after `kept` bytes of its transport header, for every `kept`.
fn cut_short() -> Vec<Case> {
    let mut cases = Vec::new();
    for kept in 0..20 {
        let packet = syn(POD_AT, VIP);
        let ends: &[Counter] = match kept {
            0..15 => &[Unparsable],
            15..18 => &[NewFlow, Unparsable],
            _ => &[NewFlow, OriginalStack],
        };
        cases.push(cut(packet, "TCP", 20 - kept, ends));
        if kept < 15 {
            let balanced = syn(POD_AT, (Role::Vip, PORT));
            cases.push(cut(
                balanced,
                "a load balancer's TCP",
                20 - kept,
                &[Unparsable],
            ));
            let foreign = syn(POD_AT, (Role::Foreign, PORT));
            cases.push(cut(foreign, "foreign TCP", 20 - kept, &[Truncated]));
        }
    }
    for kept in 0..8 {
        let packet = udp(POD_AT, VIP).len(0);
        let ends: &[Counter] = match kept {
            0..4 => &[Unparsable],
            _ => &[NewFlow, Unparsable],
        };
        cases.push(cut(packet, "UDP", 8 - kept, ends));
    }
    // Into the IP header, down to its first byte in IPv4.
    for bytes in 9..28 {
        cases.push(cut(udp(POD_AT, VIP).len(0), "IP", bytes, &[Truncated]));
    }
    cases
}

fn cut(packet: PacketSpec, name: &str, bytes: usize, ends: &[Counter]) -> Case {
    let out = packet.clone().dst(LOCAL_AT);
    let case = case(
        format!("{name} without its last {bytes} bytes"),
        &["S-133"],
        packet,
    );
    let case = if ends.contains(&Truncated) {
        case.left_alone(Truncated)
    } else if ends.contains(&Unparsable) {
        case.ends(Verdict::Drop, Out::Unchanged, ends)
    } else {
        case.passed(out, ends)
    };
    Case { cut: bytes, ..case }
}
