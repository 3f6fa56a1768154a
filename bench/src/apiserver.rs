//! The agent's process against a real API server, with a client that only watches beside it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tests::lab::Lab;
use tests::net::{Netns, Place, Sandbox};

use crate::control_plane::{Figures, FromApi, Options, Percentiles};
use crate::lookup::Lookup;
use crate::objects::{self, NAMESPACE, Size};
use crate::process;

/// The interface that packets of the probes enter by.
const IFINDEX: u32 = 7;
/// Where the API server listens.
pub const API: &str = "10.65.0.1";
/// Requests under way at once while the API server is filled.
const WRITERS: usize = 64;
/// How long anything may take before the bench gives up: far beyond any bar.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at the maps: they cost a processor that others need.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A filled API server in a namespace of its own.
pub struct Server {
    pub lab: Lab,
    pub netns: Netns,
    pub sandbox: Sandbox,
}

impl Server {
    /// Starts and fills it.
    pub fn start(size: Size) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let netns = sandbox.netns("api")?;
        netns.ip(&format!(
            "addr add {API}/32 dev lo\n\
             link add name pod0 index {IFINDEX} type veth peer name pod1\n\
             link set pod0 up\nlink set pod1 up\naddr add 10.64.0.1/24 dev pod0\n\
             route add default via 10.64.0.2\n"
        ))?;
        let lab = Lab::start(&sandbox, &netns, API)?;
        let server = Self {
            lab,
            netns,
            sandbox,
        };
        server.end_controllers()?;
        server.lab.add_node("node-1", &["10.64.0.1"])?;
        server.lab.kubectl(&["create", "namespace", NAMESPACE])?;
        let started = Instant::now();
        server.run(|client| fill(client, size))??;
        println!(
            "API server filled in {:.1} s",
            started.elapsed().as_secs_f64()
        );
        Ok(server)
    }

    /// Nothing here needs controllers, which would take a share of the processors.
    fn end_controllers(&self) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        let path = self.sandbox.dir().join("lab/kube-controller-manager.pid");
        let pid = std::fs::read_to_string(path)?.trim().parse()?;
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).context("ending the controllers")
    }

    /// Runs something asynchronous with a client, in the server's namespace.
    pub fn run<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Client) -> F + Send,
    ) -> Result<T> {
        let path = self.lab.kubeconfig();
        self.netns.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                anyhow::Ok(work(Client::try_from(config)?).await)
            })
        })?
    }
}

async fn fill(client: Client, size: Size) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let (services, slices) = (&services, &slices);
    let writes = (0..size.services).map(|number| async move {
        let how = PostParams::default();
        let service = serde_json::from_value(objects::service(number))?;
        services.create(&how, &service).await?;
        for slice in size.slices(number) {
            slices.create(&how, &serde_json::from_value(slice)?).await?;
        }
        if number % 1000 == 999 {
            println!("{} Services written", number + 1);
        }
        anyhow::Ok(())
    });
    futures::stream::iter(writes)
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await
}

/// Runs everything.
pub fn measure(server: &Server, size: Size, options: &Options) -> Result<Figures> {
    let mut agent = Process::start(server)?;
    let mut figures = Figures {
        cold_start_s: agent.wait_until_ready()?,
        ..Figures::default()
    };
    figures.cold_cpu_ms = agent
        .logged("cpu_ms")?
        .first()
        .copied()
        .context("no cpu_ms")?;
    println!(
        "all programmed {:.2} s after the start, {:.1} ms of CPU behind the lists",
        figures.cold_start_s, figures.cold_cpu_ms
    );
    let logged_before = agent.logged("writes")?.iter().sum::<f64>();
    let changes = changes(server, &agent, size, options)?;
    let logged = agent.logged("writes")?.iter().sum::<f64>();
    figures.writes_per_change = (logged - logged_before) / f64::from(options.changes.max(1));
    let visible = Percentiles::of(changes.iter().map(|change| change.visible * 1e3).collect());
    let watch = Percentiles::of(changes.iter().map(|change| change.watched * 1e3).collect());
    let own = changes
        .iter()
        .map(|change| (change.visible - change.watched).max(0.0) * 1e6);
    figures.change_us = Percentiles::of(own.collect());
    figures.change_from_api_ms = Some(FromApi {
        visible,
        watch_p99: watch.p99,
    });
    println!(
        "{} changes from the API: p50 {:.2} ms, p99 {:.2} ms; \
         a bare watch: p50 {:.2} ms, p99 {:.2} ms",
        options.changes, visible.p50, visible.p99, watch.p50, watch.p99
    );
    let [rss, peak] = process::rss_mib(agent.child.id())?;
    println!("resident {rss:.1} MiB, peak {peak:.1} MiB");
    figures.rss_mib = rss;
    [figures.maps_mib, figures.flow_maps_mib] = process::maps_mib(&agent.bpffs)?;
    Ok(figures)
}

/// The agent's process.
struct Process {
    child: Child,
    bpffs: PathBuf,
    log: PathBuf,
    ready: PathBuf,
    started: Instant,
}

impl Process {
    fn start(server: &Server) -> Result<Self> {
        let binary = std::env::var_os("SHUNT_BIN").context("SHUNT_BIN is not set")?;
        let cgroup = server.sandbox.cgroup("agent")?;
        let bpffs = server.sandbox.bpffs("agent")?;
        let log = server.sandbox.dir().join("agent.log");
        let ready = server.sandbox.dir().join("agent.ready");
        let output = std::fs::File::create(&log)?;
        let mut command = Command::new(binary);
        command.args(["agent", "--node-name", "node-1", "--kubeconfig"]);
        command.arg(server.lab.kubeconfig());
        command.arg("--bpffs").arg(&bpffs);
        command
            .arg("--cgroup")
            .arg(server.sandbox.cgroup("sockets")?);
        command.args(["--cluster-cidr", "10.64.0.0/16", "--interfaces", "pod0"]);
        command.arg("--ready-file").arg(&ready);
        command.args(["--log-level", "info,proxy_userspace::agent=debug"]);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let place = Place {
            netns: server.netns.clone(),
            cgroup,
        };
        let started = Instant::now();
        let child = place.spawn(&mut command)?;
        Ok(Self {
            child,
            bpffs,
            log,
            ready,
            started,
        })
    }

    /// Seconds from the start until everything is programmed.
    fn wait_until_ready(&mut self) -> Result<f64> {
        while !self.ready.exists() {
            ensure!(
                self.child.try_wait()?.is_none(),
                "the agent ended:\n{}",
                self.log()?
            );
            ensure!(
                self.started.elapsed() < PATIENCE,
                "not ready:\n{}",
                self.log()?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self.started.elapsed().as_secs_f64())
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// All values of a field in the log.
    fn logged(&self, field: &str) -> Result<Vec<f64>> {
        let log = self.log()?;
        let before = format!("{field}=");
        let values = log.split(&before).skip(1).filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            rest[..end.unwrap_or(rest.len())].parse().ok()
        });
        Ok(values.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds from the moment before a write to the API.
struct Change {
    watched: f64,
    visible: f64,
}

/// Changes one endpoint after the other.
fn changes(server: &Server, agent: &Process, size: Size, options: &Options) -> Result<Vec<Change>> {
    let watched = watch(server)?;
    let (write, to_write) = channel::<(String, serde_json::Value)>();
    let mut rounds = vec![0_u32; size.services as usize];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| server.run(|client| writer(client, to_write))?);
        let measured = server.netns.enter(move || {
            let mut lookup = Lookup::open(&agent.bpffs, IFINDEX)?;
            (0..options.changes)
                .map(|change| {
                    let service = (u64::from(change) * 7919 % u64::from(size.services)) as u32;
                    let round = &mut rounds[service as usize];
                    *round += 1;
                    let slice = objects::slice(size, service, 0, *round);
                    let name = objects::slice_name(service, 0);
                    let patch = json!({"endpoints": slice["endpoints"]});
                    let start = Instant::now();
                    write
                        .send((name.clone(), patch))
                        .context("the writer ended")?;
                    let backend = objects::endpoint(service, 0, *round);
                    let frontend = objects::cluster_ip(service);
                    let visible = wait_for(&mut lookup, frontend, backend, start)?;
                    let seen = loop {
                        let (seen, at) = watched.recv_timeout(PATIENCE).context("no event")?;
                        if seen == name {
                            break at;
                        }
                    };
                    Ok(Change {
                        watched: seen.duration_since(start).as_secs_f64(),
                        visible,
                    })
                })
                .collect::<Result<Vec<Change>>>()
        });
        let written = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        let measured = measured??;
        written.map(|()| measured)
    })
}

fn wait_for(
    lookup: &mut Lookup,
    frontend: Ipv4Addr,
    backend: Ipv4Addr,
    start: Instant,
) -> Result<f64> {
    while !lookup.reaches(frontend, backend)? {
        ensure!(
            start.elapsed() < PATIENCE,
            "{frontend} never leads to {backend}"
        );
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Writes what it is told to; the write that is under way is the only one.
async fn writer(client: Client, writes: Receiver<(String, serde_json::Value)>) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    for (name, patch) in writes {
        slices
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    Ok(())
}

/// Watches slices on a thread of its own, and does nothing but note when events came.
fn watch(server: &Server) -> Result<Receiver<(String, Instant)>> {
    let (sender, receiver) = channel();
    let list = |client: Client| async move {
        let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
        let list = slices.list(&ListParams::default().limit(1)).await?;
        anyhow::Ok(list.metadata.resource_version.unwrap_or_default())
    };
    let version = server.run(list)??;
    let (path, netns) = (server.lab.kubeconfig(), server.netns.clone());
    std::thread::spawn(move || {
        let watched = netns.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                let slices: Api<EndpointSlice> =
                    Api::namespaced(Client::try_from(config)?, NAMESPACE);
                let events = slices.watch(&WatchParams::default(), &version).await?;
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.try_next().await? {
                    if let WatchEvent::Modified(slice) = event
                        && sender
                            .send((slice.metadata.name.unwrap_or_default(), Instant::now()))
                            .is_err()
                    {
                        break;
                    }
                }
                anyhow::Ok(())
            })
        });
        if let Err(error) = watched.and_then(|result| result) {
            eprintln!("the bare watch ended: {error:#}");
        }
    });
    Ok(receiver)
}
