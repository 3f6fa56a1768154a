//! tc ingress and egress.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head};
use aya_ebpf::programs::TcContext;
use proxy_common::{Be16, Counter};

use super::register::{pack, unpack};
use super::subprograms::subprograms;
use super::{log, steps};
use crate::pipeline::{Step, Steps};
use crate::tables::bpf::{Maps, config, count};
use crate::wire::ethernet;
use crate::{Answer, Family, Hook, Tables, V4, V6, Verdict, pipeline};

/// Runs the pipeline on an skb at `hook`; `l3` is the length of the MAC header.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook, l3: usize) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel gave the context to this program run.
    let protocol = Be16(unsafe { (*skb).protocol } as u16);
    if is_redirected(skb) {
        count(Counter::Redirected);
        return TC_ACT_OK;
    }
    let (verdict, reason) = if is_tagged(skb) {
        (Verdict::Pass, Counter::Tagged)
    } else if protocol == V4::ETHERTYPE {
        pipeline::run(&mut Subprograms4 {
            ctx: skb,
            hook: hook as u32,
            l3: l3 as u32,
        })
    } else if protocol == V6::ETHERTYPE {
        pipeline::run(&mut Subprograms6 {
            ctx: skb,
            hook: hook as u32,
            l3: l3 as u32,
        })
    } else {
        (Verdict::Pass, Counter::NotIp)
    };
    count(reason);
    act(skb, hook, l3, verdict)
}

subprograms!(*mut __sk_buff);

/// True for a packet with a VLAN's tag beside it, which a redirect would keep (IEEE 802.1Q): it
/// belongs to the VLAN's device. VLAN 0 says no more than a priority.
#[inline(always)]
fn is_tagged(skb: *mut __sk_buff) -> bool {
    const ID: u32 = 0xfff;
    // SAFETY: the kernel gave the context to this program run.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & ID != 0 }
}

/// True for a packet that one of our programs has redirected; its mark is cleared (P-3).
#[inline(always)]
fn is_redirected(skb: *mut __sk_buff) -> bool {
    let Some(config) = config() else { return false };
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        if (*skb).mark & config.redirect_mark == 0 {
            return false;
        }
        (*skb).mark &= !config.redirect_mark;
    }
    true
}

#[inline(always)]
fn set_redirected(skb: *mut __sk_buff) {
    if let Some(config) = config() {
        // SAFETY: the kernel gave the context to this program run.
        unsafe { (*skb).mark |= config.redirect_mark };
    }
}

#[inline(always)]
fn act(skb: *mut __sk_buff, hook: Hook, l3: usize, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Return => {
            set_redirected(skb);
            // What came in goes out; what a process of this node sent comes in.
            let flags = match hook {
                Hook::Ingress | Hook::Xdp => 0,
                Hook::Egress => BPF_F_INGRESS as u64,
            };
            // SAFETY: the helper takes plain numbers.
            unsafe { bpf_redirect((*skb).ifindex, flags) as i32 }
        }
        Verdict::Redirect(ifindex) => {
            set_redirected(skb);
            // SAFETY: the context is the program's; no next hop given: the kernel looks it up.
            unsafe {
                if l3 == 0 && bpf_skb_change_head(skb, ethernet::LEN as u32, 0) != 0 {
                    return TC_ACT_SHOT;
                }
                bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
            }
        }
        Verdict::Deliver(ifindex) => deliver(skb, ifindex, l3),
    }
}

/// Into the ingress of `ifindex`, addressed to its MAC: else the stack takes the packet for
/// somebody else's.
#[inline(always)]
fn deliver(skb: *mut __sk_buff, ifindex: u32, l3: usize) -> i32 {
    set_redirected(skb);
    let Some(interface) = Tables::<V4>::interface(&Maps, ifindex) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context is the program's; bounds are checked before the writes.
    unsafe {
        if l3 == 0 && bpf_skb_change_head(skb, ethernet::LEN as u32, 0) != 0 {
            return TC_ACT_SHOT;
        }
        let ethertype = (*skb).protocol as u16;
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + ethernet::LEN > end {
            return TC_ACT_SHOT;
        }
        ((data + ethernet::DST) as *mut [u8; 6]).write_unaligned(interface.mac);
        ((data + ethernet::ETHERTYPE) as *mut u16).write_unaligned(ethertype);
        bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32
    }
}
