//! A packet at the tc hooks.

use aya_ebpf::bindings::{__sk_buff, BPF_F_HDR_FIELD_MASK, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_pull_data,
};
use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::{Be16, Counter};

use super::direct::{self, Bounds, DirectBytes};
use super::{L4Change, L4Checksum, Packet, SEGMENTS_DIFFER};
use crate::Stop;
use crate::wire::checksum::{self, Delta};

/// Bytes that are made linear before the headers are read: MAC header, IPv6 with a few extension
/// headers or a quoted packet, TCP with options.
const LINEAR_LEN: u32 = 256;

/// An skb. Data pointers are read anew for each access, since helpers may move them.
pub struct SkbPacket {
    skb: *mut __sk_buff,
    is_ipv6: bool,
}

impl SkbPacket {
    /// The packet of this program run. What is not in its linear part is not read.
    ///
    /// # Safety
    /// `skb` is the context that the kernel gave the running program.
    #[inline(always)]
    pub unsafe fn as_it_is(skb: *mut __sk_buff, is_ipv6: bool) -> Self {
        Self { skb, is_ipv6 }
    }

    /// The packet of this program run, with its headers in the linear part.
    ///
    /// # Safety
    /// `skb` is the context that the kernel gave the running program.
    #[inline(always)]
    pub unsafe fn new(skb: *mut __sk_buff, is_ipv6: bool) -> Self {
        let packet = Self { skb, is_ipv6 };
        // SAFETY: the context is valid for the run (caller).
        unsafe {
            let linear = (*skb).data_end.wrapping_sub((*skb).data);
            let wanted = if (*skb).len < LINEAR_LEN {
                (*skb).len
            } else {
                LINEAR_LEN
            };
            // What is pulled out of such a segment is missing in it. The headers that they share
            // are linear.
            let are_segments_whole = (*skb).gso_size != SEGMENTS_DIFFER;
            if linear < wanted && are_segments_whole {
                // On failure the reads fail as truncated.
                bpf_skb_pull_data(skb, wanted);
            }
        }
        packet
    }

    #[inline(always)]
    fn bounds(&self) -> Bounds {
        // SAFETY: the context is valid for the run (`new`).
        unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) }
    }
}

impl Packet for SkbPacket {
    type Bytes<'a> = DirectBytes<'a>;

    #[inline(always)]
    fn bytes(&mut self) -> DirectBytes<'_> {
        // SAFETY: bounds of this run's packet.
        unsafe { DirectBytes::new(self.bounds()) }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is valid for the run (`new`).
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, at: usize) -> Result<T, Stop> {
        // SAFETY: bounds of this run's packet.
        unsafe { direct::read(self.bounds(), at) }
    }

    #[inline(always)]
    fn write<T: NoUninit>(&mut self, at: usize, value: &T) -> Result<(), Stop> {
        // SAFETY: bounds of this run's packet.
        unsafe { direct::write(self.bounds(), at, value) }
    }

    #[inline(always)]
    fn update_l4_checksum(
        &mut self,
        at: usize,
        change: L4Change,
        kind: L4Checksum,
    ) -> Result<(), Stop> {
        let mangled = match kind {
            L4Checksum::Udp => BPF_F_MARK_MANGLED_0 as u64,
            L4Checksum::Plain | L4Checksum::NoPseudoHeader => 0,
        };
        let payload = change.payload.folded_32() as u64;
        let addresses = change.addresses.folded_32();
        let has_pseudo = !matches!(kind, L4Checksum::NoPseudoHeader);
        // SAFETY: the context is valid for the run; the kernel checks the offset. With `from` 0 and
        // no size, `to` is a difference.
        unsafe {
            if has_pseudo {
                let flags = BPF_F_PSEUDO_HDR as u64 | mangled;
                replace(self.skb, at, addresses as u64, flags)?;
                if self.is_ipv6 {
                    // The helper takes the pseudo header's change off the sum that a device made of
                    // the whole packet, which is right in IPv4 only: there the header checksum
                    // takes up the addresses. Fails harmlessly where there is no such sum.
                    bpf_csum_update(self.skb, addresses);
                }
            }
            replace(self.skb, at, payload, mangled)
        }
    }

    /// Each helper that changes a packet costs as much as a look-up, and two are needed where it is
    /// not known who finishes the checksum. A packet of one segment tells: what it holds is not the
    /// sum of the pseudo header, so nobody has to finish it. One in 65,536 is taken for one that
    /// may be unfinished, and goes by the helpers.
    #[inline(always)]
    fn update_whole_checksum(
        &mut self,
        at: usize,
        change: L4Change,
        kind: L4Checksum,
        partial: Be16,
    ) -> Result<(), Stop> {
        let old: Be16 = self.read(at)?;
        if old == partial || self.segment_len() != 0 {
            return self.update_l4_checksum(at, change, kind);
        }
        self.write(at, &checksum::updated(old, change, kind))?;
        self.told_addresses(change.addresses);
        Ok(())
    }

    /// In IPv4 what the addresses change in the header is taken up by the header's own checksum,
    /// and then by the transport's once more. In IPv6 only by the latter, so nothing changes.
    #[inline(always)]
    fn told_addresses(&mut self, change: Delta) {
        if !self.is_ipv6 {
            // SAFETY: the context is valid for the run. Fails harmlessly where there is no sum.
            unsafe { bpf_csum_update(self.skb, !change.folded_32()) };
        }
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Result<(), Stop> {
        // SAFETY: the context is valid for the run.
        if unsafe { bpf_skb_change_tail(self.skb, len as u32, 0) } != 0 {
            return Err(Stop::Drop(Counter::WriteFailed));
        }
        Ok(())
    }

    #[inline(always)]
    fn segment_len(&self) -> u32 {
        // SAFETY: the context is valid for the run.
        unsafe { (*self.skb).gso_size }
    }
}

/// `bpf_l4_csum_replace` with a difference.
#[inline(always)]
unsafe fn replace(skb: *mut __sk_buff, at: usize, delta: u64, flags: u64) -> Result<(), Stop> {
    const { assert!(BPF_F_HDR_FIELD_MASK == 15) };
    // SAFETY: the caller's context.
    if unsafe { bpf_l4_csum_replace(skb, at as u32, 0, delta, flags) } != 0 {
        return Err(Stop::Drop(Counter::WriteFailed));
    }
    Ok(())
}
