//! UDP sockets that the socket hooks connected to a backend which is gone (S-124, S-205, P-8).
//!
//! Their packets name the backend itself, so no packet path moves them. They are destroyed, in
//! every network namespace: the application gets an error and connects anew. Only sockets that
//! SOCKETS names are touched, by cookie and backend. It runs on a thread of its own, which may
//! enter namespaces, and only when a backend of a UDP service port is gone, after the new tables
//! are active (S-123).

mod diag;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use bytemuck::Pod;
use nix::sched::{CloneFlags, setns};
use proxy_common::socket::PEER_IS_BACKEND;
use proxy_common::{Addr4, Addr6, Backend, SocketEntry, SocketKey, protocol};

pub use self::diag::can_destroy;
use self::diag::{Diag, Peer};
use super::catalog::{FamilyNames, NAMES4, NAMES6};
use super::containers::{KernelArray, KernelHash};
use super::pin::{PinError, Pins};
use crate::family::IpFamily;

/// After a look, until the one that finds what was under way during the first.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The thread that destroys sockets; it ends when this is dropped.
#[derive(Debug)]
pub struct Destroyer {
    wake: SyncSender<()>,
}

impl Destroyer {
    /// Starts the thread over the pinned maps.
    pub fn start(pins: &Pins) -> Result<Self, StartError> {
        let sweeper = Sweeper {
            v4: Family::open(pins, &NAMES4)?,
            v6: Family::open(pins, &NAMES6)?,
        };
        let (wake, woken) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("udp-sockets".to_owned())
            .spawn(move || sweeper.run(&woken))?;
        Ok(Self { wake })
    }

    /// Has the sockets of lost backends destroyed, soon. Never blocks.
    pub fn wake(&self) {
        match self.wake.try_send(()) {
            // Full: a look that has not begun yet will see this change too.
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => {
                tracing::error!("UDP sockets of lost backends are not destroyed any more");
            }
        }
    }
}

/// The thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Maps.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No thread.
    #[error("starting the thread that destroys UDP sockets")]
    Thread(#[from] io::Error),
}

/// A socket, and the backend that it is connected to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Connected {
    cookie: [u32; 2],
    peer: Peer,
}

struct Sweeper {
    v4: Family<Addr4>,
    v6: Family<Addr6>,
}

impl Sweeper {
    fn run(&self, woken: &Receiver<()>) {
        let mut wait = None;
        loop {
            let event = match wait.take() {
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => woken.recv_timeout(wait),
            };
            match event {
                // A connect() that had chosen the backend may have told SOCKETS after this look.
                Ok(()) => wait = Some(SECOND_LOOK),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
        }
    }

    fn look(&self) {
        let lost = self.lost();
        if lost.is_empty() {
            return;
        }
        match sweep(&lost) {
            Ok(0) => {}
            Ok(destroyed) => tracing::info!(destroyed, "UDP sockets of lost backends"),
            Err(error) => tracing::warn!(%error, "network namespaces not listed"),
        }
    }

    fn lost(&self) -> BTreeSet<Connected> {
        let mut lost = self.v4.lost();
        lost.extend(self.v6.lost());
        lost
    }
}

struct Family<A: IpFamily> {
    sockets: KernelHash<SocketKey<A>, SocketEntry<A>>,
    backends: KernelArray<Backend<A>>,
}

impl<A: IpFamily> Family<A>
where
    SocketKey<A>: Pod,
    SocketEntry<A>: Pod,
    Backend<A>: Pod,
{
    fn open(pins: &Pins, names: &FamilyNames) -> Result<Self, PinError> {
        Ok(Self {
            sockets: KernelHash::open(pins, names.sockets)?,
            backends: KernelArray::open(pins, names.backends)?,
        })
    }

    /// UDP sockets whose backend has another generation than at the decision. Unconnected ones
    /// are among them; no socket table shows those as connected.
    fn lost(&self) -> BTreeSet<Connected> {
        let entries = self.sockets.entries().into_iter();
        let udp =
            entries.filter(|(key, _)| key.protocol == protocol::UDP && key.peer == PEER_IS_BACKEND);
        let lost = udp.filter(|(_, entry)| {
            let backend = self.backends.read(entry.backend);
            backend.is_none_or(|backend| backend.generation != entry.generation)
        });
        lost.map(|(key, _)| Connected {
            cookie: key.cookie,
            peer: Peer {
                addr: key.addr.to_ip().to_canonical(),
                port: key.port.get(),
            },
        })
        .collect()
    }
}

/// Destroys `lost` in every network namespace that a process is in. A namespace that cannot be
/// entered, or a socket that is gone meanwhile, does not keep the others.
fn sweep(lost: &BTreeSet<Connected>) -> io::Result<usize> {
    let mut destroyed = 0;
    for netns in namespaces()?.into_values() {
        let done = setns(&netns, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| sweep_here(lost));
        match done {
            Ok(count) => destroyed += count,
            Err(error) => tracing::warn!(%error, "UDP sockets of a namespace not looked through"),
        }
    }
    Ok(destroyed)
}

fn sweep_here(lost: &BTreeSet<Connected>) -> io::Result<usize> {
    let mut diag = Diag::open()?;
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for socket in diag.connected_udp(family)? {
            let connected = Connected {
                cookie: socket.cookie(),
                peer: socket.peer(),
            };
            if !lost.contains(&connected) {
                continue;
            }
            match diag.destroy(&socket) {
                Ok(()) => destroyed += 1,
                // Closed since it was listed.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    let peer = connected.peer.addr;
                    tracing::warn!(%error, %peer, "UDP socket not destroyed");
                }
            }
        }
    }
    Ok(destroyed)
}

/// The network namespaces of all processes, by inode.
fn namespaces() -> io::Result<BTreeMap<u64, File>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process {
            continue;
        }
        let path = path.join("ns/net");
        // A process that ends meanwhile takes its file away.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if !found.contains_key(&metadata.ino())
            && let Ok(file) = File::open(&path)
        {
            found.insert(metadata.ino(), file);
        }
    }
    Ok(found)
}
