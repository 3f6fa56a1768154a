//! Monitors: clients of the agent's socket that are told of events as they happen (decision 0024).
//!
//! The hub is a task of its own: it reads EVENTS only while a client is there, and keeps the lease
//! of the datapath. Every client has a queue; what does not fit is lost to it, and it is told how
//! much. The agent's loop never waits for any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{io, mem};

use jiff::Timestamp;
use proxy_common::Event;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::names::Names;
use super::view;
use crate::datapath::event_ring::{EventRing, EventsError};
use crate::datapath::pin::Pins;
use crate::error_chain;
use crate::monitor::{Clock, Filter, Line, Published, ServiceChange, changes, view as records};
use crate::pipeline::Reconciler;
use crate::pipeline::status::ServicePortStatus;

/// Between two renewals of the lease.
const RENEWED: Duration = Duration::from_secs(1);
/// Lines that may wait for one client; the others are lost.
const QUEUED_MAX: usize = 4096;
/// Changes of Services that may wait for the hub.
const CHANGES_MAX: usize = 1024;
/// Events taken at once, before other tasks get their turn.
const BATCH_MAX: usize = 256;
/// Clients that may wait for the hub.
const ARRIVALS_MAX: usize = 16;

/// Where clients go.
pub type Arrivals = mpsc::Sender<Client>;

/// The agent's end.
#[derive(Debug)]
pub(super) struct Monitors {
    shared: Arc<Shared>,
    wanted: mpsc::Receiver<()>,
    names: watch::Sender<Arc<Names>>,
    changes: mpsc::Sender<ServiceChange>,
    /// What clients know of Services.
    published: Option<Published>,
}

#[derive(Debug, Default)]
struct Shared {
    /// A client is there.
    is_on: AtomicBool,
    /// Changes of Services that found no room.
    lost: AtomicU64,
}

impl Monitors {
    /// Starts the hub. Needs a tokio runtime.
    pub(super) fn start(pins: &Pins) -> (Self, Arrivals) {
        let (arrivals, arrived) = mpsc::channel(ARRIVALS_MAX);
        let (wants, wanted) = mpsc::channel(1);
        let (names, known) = watch::channel(Arc::default());
        let (changes, changed) = mpsc::channel(CHANGES_MAX);
        let shared = Arc::new(Shared::default());
        let hub = Hub {
            pins: pins.clone(),
            shared: shared.clone(),
            ring: None,
            clients: Vec::new(),
            names: known,
            clock: Clock::now(),
        };
        tokio::spawn(hub.run(arrived, wants, changed));
        let monitors = Self {
            shared,
            wanted,
            names,
            changes,
            published: None,
        };
        (monitors, arrivals)
    }

    /// Waits for the first client: it has to be told what Services there are.
    pub(super) async fn wanted(&mut self) -> Option<()> {
        self.wanted.recv().await
    }

    /// Tells what Services have, and how that has changed, if somebody listens.
    pub(super) fn tell(&mut self, reconciler: &Reconciler) {
        if !self.shared.is_on.load(Ordering::Relaxed) {
            self.published = None;
            return;
        }
        let ports = reconciler.service_ports();
        self.names.send_replace(Arc::new(names(&ports)));
        let after = Published::of(&ports);
        let time = records::time_text(Timestamp::now());
        let changes = self.published.as_ref().map(|it| after.changes(it, &time));
        self.published = Some(after);
        for change in changes.into_iter().flatten() {
            if self.changes.try_send(change).is_err() {
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn names(ports: &[ServicePortStatus]) -> Names {
    let owners = view::owners(ports).into_iter();
    owners
        .map(|(dialed, name)| (dialed, changes::service_text(&name)))
        .collect()
}

/// One client.
#[derive(Debug)]
pub struct Client {
    filter: Filter,
    lines: mpsc::Sender<Arc<str>>,
    is_started: bool,
    /// Events that did not fit in its queue.
    lost: u64,
    /// Events of the datapath since the last one that its sampling has kept.
    skipped: u32,
}

impl Client {
    fn new(filter: Filter, lines: mpsc::Sender<Arc<str>>) -> Self {
        Self {
            filter,
            lines,
            is_started: false,
            lost: 0,
            skipped: 0,
        }
    }

    /// Tells of one event, of which the datapath tells one in `one_in`.
    fn tell(&mut self, line: &Line, one_in: u32) {
        let is_sampled = !matches!(line, Line::ServiceChanged(_));
        if !self.is_started || is_sampled && !self.keeps(one_in) || !self.filter.wants(line) {
            return;
        }
        if self.lost > 0 {
            let events = self.lost;
            if !self.send(&Line::Lost { events }) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if !self.send(line) {
            self.lost += 1;
        }
    }

    fn keeps(&mut self, one_in: u32) -> bool {
        self.skipped += 1;
        let is_kept = self.skipped >= self.filter.one_in.max(1) / one_in.max(1);
        if is_kept {
            self.skipped = 0;
        }
        is_kept
    }

    fn send(&self, line: &Line) -> bool {
        // Plain data: this cannot fail.
        let text = serde_json::to_string(line).unwrap_or_default();
        self.lines.try_send(text.into()).is_ok()
    }
}

/// Sends to a client what it wants, until it leaves.
pub(super) async fn follow(
    mut stream: UnixStream,
    filter: Filter,
    arrivals: &Arrivals,
) -> io::Result<()> {
    let (lines, mut queue) = mpsc::channel::<Arc<str>>(QUEUED_MAX);
    let Ok(()) = arrivals.send(Client::new(filter, lines)).await else {
        return Ok(());
    };
    let (mut reader, mut writer) = stream.split();
    let mut nothing = [0; 1];
    loop {
        tokio::select! {
            // It says nothing more, so whatever comes is its end.
            _ = reader.read(&mut nothing) => return Ok(()),
            line = queue.recv() => {
                let Some(line) = line else { return Ok(()) };
                writer.write_all(format!("{line}\n").as_bytes()).await?;
            }
        }
    }
}

/// Reads what the datapath tells, and gives it to clients.
struct Hub {
    pins: Pins,
    shared: Arc<Shared>,
    ring: Option<EventRing>,
    clients: Vec<Client>,
    names: watch::Receiver<Arc<Names>>,
    clock: Clock,
}

impl Hub {
    /// Until the agent ends.
    async fn run(
        mut self,
        mut arrived: mpsc::Receiver<Client>,
        wants: mpsc::Sender<()>,
        mut changed: mpsc::Receiver<ServiceChange>,
    ) {
        while let Some(client) = arrived.recv().await {
            self.clients.push(client);
            self.names.mark_unchanged();
            self.shared.is_on.store(true, Ordering::Relaxed);
            if wants.send(()).await.is_err() {
                return;
            }
            // What Services there are comes before what happens to them.
            let _ = self.names.changed().await;
            self.serve(&mut arrived, &mut changed).await;
            self.shared.is_on.store(false, Ordering::Relaxed);
            self.ring = None;
        }
    }

    /// Until the last client is gone.
    async fn serve(
        &mut self,
        arrived: &mut mpsc::Receiver<Client>,
        changed: &mut mpsc::Receiver<ServiceChange>,
    ) {
        let mut ticks = interval(RENEWED);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.clients.is_empty() {
            tokio::select! {
                _ = ticks.tick() => self.renew(),
                Some(client) = arrived.recv() => {
                    self.clients.push(client);
                    ticks.reset_after(Duration::ZERO);
                }
                Some(change) = changed.recv() => self.tell(&Line::ServiceChanged(change)),
                events = take(&mut self.ring) => match events {
                    Ok(events) => self.tell_all(&events),
                    Err(error) => self.fail(&EventsError::Kernel {
                        what: "waiting for events",
                        source: error,
                    }),
                },
            }
            tokio::task::yield_now().await;
        }
    }

    /// Forgets clients that have left, renews the lease, and lets new clients begin.
    fn renew(&mut self) {
        self.clients.retain(|client| !client.lines.is_closed());
        if self.clients.is_empty() {
            return;
        }
        self.clock = Clock::now();
        if let Err(error) = self.renew_lease() {
            self.fail(&error);
        }
    }

    fn renew_lease(&mut self) -> Result<(), EventsError> {
        if self.ring.is_none() {
            self.ring = EventRing::open(&self.pins)?;
        }
        let (kinds, one_in) = (self.kinds(), self.one_in());
        // A monitor that has read the pins while no agent ran: it notices us, and comes here.
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        ring.lease(kinds, one_in)?;
        let events = ring.lost() + self.shared.lost.swap(0, Ordering::Relaxed);
        for client in &mut self.clients {
            if !mem::replace(&mut client.is_started, true) {
                client.send(&Line::Started);
            } else if events > 0 && !client.send(&Line::Lost { events }) {
                client.lost += events;
            }
        }
        Ok(())
    }

    /// What any client wants.
    fn kinds(&self) -> u32 {
        let all = self.clients.iter().map(|client| client.filter.kinds());
        all.fold(0, |all, kinds| all | kinds)
    }

    /// What the sampling of every client is a multiple of.
    fn one_in(&self) -> u32 {
        let all = self
            .clients
            .iter()
            .map(|client| client.filter.one_in.max(1));
        all.reduce(greatest_common_divisor).unwrap_or(1)
    }

    fn tell_all(&mut self, events: &[Event]) {
        let names = self.names.borrow().clone();
        for event in events {
            if let Some(line) = records::line(event, self.clock, &names) {
                self.tell(&line);
            }
        }
    }

    fn tell(&mut self, line: &Line) {
        let one_in = self.one_in();
        for client in &mut self.clients {
            client.tell(line, one_in);
        }
    }

    /// Tells all clients why nothing can be told, and lets go of them.
    fn fail(&mut self, error: &EventsError) {
        let error = error_chain(error);
        tracing::warn!(error, "monitors are told nothing");
        let line = Line::Failed { error };
        for client in self.clients.drain(..) {
            client.send(&line);
        }
        self.ring = None;
    }
}

async fn take(ring: &mut Option<EventRing>) -> io::Result<Vec<Event>> {
    match ring {
        Some(ring) => ring.take(BATCH_MAX).await,
        None => std::future::pending().await,
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::{changed, flow};

    fn client(one_in: u32, room: usize) -> (Client, mpsc::Receiver<Arc<str>>) {
        let (lines, queue) = mpsc::channel(room);
        let filter = Filter {
            one_in,
            ..Filter::default()
        };
        let mut client = Client::new(filter, lines);
        client.is_started = true;
        (client, queue)
    }

    fn next(queue: &mut mpsc::Receiver<Arc<str>>) -> Option<Line> {
        let text = queue.try_recv().ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_slow_client_is_told_how_much_it_has_lost() {
        let (mut client, mut queue) = client(1, 2);
        for _ in 0..5 {
            client.tell(&flow(), 1);
        }
        assert_eq!(next(&mut queue), Some(flow()));
        assert_eq!(next(&mut queue), Some(flow()));
        assert_eq!(next(&mut queue), None);
        client.tell(&flow(), 1);
        assert_eq!(next(&mut queue), Some(Line::Lost { events: 3 }));
        assert_eq!(next(&mut queue), Some(flow()));
        assert_eq!(next(&mut queue), None);
    }

    #[test]
    fn each_client_has_its_own_sampling() {
        let (mut client, mut queue) = client(6, 16);
        // The datapath tells one in two already.
        for _ in 0..7 {
            client.tell(&flow(), 2);
        }
        assert_eq!(queue.len(), 2);
        while next(&mut queue).is_some() {}
        client.tell(&changed(), 2);
        assert_eq!(queue.len(), 1, "changes of Services are not sampled");
        assert_eq!(
            [(6, 4), (5, 3), (8, 8)].map(|(a, b)| greatest_common_divisor(a, b)),
            [2, 1, 8]
        );
    }

    #[test]
    fn nothing_is_told_before_a_client_has_begun() {
        let (mut client, mut queue) = client(1, 4);
        client.is_started = false;
        client.tell(&flow(), 1);
        assert_eq!(next(&mut queue), None);
    }
}
