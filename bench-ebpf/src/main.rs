//! The programs of `cargo xtask bench datapath`: wrappers, yardsticks, and targets that do nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
    use aya_ebpf::helpers::generated::bpf_redirect;
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use bench_ebpf::wrapper;
    use bench_ebpf::yardstick::{V4, V6, established, new};

    #[classifier]
    pub fn tc_wrapper(ctx: TcContext) -> i32 {
        wrapper::tc(&ctx)
    }

    #[xdp]
    pub fn xdp_wrapper(ctx: XdpContext) -> u32 {
        wrapper::xdp(&ctx)
    }

    #[classifier]
    pub fn tc_null(_ctx: TcContext) -> i32 {
        TC_ACT_OK
    }

    #[xdp]
    pub fn xdp_null(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    macro_rules! yardsticks {
        ($tc:ident, $xdp:ident, $yardstick:ident, $family:ty) => {
            #[classifier]
            pub fn $tc(ctx: TcContext) -> i32 {
                if !$yardstick::<$family>(ctx.data(), ctx.data_end()) {
                    return TC_ACT_SHOT;
                }
                // SAFETY: the context is the program's; the helper takes plain numbers.
                unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 }
            }

            #[xdp]
            pub fn $xdp(ctx: XdpContext) -> u32 {
                if $yardstick::<$family>(ctx.data(), ctx.data_end()) {
                    xdp_action::XDP_TX
                } else {
                    xdp_action::XDP_DROP
                }
            }
        };
    }

    yardsticks!(tc_yardstick4, xdp_yardstick4, established, V4);
    yardsticks!(tc_yardstick6, xdp_yardstick6, established, V6);
    yardsticks!(tc_yardstick_new4, xdp_yardstick_new4, new, V4);
    yardsticks!(tc_yardstick_new6, xdp_yardstick_new6, new, V6);

    /// Loops on purpose: a surviving panic makes the verifier refuse the program.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
