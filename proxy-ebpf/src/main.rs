//! The BPF programs. Each is its hook's name and one call; see `hooks`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
    use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
    use proxy_common::Counter;
    use proxy_ebpf::Hook;
    use proxy_ebpf::hooks::{self, sock_addr, tc};
    use proxy_ebpf::socket::Call;
    use proxy_ebpf::wire::ethernet;

    #[classifier]
    pub fn tc_ingress(ctx: TcContext) -> i32 {
        tc::run(&ctx, Hook::Ingress, ethernet::LEN)
    }

    #[classifier]
    pub fn tc_egress(ctx: TcContext) -> i32 {
        tc::run(&ctx, Hook::Egress, ethernet::LEN)
    }

    #[classifier]
    pub fn tc_ingress_l3(ctx: TcContext) -> i32 {
        tc::run(&ctx, Hook::Ingress, 0)
    }

    #[classifier]
    pub fn tc_egress_l3(ctx: TcContext) -> i32 {
        tc::run(&ctx, Hook::Egress, 0)
    }

    #[xdp]
    pub fn xdp_ingress(ctx: XdpContext) -> u32 {
        hooks::xdp::run(&ctx)
    }

    #[cgroup_sock_addr(connect4)]
    pub fn connect4(ctx: SockAddrContext) -> i32 {
        sock_addr::dial4(&ctx, Call::Connect)
    }

    #[cgroup_sock_addr(connect6)]
    pub fn connect6(ctx: SockAddrContext) -> i32 {
        sock_addr::dial6(&ctx, Call::Connect)
    }

    #[cgroup_sock_addr(sendmsg4)]
    pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
        sock_addr::dial4(&ctx, Call::Send)
    }

    #[cgroup_sock_addr(sendmsg6)]
    pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
        sock_addr::dial6(&ctx, Call::Send)
    }

    #[cgroup_sock_addr(recvmsg4)]
    pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
        sock_addr::peer4(&ctx, Counter::SocketReceived)
    }

    #[cgroup_sock_addr(recvmsg6)]
    pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
        sock_addr::peer6(&ctx, Counter::SocketReceived)
    }

    #[cgroup_sock_addr(getpeername4)]
    pub fn getpeername4(ctx: SockAddrContext) -> i32 {
        sock_addr::peer4(&ctx, Counter::SocketPeerName)
    }

    #[cgroup_sock_addr(getpeername6)]
    pub fn getpeername6(ctx: SockAddrContext) -> i32 {
        sock_addr::peer6(&ctx, Counter::SocketPeerName)
    }

    /// The clock's low bits: run twice by the agent to learn the kernel's ticks per second.
    #[classifier]
    pub fn jiffies(_ctx: TcContext) -> i32 {
        // SAFETY: the helper has no arguments.
        (unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() } & 0x7fff_ffff) as i32
    }

    /// Loops on purpose: a surviving panic makes the verifier refuse the program.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
