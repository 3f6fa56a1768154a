//! `shunt monitor`.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use proxy_common::{Addr4, Addr6};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::Reader;
use super::args::MonitorArgs;
use super::form::Form;
use crate::agent::names::Names;
use crate::agent::socket;
use crate::datapath::event_ring::EventRing;
use crate::datapath::maps::KernelMaps;
use crate::datapath::pin::Pins;
use crate::family::IpFamily;
use crate::maps::FamilyMaps;
use crate::monitor::{Clock, Filter, Line, view};

/// Between two renewals of the lease, and two looks for an agent.
const RENEWED: Duration = Duration::from_secs(1);
/// An agent that dies still takes connections for a moment.
const UNANSWERED_MAX: u32 = 3;
/// Between two of them.
const UNANSWERED_PACE: Duration = Duration::from_millis(200);
/// Events taken at once.
const BATCH_MAX: usize = 256;

/// What ends a source of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// Enough was printed, or nobody reads.
    Enough,
    /// The agent has ended, or one has come.
    Agent,
    /// The agent has ended before it began.
    Unanswered,
}

/// Prints events as they happen, until a signal comes, nobody reads or enough were printed.
pub fn show(args: &MonitorArgs) -> anyhow::Result<()> {
    let pins = Pins::at(&args.query.bpffs);
    if !pins.exist() {
        bail!(
            "nothing is pinned below {}: start an agent, or name its folder by --bpffs",
            pins.root().display()
        );
    }
    let filter = Filter {
        service: args.service.clone(),
        backend: args.backend.clone(),
        types: args.types.clone(),
        reasons: args.reasons.clone(),
        one_in: args.sample,
    };
    let printer = Printer {
        form: args.query.output.form(),
        left: args.count,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(until_signal(&pins, &filter, printer))
}

async fn until_signal(pins: &Pins, filter: &Filter, printer: Printer) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        done = listen(pins, filter, printer) => done,
    }
}

/// By the agent while one runs, and else by the pins.
async fn listen(pins: &Pins, filter: &Filter, mut printer: Printer) -> anyhow::Result<()> {
    let path = socket::path(pins).context("finding the agent's socket")?;
    let mut unanswered = 0;
    loop {
        let stream = socket::monitor(&path, filter)
            .await
            .with_context(|| format!("asking the agent at {}", path.display()))?;
        let ended = match stream {
            Some(stream) => by_agent(stream, &mut printer).await?,
            None => by_pins((pins, &path), filter, &mut printer).await?,
        };
        match ended {
            Ended::Enough => return Ok(()),
            Ended::Agent => unanswered = 0,
            Ended::Unanswered if unanswered == UNANSWERED_MAX => {
                bail!("the agent that runs answers nothing: is it of another version?")
            }
            Ended::Unanswered => {
                unanswered += 1;
                tokio::time::sleep(UNANSWERED_PACE).await;
            }
        }
    }
}

async fn by_agent(stream: UnixStream, printer: &mut Printer) -> anyhow::Result<Ended> {
    let mut lines = BufReader::new(stream).lines();
    let mut is_started = false;
    // An agent that is killed may leave half a line, and its socket an error.
    while let Ok(Some(text)) = lines.next_line().await {
        let Ok(line) = serde_json::from_str(&text) else {
            continue;
        };
        match line {
            Line::Started => {
                eprintln!("listening by the agent");
                is_started = true;
            }
            Line::Failed { error } => bail!("the agent cannot listen: {error}"),
            line => {
                if printer.print(&line)? == Reader::Gone {
                    return Ok(Ended::Enough);
                }
            }
        }
    }
    Ok(match is_started {
        true => Ended::Agent,
        false => Ended::Unanswered,
    })
}

async fn by_pins(
    (pins, socket): (&Pins, &Path),
    filter: &Filter,
    printer: &mut Printer,
) -> anyhow::Result<Ended> {
    let names = ids(&KernelMaps::open(pins).context("no agent runs; reading its pins")?);
    let ring = EventRing::open(pins).context("no agent runs; reading its pins")?;
    let Some(mut ring) = ring else {
        bail!("no agent runs, and another monitor reads the pins: one can");
    };
    let mut clock = Clock::now();
    let mut ticks = interval(RENEWED);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ring.lease(filter.kinds(), filter.one_in)?;
    eprintln!(
        "no agent answers: listening by the pins, which do not name Services, nor tell that \
         they change"
    );
    loop {
        tokio::select! {
            events = ring.take(BATCH_MAX) => for event in events.context("waiting for events")? {
                let line = view::line(&event, clock, &names);
                if let Some(line) = line.filter(|line| filter.wants(line))
                    && printer.print(&line)? == Reader::Gone
                {
                    return Ok(Ended::Enough);
                }
            },
            _ = ticks.tick() => {
                ring.lease(filter.kinds(), filter.one_in)?;
                clock = Clock::now();
                let events = ring.lost();
                if events > 0 && printer.print(&Line::Lost { events })? == Reader::Gone {
                    return Ok(Ended::Enough);
                }
                if UnixStream::connect(socket).await.is_ok() {
                    return Ok(Ended::Agent);
                }
            }
        }
    }
}

/// What is dialed, by the ids of frontends.
fn ids(maps: &KernelMaps) -> Names {
    let mut names = ids_of::<Addr4>(maps);
    names.extend(ids_of::<Addr6>(maps));
    names
}

fn ids_of<A: IpFamily>(maps: &KernelMaps) -> Names
where
    KernelMaps: FamilyMaps<A>,
{
    let all = FamilyMaps::<A>::frontend_ids(maps).into_iter();
    all.map(|(key, id)| {
        let addr: IpAddr = key.addr.to_ip();
        ((addr, key.port.get(), key.protocol), format!("#{id}"))
    })
    .collect()
}

/// Where events go.
#[derive(Debug)]
struct Printer {
    form: Option<Form>,
    /// How many more are wanted; `None`: all.
    left: Option<u64>,
}

impl Printer {
    /// Gone, too, is who has all that was asked for.
    fn print(&mut self, line: &Line) -> anyhow::Result<Reader> {
        let text = match self.form {
            Some(form) => form.parts(std::slice::from_ref(line))?,
            None => line.to_string(),
        };
        if line.kind().is_none() && self.form.is_none() {
            eprintln!("{text}");
            return Ok(Reader::Reads);
        }
        let reader = super::print(&text)?;
        if line.kind().is_some()
            && let Some(left) = &mut self.left
        {
            *left -= 1;
        }
        match self.left {
            Some(0) => Ok(Reader::Gone),
            _ => Ok(reader),
        }
    }
}
