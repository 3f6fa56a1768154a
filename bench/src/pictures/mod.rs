//! `cargo xtask bench pictures`: what an operator sees, drawn from a small cluster under traffic:
//! `shunt top` in a real terminal, and the dashboard's panels.

mod dashboard;
mod prometheus;
mod terminal;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use proxy_userspace::health::latency::TRIGGER_TIME;
use tests::agent;
use tests::http::get;
use tests::manifests::Service;
use tests::net::Netns;
use tests::rig::{Client, Rig, Target};
use tests::screen::{Screen, Size};
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

use prometheus::Scrape;

/// What is drawn.
#[derive(clap::Args)]
pub struct Options {
    /// How long there is traffic
    #[arg(long, value_name = "SECONDS", default_value_t = 150)]
    #[arg(value_parser = clap::value_parser!(u64).range(30..))]
    seconds: u64,
    /// Where the pictures go
    #[arg(long, value_name = "FOLDER", default_value = "docs/pictures")]
    folder: PathBuf,
}

/// Columns and lines of the terminal.
const SIZE: Size = (120, 22);
/// Between two scrapes.
const SCRAPE: Duration = Duration::from_secs(5);
/// Between two changes of endpoints.
const CHANGE: Duration = Duration::from_secs(20);
/// Where the status servers listen.
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 10_249);

/// A Service besides those that a rig has: its name and number, its pods, connections in each
/// round, and who dials what of it.
type Dialed = (&'static str, u8, &'static [&'static str], u32, Way);

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// A pod, its ClusterIP, by the socket hooks.
    Socket,
    /// A pod, its ClusterIP, by packets.
    Packets,
    /// A client outside, its node port.
    Outside,
}

const DIALED: [Dialed; 6] = [
    ("checkout", 41, &["a", "b"], 6, Way::Packets),
    ("catalog", 42, &["b", "c"], 14, Way::Outside),
    ("images", 43, &["c"], 4, Way::Outside),
    ("search", 44, &["a", "b", "c"], 9, Way::Packets),
    ("sessions", 45, &["a", "c"], 11, Way::Socket),
    ("mail", 46, &[], 1, Way::Packets),
];

/// Makes traffic, looks at it, and draws what was seen.
pub fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.folder)?;
    let mut rig = Rig::without_agents(Variant::default())?;
    for (name, number, pods, ..) in DIALED {
        let port = 8000 + u16::from(number);
        let service = Service::new(name, number).port(port, 30_000 + port, tests::rig::TARGET_PORT);
        let pods: Vec<_> = pods.iter().map(|pod| &rig.pods[*pod]).collect();
        rig.add(name, service.pods(pods))?;
    }
    rig.start_agents(&["--program-stats"])?;
    let screen = Screen::start(&rig.cluster.sandbox().dir(), SIZE, &top(&rig)?)?;
    let scrapes = traffic(&mut rig, Duration::from_secs(options.seconds))?;
    let picture = terminal::svg(&screen.colored()?, SIZE);
    write(&options.folder.join("top.svg"), &picture)?;
    screen.press(&["Enter"])?;
    screen.await_text("the backends", |lines| lines[0].contains("demo/"))?;
    let path = options.folder.join("dashboard.svg");
    let alerts = dashboard::draw(&path, scrapes)?;
    println!("written: {}", path.display());
    println!(
        "alerts that are on: {}",
        if alerts.is_empty() {
            "none".into()
        } else {
            alerts.join(", ")
        }
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// `shunt top` on the first node, as a shell gets it.
fn top(rig: &Rig) -> Result<String> {
    let netns = rig.place(Client::Node)?.netns;
    Ok(format!(
        "nsenter --net={} {} top --bpffs {}",
        netns.path().display(),
        agent::binary()?.display(),
        rig.agents[0].bpffs()
    ))
}

/// Dials everything over and over, changes endpoints now and then, and returns what the agents
/// said.
fn traffic(rig: &mut Rig, time: Duration) -> Result<Vec<Scrape>> {
    let nodes = [
        ("n1", rig.place(Client::Node)?.netns),
        ("n2", rig.place(Client::OtherNode)?.netns),
    ];
    let began = Instant::now();
    let (mut scraped, mut changed) = (began, began);
    let mut scrapes = Vec::new();
    let mut round = 0;
    while began.elapsed() < time {
        for (name, _, pods, times, way) in DIALED {
            let wave = 1 + (began.elapsed().as_secs() / 15 + u64::from(times)) % 3;
            let report = dial(rig, name, times * u32::try_from(wave)?, way)?;
            ensure!(
                report == 0 || pods.is_empty(),
                "{name}: {report} connections failed"
            );
        }
        if changed.elapsed() >= CHANGE {
            changed = Instant::now();
            change(rig, round)?;
            round += 1;
        }
        if scraped.elapsed() >= SCRAPE || scrapes.is_empty() {
            scraped = Instant::now();
            for (node, netns) in &nodes {
                scrapes.push(scrape(node, netns)?);
            }
        }
    }
    Ok(scrapes)
}

/// How many of the connections failed.
fn dial(rig: &mut Rig, name: &'static str, times: u32, way: Way) -> Result<u32> {
    let (client, target) = match way {
        Way::Socket => (Client::Pod, Target::ClusterIp(name)),
        Way::Packets => (Client::PodAsPackets, Target::ClusterIp(name)),
        Way::Outside => (Client::Outside, Target::NodePort1(name)),
    };
    let to = rig.address(target, IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(times).payload(700);
    Ok(rig.client(client)?.connect(plan)?.failed())
}

/// Another set of endpoints for one Service, with the time of the change (S-161).
fn change(rig: &Rig, round: usize) -> Result<()> {
    let pods: &[&str] = if round.is_multiple_of(2) {
        &["a"]
    } else {
        &["a", "c"]
    };
    let mut objects = rig.behind("sessions", pods).objects();
    let now = jiff::Timestamp::now().to_string();
    for slice in objects.iter_mut().skip(1) {
        slice["metadata"]["annotations"] = serde_json::json!({TRIGGER_TIME: now});
    }
    rig.manifests.write("sessions", &objects)?;
    Ok(())
}

fn scrape(node: &str, netns: &Netns) -> Result<Scrape> {
    let (status, text) = get(netns, METRICS.into(), "/metrics")?;
    ensure!(status == 200, "{node}: {status} {text}");
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Scrape {
        at: i64::try_from(at)?,
        labels: [("instance".to_owned(), node.to_owned())].into(),
        text: body.to_owned(),
    })
}
