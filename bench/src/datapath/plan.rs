//! From a packet to a [`Plan`] of the wrapper.

use bench_ebpf::{KEPT, NOWHERE, PACKET_MIN, Plan};
use proxy_common::protocol;
use proxy_ebpf::Family;

use super::what::Varied;

/// Where the IP header begins.
const L3: usize = 14;

/// The wrapper's plan for a packet without options, varied among `flows` flows; 0: each is new.
pub fn plan<F: Family>(bytes: &[u8], ip_protocol: u8, varied: Varied, flows: u32) -> Plan {
    assert!(bytes.len() >= PACKET_MIN, "{} bytes", bytes.len());
    let l4 = L3 + F::HEADER_LEN;
    let (src, dst) = if F::VERSION == 4 {
        (L3 + 12, L3 + 16)
    } else {
        (L3 + 8 + 12, L3 + 24 + 12)
    };
    let (addr_at, port_at) = match varied {
        Varied::Source => (src, l4),
        Varied::Destination => (dst, l4 + 2),
    };
    let l4_sum_at = if ip_protocol == protocol::UDP {
        l4 + 6
    } else {
        l4 + 16
    };
    let l3_sum_at = if F::VERSION == 4 {
        L3 + 10
    } else {
        NOWHERE as usize
    };
    let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let addr_words = [word(addr_at), word(addr_at + 2)];
    let mut packet = [0; KEPT];
    let kept = bytes.len().min(KEPT);
    packet[..kept].copy_from_slice(&bytes[..kept]);
    Plan {
        packet,
        state: 1,
        flows,
        addr: super::tables::first_client::<F>(),
        len: bytes.len() as u32,
        addr_at: addr_at as u32,
        port_at: port_at as u32,
        l4_sum_at: l4_sum_at as u32,
        l3_sum_at: l3_sum_at as u32,
        l4_sum: without(
            word(l4_sum_at),
            &[addr_words[0], addr_words[1], word(port_at)],
        ),
        l3_sum: if F::VERSION == 4 {
            without(word(l3_sum_at), &addr_words)
        } else {
            0
        },
    }
}

/// The sum behind a checksum field, without some of the words that it covers (RFC 1071).
fn without(checksum: u16, words: &[u16]) -> u32 {
    let rest: u32 = words.iter().map(|word| u32::from(!word)).sum();
    u32::from(!checksum) + rest
}

#[cfg(test)]
mod tests {
    use ::tests::cases::build::{internet_checksum, transport_checksum};
    use ::tests::cases::world::CaseFamily;
    use proxy_ebpf::{V4, V6};

    use super::super::programs::Program;
    use super::super::what::ALL;
    use super::*;

    /// Every checksum of a varied packet is the one that all of its bytes give.
    fn check<F: CaseFamily>(src_at: usize, addr_len: usize) {
        for what in ALL {
            for ip_protocol in [protocol::TCP, protocol::UDP] {
                let bytes = what.packet(Program::Tc, ip_protocol).bytes::<F>();
                let mut plan = plan::<F>(&bytes, ip_protocol, what.varied(), 0);
                for index in [0, 1, 32_768, 1_000_000, 4_000_000_000] {
                    plan.set_flow(index);
                    let mut bytes = bytes.clone();
                    bytes[..bench_ebpf::WRITTEN]
                        .copy_from_slice(&plan.packet[..bench_ebpf::WRITTEN]);
                    if F::VERSION == 4 {
                        assert_eq!(internet_checksum(&bytes[L3..L3 + 20]), 0, "{what:?}");
                    }
                    let (src, rest) = bytes[src_at..].split_at(addr_len);
                    let transport = &bytes[L3 + F::HEADER_LEN..];
                    let sum = transport_checksum(src, &rest[..addr_len], ip_protocol, transport);
                    assert!(
                        sum == 0 || sum == 0xffff,
                        "{what:?} {ip_protocol}: {sum:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn varied_packet_has_right_checksums() {
        check::<V4>(L3 + 12, 4);
        check::<V6>(L3 + 8, 16);
    }
}
