//! XDP: the path of what can be answered at once, before the stack sees it.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use proxy_common::{Be16, Counter};

use super::register::{pack, unpack};
use super::subprograms::subprograms;
use super::{log, steps};
use crate::packet::xdp::XdpPacket;
use crate::pipeline::{Step, Steps};
use crate::tables::bpf::count;
use crate::wire::ethernet;
use crate::{Answer, Family, Hook, Packet as _, V4, V6, Verdict, pipeline};

/// Runs the pipeline on a frame. What passes is as it came, and tc counts why it ended (P-10).
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let ctx = ctx.ctx;
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { XdpPacket::new(ctx) };
    let protocol = packet.read(ethernet::ETHERTYPE).unwrap_or(Be16(0));
    let (hook, l3) = (Hook::Xdp as u32, ethernet::LEN as u32);
    if protocol == V4::ETHERTYPE {
        let (verdict, reason) = pipeline::run(&mut Subprograms4 { ctx, hook, l3 });
        act(ctx, verdict, reason)
    } else if protocol == V6::ETHERTYPE {
        let (verdict, reason) = pipeline::run(&mut Subprograms6 { ctx, hook, l3 });
        act(ctx, verdict, reason)
    } else {
        count(Counter::XdpPassed);
        XDP_PASS
    }
}

subprograms!(*mut xdp_md);

#[inline(always)]
fn act(ctx: *mut xdp_md, verdict: Verdict, reason: Counter) -> u32 {
    let action = match verdict {
        // Nothing is delivered past the stack from here.
        Verdict::Pass | Verdict::Deliver(_) => {
            count(Counter::XdpPassed);
            return XDP_PASS;
        }
        Verdict::Drop => XDP_DROP,
        Verdict::Return => XDP_TX,
        Verdict::Redirect(ifindex) => send(ctx, ifindex),
    };
    count(reason);
    count(Counter::XdpAnswered);
    action
}

/// Out by `ifindex`: the frame is addressed to the next hop already.
#[inline(always)]
fn send(ctx: *mut xdp_md, ifindex: u32) -> u32 {
    // SAFETY: the context is the program's; the helper takes plain numbers.
    unsafe {
        if ifindex == (*ctx).ingress_ifindex {
            XDP_TX
        } else {
            bpf_redirect(ifindex, 0) as u32
        }
    }
}
