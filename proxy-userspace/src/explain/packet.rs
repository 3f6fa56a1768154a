//! The bytes of a packet that starts a connection.

use proxy_common::Tuple;
use proxy_common::protocol;
use proxy_ebpf::Family;
use proxy_ebpf::packet::host::HostPacket;
use proxy_ebpf::wire::{ipv4, ipv6, tcp, udp};

/// Length of an SCTP common header with an INIT chunk (RFC 9260).
const SCTP_LEN: usize = 12 + 20;
/// TTL or hop limit.
const TTL: u8 = 64;

/// A packet from its IP header on. Checksums are left 0: no stage verifies one.
pub fn starting<F: Family>(tuple: &Tuple<F::Addr>, number: u8) -> HostPacket {
    let len = match number {
        protocol::TCP => tcp::LEN,
        protocol::UDP => udp::LEN,
        _ => SCTP_LEN,
    };
    let mut body = vec![0; len];
    body[..2].copy_from_slice(bytemuck::bytes_of(&tuple.sport));
    body[2..4].copy_from_slice(bytemuck::bytes_of(&tuple.dport));
    match number {
        protocol::TCP => {
            body[tcp::DATA_OFFSET] = 5 << 4;
            body[tcp::FLAGS] = tcp::SYN;
        }
        protocol::UDP => body[4..6].copy_from_slice(&(len as u16).to_be_bytes()),
        // The type of the first chunk.
        _ => body[12] = 1,
    }
    let mut bytes = vec![0; F::HEADER_LEN];
    let (src, dst) = (
        bytemuck::bytes_of(&tuple.src),
        bytemuck::bytes_of(&tuple.dst),
    );
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    if F::VERSION == 4 {
        put(ipv4::VERSION_IHL, &[0x45]);
        put(ipv4::TOTAL_LEN, &((ipv4::LEN + len) as u16).to_be_bytes());
        put(ipv4::TTL, &[TTL, number]);
        put(ipv4::SRC, src);
        put(ipv4::DST, dst);
    } else {
        put(0, &[0x60]);
        put(ipv6::PAYLOAD_LEN, &(len as u16).to_be_bytes());
        put(ipv6::NEXT_HEADER, &[number, TTL]);
        put(ipv6::SRC, src);
        put(ipv6::DST, dst);
    }
    bytes.extend(body);
    HostPacket::new(bytes)
}
