//! A tunnel without MAC headers between two namespaces: a tun device in each, and this process
//! carrying the packets. It stands for ipip and wireguard, which the running kernel may lack.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::Netns;

/// Largest packet that a tun device gives.
const PACKET_MAX: usize = 65_536;
/// How soon the threads notice that the tunnel is dropped, in milliseconds.
const STOP_MS: i32 = 100;

/// Both ends; dropping it ends the tunnel and removes the devices.
#[derive(Debug)]
pub struct Tunnel {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device called `name` in each namespace and connects them.
    pub fn new(name: &str, ends: [&Netns; 2]) -> Result<Self> {
        let [near, far] = [device(ends[0], name)?, device(ends[1], name)?];
        let is_over = Arc::new(AtomicBool::new(false));
        let directions = [(near.try_clone()?, far.try_clone()?), (far, near)];
        let threads = directions.map(|(from, to)| {
            let is_over = is_over.clone();
            std::thread::spawn(move || carry(from, to, &is_over))
        });
        Ok(Self {
            is_over,
            threads: threads.into(),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so.
            let _ = thread.join();
        }
    }
}

/// A tun device of this process in `netns`; it goes with the last handle of the file.
fn device(netns: &Netns, name: &str) -> Result<File> {
    let opened = netns.enter(|| open(name))?;
    opened.with_context(|| format!("making the tun device {name}"))
}

fn open(name: &str) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is valid for the call, which keeps no pointer to it.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file)
}

fn carry(mut from: File, mut to: File, is_over: &AtomicBool) {
    let mut packet = vec![0; PACKET_MAX];
    while !is_over.load(Ordering::Relaxed) {
        let mut waiting = libc::pollfd {
            fd: from.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        if unsafe { libc::poll(&mut waiting, 1, STOP_MS) } != 1 {
            continue;
        }
        if let Ok(len) = from.read(&mut packet) {
            // A device that is down drops packets, as a link would.
            let _ = to.write(&packet[..len]);
        }
    }
}
