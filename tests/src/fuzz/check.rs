//! What must hold of any bytes that go down the path.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::Result;
use proxy_common::{Counter, protocol};
use proxy_ebpf::packet::host::HostPacket;
use proxy_ebpf::pipeline::host::{HostSteps, no_headers};
use proxy_ebpf::pipeline::parse::{self, Fragment, Headers, Transport};
use proxy_ebpf::{Hook, Verdict};

use crate::cases::build::internet_checksum;
use crate::cases::host::{self, HostEnvironment, NOW};
use crate::cases::packets::L3;
use crate::cases::verify::wrong_checksum;
use crate::cases::world::{CaseFamily, LOCAL};
use crate::cases::{Case, Outcome};

/// What is fuzzed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The parser alone.
    Parse,
    /// The whole path; the parser too.
    Pipeline,
}

/// How a packet went: as much of it as makes one worth keeping.
pub type Shape = String;

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// See [`Shape`].
    pub shape: Shape,
    /// The coarser one, by counters and kind of packet alone.
    pub end: Shape,
    /// It left translated.
    pub is_translated: bool,
    /// Its answer became what the client expects.
    pub is_restored: bool,
}

/// Reasons of packets that leave translated.
const TRANSLATED: [Counter; 7] = [
    Counter::OriginalStack,
    Counter::OriginalRedirect,
    Counter::ReplyStack,
    Counter::ReplyRedirect,
    Counter::ReplyLocal,
    Counter::Related,
    Counter::Fragment,
];

/// Counters that tell of a flow beside the reason of the packet's end.
pub const NOTES: [Counter; 7] = [
    Counter::NewFlow,
    Counter::NewFlowLost,
    Counter::Promoted,
    Counter::Closed,
    Counter::Redecided,
    Counter::TupleClash,
    Counter::HalfRestored,
];

/// Longer answers may be too big for a way back.
const ANSWER_MAX: usize = 1_200;

/// Sends the bytes where the case's packet goes; an error says what does not hold.
pub fn run<F: CaseFamily + Debug>(
    target: Target,
    case: &Case,
    bytes: &[u8],
) -> Result<End, String> {
    let headers = parsed::<F>(bytes)?;
    if target == Target::Parse {
        let shape = shape_of(headers.as_ref());
        return Ok(End {
            end: kind_of(headers.as_ref()),
            shape,
            is_translated: false,
            is_restored: false,
        });
    }
    let env = HostEnvironment::new(&case.world, case.hook, case.ifindex, NOW);
    let tables = case.world.tables::<F>(1, NOW);
    let outcome = host::send(&tables, &env, bytes.to_vec(), case.segment_len);
    let reason = only_reason(&outcome.counters)?;
    let is_translated = TRANSLATED.contains(&reason);
    if outcome.verdict == Verdict::Pass && !is_translated && outcome.bytes != bytes {
        return Err(format!("changed, but {reason:?}"));
    }
    same_the_long_way::<F>(case, bytes, &outcome)?;
    if outcome.verdict == Verdict::Return
        && let Some(wrong) = wrong_checksum::<F>(&outcome.bytes)
    {
        return Err(format!("answered with {wrong} wrong"));
    }
    let mut is_restored = false;
    if is_translated {
        let headers = headers.as_ref().ok_or("translated, and not readable")?;
        rewritten::<F>(headers, bytes, &outcome.bytes)?;
        if outcome.counters.contains_key(&Counter::NewFlow) {
            is_restored = restores::<F>(case, &tables, headers, [bytes, &outcome.bytes])?;
        }
    }
    Ok(End {
        end: format!("{:?} {}", outcome.counters, kind_of(headers.as_ref())),
        shape: format!("{:?} {}", outcome.counters, shape_of(headers.as_ref())),
        is_translated,
        is_restored,
    })
}

/// The headers, where they can be read: they are where the packet says.
fn parsed<F: CaseFamily + Debug>(bytes: &[u8]) -> Result<Option<Headers<F>>, String> {
    let mut packet = HostPacket::new(bytes.to_vec());
    let mut headers: Headers<F> = no_headers();
    let result = parse::parse::<F, _>(&packet, L3, &mut headers);
    let is_error = matches!(headers.transport, Transport::IcmpError);
    let plain = parse::plain::<F, _>(&mut packet, L3);
    if result.is_err() {
        return match plain {
            Some(_) => Err("the short way reads what cannot be read".to_owned()),
            None => Ok(None),
        };
    }
    if let Some(plain) = plain {
        let [ours, theirs] = [format!("{plain:?}"), format!("{headers:?}")];
        if ours != theirs {
            return Err(format!("the short way reads {ours}\nnot {theirs}"));
        }
    }
    expect_transport::<F>(bytes, L3, headers.l4.get())?;
    if is_error {
        if parse::quoted::<F, _>(&packet, &mut headers).is_err() {
            return Ok(None);
        }
        expect_transport::<F>(bytes, headers.quoted.get(), headers.quoted_l4.get())?;
    }
    let at = match headers.transport {
        Transport::Ports => headers.l4.get(),
        Transport::IcmpError => headers.quoted_l4.get(),
        Transport::Other => return Ok(Some(headers)),
    };
    let ports = [headers.tuple.sport.get(), headers.tuple.dport.get()];
    let ports = ports.map(u16::to_be_bytes).concat();
    if bytes.get(at..at + 4) != Some(&ports[..]) {
        return Err(format!("ports {ports:?} are not those at {at}"));
    }
    Ok(Some(headers))
}

/// The transport header behind the IP header at `l3` is at `found`, by another walk.
fn expect_transport<F: CaseFamily>(bytes: &[u8], l3: usize, found: usize) -> Result<(), String> {
    let byte = |at: usize| bytes.get(at).copied().map_or(0, usize::from);
    let mut at = l3 + byte(l3) % 16 * 4;
    if F::VERSION == 6 {
        at = l3 + 40;
        let mut kind = byte(l3 + 6);
        while matches!(kind, 0 | 43 | 44 | 60) {
            let is_later = kind == 44 && (byte(at + 2) << 8 | byte(at + 3)) >> 3 != 0;
            let len = if kind == 44 { 0 } else { byte(at + 1) };
            kind = byte(at);
            at += (len + 1) * 8;
            if is_later {
                break;
            }
        }
    }
    if at == found {
        Ok(())
    } else {
        Err(format!("the transport header is at {at}, not at {found}"))
    }
}

fn only_reason(counters: &BTreeMap<Counter, u64>) -> Result<Counter, String> {
    let mut ends = counters.iter().filter(|(it, _)| !NOTES.contains(it));
    match (ends.next(), ends.next()) {
        (Some((reason, 1)), None) => Ok(*reason),
        _ => Err(format!("not one reason: {counters:?}")),
    }
}

fn same_the_long_way<F: CaseFamily>(
    case: &Case,
    bytes: &[u8],
    short: &Outcome,
) -> Result<(), String> {
    let env = HostEnvironment::new(&case.world, case.hook, case.ifindex, NOW);
    let tables = case.world.tables::<F>(1, NOW);
    let mut packet = HostPacket::new(bytes.to_vec());
    packet.segment_len = case.segment_len;
    let (verdict, _) = HostSteps::<F, _, _, _>::run_long(&mut packet, &tables, &env, L3);
    let counters = tables.written.borrow().counters.clone();
    let long = Outcome::of_run(verdict, packet.bytes, counters);
    match short.differs(&long) {
        None => Ok(()),
        Some(text) => Err(format!("the short way ends otherwise:{text}")),
    }
}

/// Only what a translation writes has changed, and no checksum says anything else than before:
/// right ones are right, wrong ones are as wrong.
fn rewritten<F: CaseFamily>(headers: &Headers<F>, came: &[u8], left: &[u8]) -> Result<(), String> {
    if came.len() != left.len() {
        return Err(format!("{} bytes became {}", came.len(), left.len()));
    }
    let places = written(headers);
    let changed = (0..came.len()).filter(|&at| came[at] != left[at]);
    if let Some(at) = changed
        .into_iter()
        .find(|at| !places.iter().any(|place| place.contains(at)))
    {
        return Err(format!("byte {at} has changed"));
    }
    let (l3, l4) = (headers.l3.get(), headers.l4.get());
    for (what, [before, after]) in [
        ("header", [came, left].map(|it| header_sum::<F>(it, l3))),
        (
            "transport",
            [came, left].map(|it| transport_sum(headers, it, l4)),
        ),
    ] {
        if before != after {
            return Err(format!(
                "the {what}'s checksum says {after:#x}, not {before:#x}"
            ));
        }
    }
    Ok(())
}

/// Where a translation may write.
fn written<F: CaseFamily>(headers: &Headers<F>) -> Vec<std::ops::Range<usize>> {
    let of_network = |l3: usize| match F::VERSION {
        4 => [l3 + 8..l3 + 9, l3 + 10..l3 + 20],
        _ => [l3 + 7..l3 + 8, l3 + 8..l3 + 40],
    };
    let l4 = headers.l4.get();
    let mut all = of_network(headers.l3.get()).to_vec();
    if let Transport::IcmpError = headers.transport {
        let ports = headers.quoted_l4.get();
        all.extend(of_network(headers.quoted.get()));
        all.extend([l4 + 2..l4 + 4, ports..ports + 4]);
    } else if !matches!(headers.fragment, Fragment::Later) {
        all.push(l4..l4 + 4);
        all.push(match headers.protocol {
            protocol::TCP => l4 + 16..l4 + 18,
            protocol::UDP => l4 + 6..l4 + 8,
            _ => l4 + 8..l4 + 12,
        });
    }
    all
}

/// The sum of what the IPv4 header's checksum covers, that one included.
fn header_sum<F: CaseFamily>(bytes: &[u8], l3: usize) -> u16 {
    match F::VERSION {
        // A later fragment is translated without a look behind the fixed header.
        4 => sum(&bytes[l3..bytes.len().min(l3 + usize::from(bytes[l3] & 0xf) * 4)]),
        _ => 0,
    }
}

/// The sum of what the transport's checksum covers, but for what never changes.
fn transport_sum<F: CaseFamily>(headers: &Headers<F>, bytes: &[u8], l4: usize) -> u16 {
    let is_error = matches!(headers.transport, Transport::IcmpError);
    let is_without = match headers.protocol {
        _ if is_error => false,
        protocol::TCP => false,
        // 0: none.
        protocol::UDP => bytes.get(l4 + 6..l4 + 8) == Some(&[0, 0]),
        _ => true,
    };
    if is_without || matches!(headers.fragment, Fragment::Later) {
        return 0;
    }
    let addresses = match (F::VERSION, is_error) {
        (4, true) => L3..L3,
        (4, false) => L3 + 12..L3 + 20,
        _ => L3 + 8..L3 + 40,
    };
    sum(&[&bytes[addresses], &bytes[l4..]].concat())
}

/// One number for each sum: in one's complement 0 has two.
fn sum(bytes: &[u8]) -> u16 {
    match internet_checksum(bytes) {
        0xffff => 0,
        sum => sum,
    }
}

/// The answer to the first packet of a flow becomes, at exactly one hook, one from whom the client
/// has asked. False where the packet is none that has a simple answer.
fn restores<F: CaseFamily>(
    case: &Case,
    tables: &proxy_ebpf::tables::host::HostTables<F>,
    headers: &Headers<F>,
    [asked, sent]: [&[u8]; 2],
) -> Result<bool, String> {
    let is_whole = matches!(headers.fragment, Fragment::No);
    if !is_whole || !matches!(headers.transport, Transport::Ports) || sent.len() > ANSWER_MAX {
        return Ok(false);
    }
    let l4 = headers.l4.get();
    let mut answer = turned::<F>(sent, l4);
    answer[L3 + if F::VERSION == 4 { 8 } else { 7 }] = 64;
    let mut seen = Vec::new();
    for hook in [Hook::Ingress, Hook::Egress] {
        let env = HostEnvironment::new(&case.world, hook, LOCAL, NOW);
        let outcome = host::send(tables, &env, answer.clone(), 0);
        if !outcome.counters.contains_key(&Counter::OtherHook) {
            seen.push(outcome);
        }
    }
    let [outcome] = &seen[..] else {
        return Err(format!("answered at {} hooks: {seen:?}", seen.len()));
    };
    let got = outcome
        .bytes
        .get(..l4 + 4)
        .map(|bytes| turned::<F>(bytes, l4));
    let ends = ends_of::<F>(l4);
    let is_right = got.is_some_and(|got| {
        ends.into_iter()
            .all(|place| got[place.clone()] == asked[place])
    });
    if is_right {
        Ok(true)
    } else {
        Err(format!("the answer became {outcome:?}"))
    }
}

/// Where addresses and ports are.
fn ends_of<F: CaseFamily>(l4: usize) -> [std::ops::Range<usize>; 2] {
    let addresses = match F::VERSION {
        4 => L3 + 12..L3 + 20,
        _ => L3 + 8..L3 + 40,
    };
    [addresses, l4..l4 + 4]
}

/// The packet with its ends exchanged.
fn turned<F: CaseFamily>(bytes: &[u8], l4: usize) -> Vec<u8> {
    let mut turned = bytes.to_vec();
    for place in ends_of::<F>(l4) {
        let half = place.len() / 2;
        turned[place].rotate_left(half);
    }
    turned
}

fn shape_of<F: CaseFamily>(headers: Option<&Headers<F>>) -> Shape {
    let Some(headers) = headers else {
        return "unread".to_owned();
    };
    let Headers {
        l3,
        l4,
        quoted,
        quoted_l4,
        transport,
        fragment,
        protocol,
        ..
    } = headers;
    let own = (l4.get() - l3.get()).min(200);
    let inner = quoted_l4.get().saturating_sub(quoted.get()).min(200);
    let is_known = matches!(*protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let protocol = if is_known { *protocol } else { 0 };
    format!(
        "{} {transport:?} {fragment:?} {protocol} {own} {inner}",
        F::NAME
    )
}

fn kind_of<F: CaseFamily>(headers: Option<&Headers<F>>) -> Shape {
    match headers {
        None => format!("{} unread", F::NAME),
        Some(headers) => format!("{} {:?} {:?}", F::NAME, headers.transport, headers.fragment),
    }
}
