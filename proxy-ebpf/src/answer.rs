//! Answers in place of a packet that goes no further: TCP reset, ICMP and ICMPv6 errors.

use bytemuck::NoUninit;
use proxy_common::{Address, Be16, Be32, Counter, protocol};

use crate::wire::{checksum, ethernet, icmp, ipv4, ipv6, tcp};
use crate::{Answer, Family, Packet, Stop};

/// Not answered: multicast at either layer (RFC 1122 section 3.2.2), an error about an error,
/// options we do not quote.
const SUPPRESSED: Stop = Stop::Drop(Counter::AnswerSuppressed);
/// TTL of answers (the IANA default).
const TTL: u8 = 64;
/// 16-bit words of an IPv4 packet that an error quotes: header and 8 bytes (RFC 792).
const QUOTED4: usize = (ipv4::LEN + 8) / 2;
/// 16-bit words of an IPv6 packet that an error quotes: header and 8 bytes.
const QUOTED6: usize = (ipv6::LEN + 8) / 2;
/// The same of a fragment: without the ports its sender does not know whom the error is for.
const QUOTED6_FRAGMENT: usize = QUOTED6 + ipv6::FRAGMENT_LEN / 2;

/// Who the answer goes to and what it answers.
struct Asked<F: Family> {
    src: F::Addr,
    dst: F::Addr,
    protocol: u8,
    l4: usize,
    /// Where the datagram ends, as its header says: Ethernet may have padded it.
    end: usize,
}

/// Turns the packet into the answer: addresses swapped, ready to go back where it came from.
#[inline(always)]
pub fn write<F: Family, P: Packet>(packet: &mut P, l3: usize, answer: Answer) -> Result<(), Stop> {
    if l3 == ethernet::LEN && packet.read::<u8>(ethernet::DST)? & ethernet::GROUP_BIT != 0 {
        return Err(SUPPRESSED);
    }
    let asked = asked::<F, P>(packet, l3)?;
    if asked.src.is_multicast() || asked.src.is_loopback() || asked.src == F::Addr::UNSPECIFIED {
        return Err(SUPPRESSED);
    }
    if asked.protocol == protocol::TCP && answer == Answer::Refused {
        reset::<F, P>(packet, l3, &asked)?;
    } else if F::VERSION == 4 {
        error::<F, P, QUOTED4>(packet, l3, &asked, answer)?;
    } else if asked.protocol == ipv6::FRAGMENT {
        error::<F, P, QUOTED6_FRAGMENT>(packet, l3, &asked, answer)?;
    } else {
        error::<F, P, QUOTED6>(packet, l3, &asked, answer)?;
    }
    swap_macs(packet, l3)
}

#[inline(always)]
fn asked<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<Asked<F>, Stop> {
    if F::VERSION == 4 {
        let version_ihl: u8 = packet.read(l3 + ipv4::VERSION_IHL)?;
        let fragment: Be16 = packet.read(l3 + ipv4::FRAGMENT)?;
        if version_ihl != 0x45 || fragment.get() & ipv4::OFFSET_MASK != 0 {
            return Err(SUPPRESSED);
        }
        let total_len: Be16 = packet.read(l3 + ipv4::TOTAL_LEN)?;
        return Ok(Asked {
            src: packet.read(l3 + ipv4::SRC)?,
            dst: packet.read(l3 + ipv4::DST)?,
            protocol: packet.read(l3 + ipv4::PROTOCOL)?,
            l4: l3 + ipv4::LEN,
            end: l3 + total_len.get() as usize,
        });
    }
    let payload_len: Be16 = packet.read(l3 + ipv6::PAYLOAD_LEN)?;
    Ok(Asked {
        src: packet.read(l3 + ipv6::SRC)?,
        dst: packet.read(l3 + ipv6::DST)?,
        protocol: packet.read(l3 + ipv6::NEXT_HEADER)?,
        l4: l3 + ipv6::LEN,
        end: l3 + ipv6::LEN + payload_len.get() as usize,
    })
}

/// The bytes of a TCP header without options.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TcpHeader {
    sport: Be16,
    dport: Be16,
    sequence: [Be16; 2],
    acknowledgment: [Be16; 2],
    data_offset: u8,
    flags: u8,
    window: Be16,
    checksum: Be16,
    urgent: Be16,
}

/// A reset as RFC 9293 section 3.10.7.1 asks for in state CLOSED.
#[inline(always)]
fn reset<F: Family, P: Packet>(packet: &mut P, l3: usize, asked: &Asked<F>) -> Result<(), Stop> {
    let [sport, dport]: [Be16; 2] = packet.read(asked.l4)?;
    let sequence: Be32 = packet.read(asked.l4 + tcp::SEQUENCE)?;
    let acknowledgment: [Be16; 2] = packet.read(asked.l4 + tcp::ACKNOWLEDGMENT)?;
    let [data_offset, flags]: [u8; 2] = packet.read(asked.l4 + tcp::DATA_OFFSET)?;
    if flags & tcp::RST != 0 {
        return Err(SUPPRESSED);
    }
    let payload_len = asked
        .end
        .wrapping_sub(asked.l4 + (data_offset >> 4) as usize * 4);
    let mut header = TcpHeader {
        sport: dport,
        dport: sport,
        sequence: [Be16(0); 2],
        acknowledgment: [Be16(0); 2],
        data_offset: 5 << 4,
        flags: tcp::RST,
        window: Be16(0),
        checksum: Be16(0),
        urgent: Be16(0),
    };
    if flags & tcp::ACK != 0 {
        header.sequence = acknowledgment;
    } else {
        let mut next = sequence.get().wrapping_add(payload_len as u32);
        next = next.wrapping_add((flags & tcp::SYN != 0) as u32 + (flags & tcp::FIN != 0) as u32);
        header.acknowledgment = [Be16::new((next >> 16) as u16), Be16::new(next as u16)];
        header.flags |= tcp::ACK;
    }
    let sum = checksum::sum(&header)
        + checksum::pseudo_header(&asked.dst, &asked.src, protocol::TCP, tcp::LEN as u16);
    header.checksum = Be16(!checksum::fold(sum));
    let l4 = l3 + F::HEADER_LEN;
    packet.resize(l4 + tcp::LEN)?;
    ip_header::<F, P>(packet, l3, asked, protocol::TCP, tcp::LEN)?;
    packet.write(l4, &header)
}

/// An ICMP error with the first `WORDS` 16-bit words of the packet quoted.
#[inline(always)]
fn error<F: Family, P: Packet, const WORDS: usize>(
    packet: &mut P,
    l3: usize,
    asked: &Asked<F>,
    answer: Answer,
) -> Result<(), Stop> {
    let quoted: [Be16; WORDS] = words(packet, l3)?;
    let (kind, code, mtu) = kind::<F>(answer);
    let len = icmp::LEN + WORDS * 2;
    let type_code = Be16::new((kind as u16) << 8 | code as u16);
    let mut sum = type_code.0 as u64 + Be16::new(mtu).0 as u64;
    for word in quoted {
        sum += word.0 as u64;
    }
    if F::VERSION == 6 {
        sum += checksum::pseudo_header(&asked.dst, &asked.src, F::ICMP, len as u16);
    }
    let header = [
        type_code,
        Be16(!checksum::fold(sum)),
        Be16(0),
        Be16::new(mtu),
    ];
    let l4 = l3 + F::HEADER_LEN;
    packet.resize(l4 + len)?;
    ip_header::<F, P>(packet, l3, asked, F::ICMP, len)?;
    packet.write(l4, &header)?;
    for (index, word) in quoted.iter().enumerate() {
        packet.write(l4 + icmp::LEN + index * 2, word)?;
    }
    Ok(())
}

#[inline(always)]
fn words<P: Packet, const WORDS: usize>(packet: &P, at: usize) -> Result<[Be16; WORDS], Stop> {
    let mut words = [Be16(0); WORDS];
    for (index, word) in words.iter_mut().enumerate() {
        *word = packet.read(at + index * 2)?;
    }
    Ok(words)
}

/// Type, code and MTU field.
#[inline(always)]
fn kind<F: Family>(answer: Answer) -> (u8, u8, u16) {
    if F::VERSION == 4 {
        match answer {
            Answer::Refused => (icmp::UNREACHABLE4, icmp::PORT_UNREACHABLE4, 0),
            Answer::TimeExceeded => (icmp::TIME_EXCEEDED4, 0, 0),
            Answer::TooBig(mtu) => (icmp::UNREACHABLE4, icmp::FRAGMENTATION_NEEDED4, mtu),
        }
    } else {
        match answer {
            Answer::Refused => (icmp::UNREACHABLE6, icmp::PORT_UNREACHABLE6, 0),
            Answer::TimeExceeded => (icmp::TIME_EXCEEDED6, 0, 0),
            Answer::TooBig(mtu) => (icmp::TOO_BIG6, 0, mtu),
        }
    }
}

/// A fresh IP header from the asked address to the asker.
#[inline(always)]
fn ip_header<F: Family, P: Packet>(
    packet: &mut P,
    l3: usize,
    asked: &Asked<F>,
    protocol: u8,
    payload_len: usize,
) -> Result<(), Stop> {
    let hops = Be16::new((TTL as u16) << 8 | protocol as u16);
    if F::VERSION == 6 {
        let next = Be16::new((protocol as u16) << 8 | TTL as u16);
        let start = [
            Be16::new(0x6000),
            Be16(0),
            Be16::new(payload_len as u16),
            next,
        ];
        packet.write(l3, &start)?;
        packet.write(l3 + ipv6::SRC, &asked.dst)?;
        return packet.write(l3 + ipv6::DST, &asked.src);
    }
    let total_len = Be16::new((ipv4::LEN + payload_len) as u16);
    let start = [Be16::new(0x4500), total_len, Be16(0), Be16(0), hops];
    let (src, dst) = (asked.dst.words()[0], asked.src.words()[0]);
    let sum = checksum::sum(&start) + src.0 as u64 + dst.0 as u64;
    packet.write(l3, &start)?;
    packet.write(l3 + ipv4::CHECKSUM, &Be16(!checksum::fold(sum)))?;
    packet.write(l3 + ipv4::SRC, &asked.dst)?;
    packet.write(l3 + ipv4::DST, &asked.src)
}

/// Back to whom it came from, on devices with a MAC header.
#[inline(always)]
fn swap_macs<P: Packet>(packet: &mut P, l3: usize) -> Result<(), Stop> {
    if l3 != ethernet::LEN {
        return Ok(());
    }
    let dst: [Be16; 3] = packet.read(ethernet::DST)?;
    let src: [Be16; 3] = packet.read(ethernet::SRC)?;
    packet.write(ethernet::DST, &src)?;
    packet.write(ethernet::SRC, &dst)
}
