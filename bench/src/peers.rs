//! The real kube-proxy on the same objects, in a namespace of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tests::net::{Netns, Place};

use crate::apiserver::{API, Server};
use crate::control_plane::{Options, Source};
use crate::objects::{self, NAMESPACE, Size};
use crate::process;

/// Its modes.
const MODES: [&str; 2] = ["nftables", "iptables"];
/// How long one sync may take before it counts as not finished.
const PATIENCE: Duration = Duration::from_secs(300);
/// Changes that are measured, at most.
const CHANGES_MAX: u32 = 3;
/// Without a sync for this long it has nothing to do: it syncs at most once a second.
const CALM: Duration = Duration::from_millis(1500);
/// Between two looks at its metrics.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What was measured of one program.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who.
    pub name: String,
    /// Process start until everything is programmed; `None`: not within the patience of the bench.
    pub program_s: Option<f64>,
    /// From a write to the API until it is programmed.
    pub change_s: Option<f64>,
    /// Resident memory.
    pub rss_mib: f64,
}

/// The program, and how it is started.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    program: PathBuf,
    /// A word before its flags, where the program is several.
    verb: Option<&'static str>,
    /// Changes that are measured.
    changes: u32,
}

impl KubeProxy {
    /// As [`Self::at`], for the control plane.
    pub fn find(options: &Options) -> Result<Self> {
        ensure!(
            options.source == Source::Apiserver,
            "kube-proxy needs an API server: --peers and --plot go with --source apiserver"
        );
        let changes = options.changes.min(CHANGES_MAX);
        Ok(Self {
            changes,
            ..Self::at(options.kube_proxy.as_deref())?
        })
    }

    /// Looks before anything is measured, which takes minutes: all that it needs must be there.
    /// Without `program` it is the one that was built for the tests.
    pub fn at(program: Option<&Path>) -> Result<Self> {
        let (program, verb) = match program {
            Some(program) => (program.to_owned(), None),
            None => {
                let bin = std::env::var_os("SHUNT_LAB_BIN").context("SHUNT_LAB_BIN is not set")?;
                (Path::new(&bin).join("hyperkube"), Some("kube-proxy"))
            }
        };
        let found = Self {
            program,
            verb,
            changes: CHANGES_MAX,
        };
        let program = found.program.display();
        ensure!(found.program.is_file(), "kube-proxy: {program} is missing");
        let mut command = Command::new(&found.program);
        let output = command.args(found.verb).arg("--version").output();
        let output = output.with_context(|| format!("kube-proxy: starting {program}"))?;
        let version = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && version.starts_with("Kubernetes v"),
            "kube-proxy: {program} --version says {version:?} ({})",
            output.status
        );
        Ok(found)
    }

    /// Measures every mode. One that does not start is an error.
    pub fn measure(&self, server: &Server, size: Size) -> Result<Vec<Row>> {
        let modes = (1..).zip(MODES);
        modes
            .map(|(number, mode)| {
                let row = self.one(server, size, (number, mode));
                row.with_context(|| format!("kube-proxy {mode}"))
            })
            .collect()
    }

    fn one(&self, server: &Server, size: Size, (number, mode): (u32, &str)) -> Result<Row> {
        let mut peer = Peer::on_own_node(self, server, (number, mode))?;
        let program_s = peer.wait_for_syncs(1, peer.started)?;
        let mut changes = Vec::new();
        if program_s.is_some() {
            for round in 0..self.changes {
                let syncs = peer.calm()?;
                let start = Instant::now();
                patch(server, size, round, number)?;
                changes.extend(peer.wait_for_syncs(syncs + 1, start)?);
            }
        }
        changes.sort_by(f64::total_cmp);
        let row = Row {
            name: format!("kube-proxy {mode}"),
            program_s,
            change_s: changes.get(changes.len() / 2).copied(),
            rss_mib: process::rss_mib(peer.child.id())?[0],
        };
        println!("{}", text(&row));
        Ok(row)
    }
}

impl Row {
    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name, "all_programmed_s": self.program_s, "one_change_s": self.change_s,
            "rss_mib": self.rss_mib,
        })
    }
}

/// One row in words.
pub fn text(row: &Row) -> String {
    let seconds = |value: Option<f64>| match value {
        Some(value) => format!("{value:.3} s"),
        None => format!("not within {} s", PATIENCE.as_secs()),
    };
    let (all, change) = (seconds(row.program_s), seconds(row.change_s));
    format!(
        "{}: all {all}, one change {change}, {:.0} MiB",
        row.name, row.rss_mib
    )
}

fn patch(server: &Server, size: Size, round: u32, number: u32) -> Result<()> {
    let service = (round * 31 + number) % size.services;
    let slice = objects::slice(size, service, 0, 20 + round);
    let patch = json!({"endpoints": slice["endpoints"]});
    server.run(|client| async move {
        let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
        let name = objects::slice_name(service, 0);
        slices
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    })??;
    Ok(())
}

/// A kube-proxy; dropping it ends it and leaves its rules.
pub struct Peer {
    child: Child,
    netns: Netns,
    log: PathBuf,
    /// When its process was started.
    pub started: Instant,
}

/// The node that a kube-proxy is for.
pub struct Ground<'a> {
    /// Its number among all that are connected to the API server.
    pub number: u32,
    /// Where it is to run.
    pub netns: Netns,
    /// Its Node object.
    pub node: &'a str,
    /// The cluster's pods.
    pub pods: &'a str,
}

impl Peer {
    /// Starts one in a namespace and on a node of its own.
    fn on_own_node(
        program: &KubeProxy,
        server: &Server,
        (number, mode): (u32, &str),
    ) -> Result<Self> {
        let netns = server.sandbox.netns(&format!("peer{number}"))?;
        let addresses = connect(server, &netns, (number, "eth0"))?;
        netns.ip(&format!("route add default via {}\n", addresses[0]))?;
        let node = format!("peer-{number}");
        server.lab.add_node(&node, &[&addresses[1]])?;
        let ground = Ground {
            number,
            netns,
            node: &node,
            pods: "10.64.0.0/16",
        };
        Self::start(program, server, ground, mode)
    }

    /// Starts one on a node that is there, and reaches the API server.
    pub fn start(
        program: &KubeProxy,
        server: &Server,
        ground: Ground<'_>,
        mode: &str,
    ) -> Result<Self> {
        let name = format!("kube-proxy-{}", ground.number);
        let log = server.sandbox.dir().join(format!("{name}.log"));
        let output = std::fs::File::create(&log)?;
        let mut command = Command::new(&program.program);
        command.args(program.verb);
        command.args(["--proxy-mode", mode, "--hostname-override", ground.node]);
        command.arg("--kubeconfig").arg(server.lab.kubeconfig());
        command.args(["--cluster-cidr", ground.pods]);
        // Limits of connection tracking are the machine's.
        command.args(["--conntrack-max-per-core", "0"]);
        command.args(["--conntrack-tcp-timeout-established", "0s"]);
        command.args(["--conntrack-tcp-timeout-close-wait", "0s"]);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let place = Place {
            netns: ground.netns.clone(),
            cgroup: server.sandbox.cgroup(&name)?,
        };
        let started = Instant::now();
        let child = place.spawn(&mut command)?;
        Ok(Self {
            child,
            netns: ground.netns,
            log,
            started,
        })
    }

    /// Syncs of IPv4 that it has completed; none while it does not answer.
    fn syncs(&mut self) -> Result<u64> {
        const METRIC: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count";
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log)?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(10)..];
            anyhow::bail!("it ended ({status}):\n{}", tail.join("\n"));
        }
        let metrics = self
            .netns
            .run(&["curl", "-s", "-m", "5", "http://127.0.0.1:10249/metrics"])
            .unwrap_or_default();
        let lines = metrics.lines().filter(|line| line.starts_with(METRIC));
        let counts = lines.filter(|line| !line.contains("IPv6"));
        let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(counts.sum::<f64>() as u64)
    }

    /// Seconds since `start` when so many syncs are complete.
    pub fn wait_for_syncs(&mut self, count: u64, start: Instant) -> Result<Option<f64>> {
        while start.elapsed() < PATIENCE {
            if self.syncs()? >= count {
                return Ok(Some(start.elapsed().as_secs_f64()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(None)
    }

    /// Waits until it has been idle for a while; the syncs so far.
    pub fn calm(&mut self) -> Result<u64> {
        let start = Instant::now();
        let (mut syncs, mut since) = (self.syncs()?, Instant::now());
        while since.elapsed() < CALM {
            ensure!(start.elapsed() < PATIENCE, "it is never idle");
            std::thread::sleep(LOOK_EVERY * 10);
            let found = self.syncs()?;
            if found != syncs {
                (syncs, since) = (found, Instant::now());
            }
        }
        Ok(syncs)
    }
}

/// Connects a namespace with that of the API server by a link of its own, and returns the addresses
/// of both ends, the API server's first.
pub fn connect(server: &Server, netns: &Netns, (number, link): (u32, &str)) -> Result<[String; 2]> {
    let [lab, node] = [1, 2].map(|end| format!("10.66.{number}.{end}"));
    server.netns.ip(&format!(
        "link add peer{number} type veth peer name {link} netns {}\n\
         link set peer{number} up\naddr add {lab}/24 dev peer{number}\n",
        netns.name()
    ))?;
    netns.ip(&format!(
        "link set {link} up\naddr add {node}/24 dev {link}\nroute replace {API}/32 via {lab}\n"
    ))?;
    Ok([lab, node])
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
