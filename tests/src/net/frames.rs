//! Frames as they are, tags and all, out by a link.

use std::ffi::CString;
use std::mem;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Netns;

impl Netns {
    /// Sends `frame` by `link`, so many times.
    pub fn send_frames(&self, link: &str, frame: &[u8], times: u32) -> Result<()> {
        let send = || -> Result<()> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("a packet socket")?;
            let to = address(link)?;
            for _ in 0..times {
                let sent = socket.send_to(frame, &to).context("sending a frame")?;
                ensure!(sent == frame.len(), "{sent} of {} bytes", frame.len());
            }
            Ok(())
        };
        self.enter(send)?
            .with_context(|| format!("by {link} of {}", self.name()))
    }
}

/// The address of a link in the namespace of the calling thread.
fn address(link: &str) -> Result<SockAddr> {
    let name = CString::new(link)?;
    // SAFETY: a text that ends with 0, which the call does not keep.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(ifindex != 0, "there is no link {link}");
    let fill = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        // SAFETY: the storage has room for every kind of address, and `len` is valid.
        unsafe {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as libc::sa_family_t;
            address.sll_ifindex = ifindex as i32;
            address.sll_halen = 6;
            *len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        }
        Ok(())
    };
    // SAFETY: the closure fills in an address of its kind, and its length.
    let (_, address) = unsafe { SockAddr::try_init(fill) }?;
    Ok(address)
}
