//! The object's path behind an API server that misbehaves: from the watch to the maps.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proxy_userspace::fake_maps::FakeMaps;
use proxy_userspace::map_dump::dump;
use proxy_userspace::maps::Capacity;
use proxy_userspace::pipeline::Reconciler;
use proxy_userspace::pipeline::watch::{self, ApiSource, Patience, Selection, Source};
use proxy_userspace::settings::Settings;
use serde_json::{Value, json};
use tests::fake_api::{FakeApi, Fault, Streams};
use tests::net::eventually;
use tests::rules;

/// Far longer than the longest backoff here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Short enough for tests of silence, and longer than anything else here takes.
const SERVER_PATIENCE: Patience = Patience {
    answer: Duration::from_secs(2),
    page: Duration::from_secs(4),
    event: Duration::from_secs(3),
};
const PLURALS: [&str; 2] = ["services", "endpointslices"];

/// An agent's object path on maps in memory; dropping it ends it.
struct Path {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    _folder: tempfile::TempDir,
}

#[derive(Default)]
struct Shared {
    /// What the maps hold, and what was rejected.
    seen: Mutex<(String, Vec<String>)>,
    /// What was missing at any time after it was there once.
    lost: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Path {
    /// Watches these servers. The frontend of `steady` must never be missing.
    fn start(apis: &[&FakeApi]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("config");
        apis[0].kubeconfig(&kubeconfig)?;
        let servers = match apis {
            [_] => Vec::new(),
            several => several.iter().map(|api| api.url()).collect(),
        };
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || run(&shared, kubeconfig, servers))
        };
        Ok(Self {
            shared,
            thread: Some(thread),
            _folder: folder,
        })
    }

    /// What the maps hold, and what was rejected.
    fn seen(&self) -> (String, Vec<String>) {
        let seen = self.shared.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the maps lead from `address` to these backends.
    fn await_backends(&self, address: &str, backends: &str) -> Result<()> {
        let line = format!("frontend {address}:80/TCP ClusterIp cluster=[{backends}]");
        eventually(PATIENCE, || {
            let (text, _) = self.seen();
            ensure!(text.contains(&line), "{text}\nlacks {line}");
            Ok(())
        })
    }

    fn await_gone(&self, address: &str) -> Result<()> {
        eventually(PATIENCE, || {
            let (text, _) = self.seen();
            ensure!(!text.contains(&format!("frontend {address}:")), "{text}");
            Ok(())
        })
    }

    fn end(mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => bail!("ended twice"),
        }
        let lost = self.shared.lost.lock();
        let lost = lost.unwrap_or_else(PoisonError::into_inner);
        ensure!(lost.is_empty(), "was missing: {lost:?}");
        Ok(())
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn run(shared: &Shared, kubeconfig: PathBuf, servers: Vec<String>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let capacity = Capacity {
        frontends: 4096,
        backends: 16_384,
        slots: 65_536,
    };
    let settings = Settings {
        node_name: "n1".to_owned(),
        ..Settings::default()
    };
    let mut maps = FakeMaps::new(capacity);
    let mut reconciler = Reconciler::new(settings, capacity);
    runtime.block_on(async {
        let source = Source::Api(ApiSource {
            kubeconfig: Some(kubeconfig),
            servers,
            patience: SERVER_PATIENCE,
        });
        let selection = Selection {
            node_name: "n1".to_owned(),
            proxy_name: None,
        };
        let mut events = watch::start(source, selection).await?;
        let mut was_there = false;
        while !shared.stop.load(Ordering::Acquire) {
            let tick = tokio::time::sleep(Duration::from_millis(20));
            tokio::select! {
                event = events.recv() => reconciler.handle(event.context("the source ended")?),
                () = tick => {}
            }
            reconciler.reconcile(&mut maps, Instant::now());
            maps.check().map_err(anyhow::Error::msg)?;
            let text = dump(&maps);
            let is_there = text.contains("10.96.0.1:80/TCP ClusterIp cluster=[10.1.0.1:8080");
            let mut lost = shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
            if was_there && !is_there {
                lost.push(text.clone());
            }
            was_there |= is_there;
            let rejected = reconciler.rejections().map(|it| it.place.clone()).collect();
            let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen = (text, rejected);
        }
        Ok(())
    })
}

fn service(name: &str, number: u8) -> Value {
    let address = format!("10.96.0.{number}");
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

fn slice(name: &str, addresses: &[String]) -> Value {
    let endpoints = addresses.iter().map(|it| json!({"addresses": [it]}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": name,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn pods(count: u32) -> Vec<String> {
    let pod = |number: u32| format!("10.1.{}.{}", number / 200, number % 200 + 1);
    (0..count).map(pod).collect()
}

/// A server with the Service `steady`, and a path behind it that has it in its maps.
fn steady() -> Result<(FakeApi, Path)> {
    steady_by(Streams::Served)
}

fn steady_by(streams: Streams) -> Result<(FakeApi, Path)> {
    let api = FakeApi::start()?;
    api.set_streams(streams);
    fill(&api);
    let path = Path::start(&[&api])?;
    path.await_backends("10.96.0.1", "10.1.0.1:8080")?;
    Ok((api, path))
}

fn fill(api: &FakeApi) {
    api.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
    api.apply(&service("steady", 1));
    api.apply(&slice("steady", &pods(1)));
}

/// A Service comes, changes and goes while each request for its kinds goes wrong.
#[test]
fn faults_of_lists_and_watches_delay_but_lose_nothing() -> Result<()> {
    rules(&["S-007", "S-008", "S-179"]);
    let all = [
        vec![Fault::CutWatch],
        vec![Fault::Gone],
        vec![Fault::Twice],
        vec![Fault::Status(500)],
        vec![Fault::Status(410)],
        vec![Fault::Status(429)],
        vec![Fault::Gone, Fault::CutList],
        vec![Fault::Gone, Fault::SlowList],
        vec![Fault::Hang],
        vec![Fault::Silence],
        vec![Fault::Gone, Fault::Hang],
    ];
    let modes = [Streams::Served, Streams::Refused];
    let tests = all
        .iter()
        .flat_map(|faults| modes.map(|mode| (mode, faults.clone())));
    let tests: Vec<_> = tests
        .map(|(mode, faults)| std::thread::spawn(move || one_fault(mode, &faults)))
        .collect();
    tests.into_iter().try_for_each(joined)
}

fn joined(test: JoinHandle<Result<()>>) -> Result<()> {
    match test.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn one_fault(streams: Streams, faults: &[Fault]) -> Result<()> {
    let (api, path) = steady_by(streams)?;
    for plural in PLURALS {
        for fault in faults {
            api.fault(plural, *fault);
        }
    }
    // The watches that run are good ones; those that follow are not.
    api.end_watches();
    api.apply(&slice("web", &pods(1)));
    api.apply(&service("web", 2));
    path.await_backends("10.96.0.2", "10.1.0.1:8080")
        .with_context(|| format!("{streams:?} {faults:?}"))?;
    api.apply(&slice("web", &pods(2)));
    path.await_backends("10.96.0.2", "10.1.0.1:8080 10.1.0.2:8080")?;
    api.delete(&service("web", 2));
    path.await_gone("10.96.0.2")?;
    ensure!(api.has_no_faults_left(), "{faults:?} did not happen");
    path.end()
}

/// What was deleted while nobody could watch is gone with the next list.
#[test]
fn deletions_during_an_outage_are_noticed() -> Result<()> {
    rules(&["S-008", "S-179"]);
    let (api, path) = steady()?;
    api.apply(&service("web", 2));
    api.apply(&slice("web", &pods(1)));
    path.await_backends("10.96.0.2", "10.1.0.1:8080")?;
    api.set_down(true);
    api.delete(&service("web", 2));
    api.apply(&slice("steady", &pods(2)));
    for plural in PLURALS {
        api.fault(plural, Fault::Gone);
    }
    api.set_down(false);
    path.await_gone("10.96.0.2")?;
    path.await_backends("10.96.0.1", "10.1.0.1:8080 10.1.0.2:8080")?;
    path.end()
}

/// Events that come twice, too early, too late, or of nothing.
#[test]
fn events_in_any_order_end_in_the_same_state() -> Result<()> {
    rules(&["S-006"]);
    let (api, path) = steady()?;
    let (web, backends) = (service("web", 2), slice("web", &pods(1)));
    api.tell("DELETED", &web);
    api.tell("DELETED", &backends);
    api.tell("MODIFIED", &backends);
    api.tell("MODIFIED", &backends);
    api.tell("MODIFIED", &web);
    path.await_backends("10.96.0.2", "10.1.0.1:8080")?;
    api.tell("DELETED", &web);
    api.tell("ADDED", &web);
    api.tell("ADDED", &web);
    api.tell("MODIFIED", &slice("web", &pods(2)));
    path.await_backends("10.96.0.2", "10.1.0.1:8080 10.1.0.2:8080")?;
    api.tell("DELETED", &web);
    path.await_gone("10.96.0.2")?;
    path.end()
}

/// One object of a megabyte, and one that nobody can read: all others go on.
#[test]
fn huge_and_unreadable_objects_hold_up_nothing() -> Result<()> {
    let (api, path) = steady()?;
    let mut huge = service("web", 2);
    huge["metadata"]["annotations"] = json!({"note": "x".repeat(1 << 20)});
    api.apply(&huge);
    let all = pods(1000);
    api.apply(&slice("web", &all));
    let mut unreadable = service("bad", 3);
    unreadable["spec"]["ports"] = json!("eighty");
    unreadable["spec"]["fieldOfTheFuture"] = json!({"deep": [1, 2, 3]});
    api.apply(&unreadable);
    api.apply(&service("last", 4));
    eventually(PATIENCE, || {
        let (text, rejected) = path.seen();
        ensure!(text.contains("frontend 10.96.0.4:80/TCP"), "{text}");
        ensure!(rejected == ["services default/bad"], "{rejected:?}");
        let line = text.lines().find(|line| line.contains("10.96.0.2:80"));
        let found = line.map_or(0, |line| line.matches(":8080").count());
        ensure!(found == all.len(), "{found} backends");
        Ok(())
    })?;
    api.apply(&service("bad", 3));
    eventually(PATIENCE, || {
        let (text, rejected) = path.seen();
        ensure!(text.contains("frontend 10.96.0.3:80/TCP") && rejected.is_empty());
        Ok(())
    })?;
    path.end()
}

/// Servers that list by a watch, that refuse to, and that do not know what is asked of them.
#[test]
fn lists_are_streamed_where_the_server_can() -> Result<()> {
    rules(&["S-007"]);
    let modes = [Streams::Served, Streams::Refused, Streams::Ignored];
    let tests = modes.map(|mode| std::thread::spawn(move || one_mode(mode)));
    tests.into_iter().try_for_each(joined)
}

fn one_mode(streams: Streams) -> Result<()> {
    let (api, path) = steady_by(streams)?;
    for plural in PLURALS {
        // One that ignored it has told everything, and was asked for pages then.
        let (lists, requests) = (api.lists(plural), api.requests(plural));
        let expected = match streams {
            Streams::Served => (1, 1),
            Streams::Refused => (1, 3),
            Streams::Ignored => (2, 3),
        };
        eventually(PATIENCE, || {
            let found = (api.lists(plural), api.requests(plural));
            ensure!(found == expected, "{streams:?} {plural}: {found:?}");
            Ok(())
        })
        .with_context(|| format!("{lists} lists, {requests} requests"))?;
    }
    api.apply(&slice("steady", &pods(2)));
    path.await_backends("10.96.0.1", "10.1.0.1:8080 10.1.0.2:8080")?;
    path.end()
}

/// A server that accepts and never answers is left for another one, at the start and later.
#[test]
fn servers_that_hang_are_left_for_others() -> Result<()> {
    rules(&["S-179", "S-183"]);
    let (hanging, good) = (FakeApi::start()?, FakeApi::start()?);
    let all = [&hanging, &good];
    for api in all {
        api.set_streams(Streams::Served);
        fill(api);
    }
    let hang = |api: &FakeApi| {
        for plural in PLURALS.into_iter().chain(["nodes", "servicecidrs"]) {
            api.fault(plural, Fault::Hang);
        }
    };
    hang(&hanging);
    let path = Path::start(&all)?;
    path.await_backends("10.96.0.1", "10.1.0.1:8080")?;
    hang(&good);
    good.end_watches();
    all.iter()
        .for_each(|api| api.apply(&slice("steady", &pods(2))));
    path.await_backends("10.96.0.1", "10.1.0.1:8080 10.1.0.2:8080")?;
    path.end()
}

/// Several servers of one cluster: whichever answers, in the order in which they were named, and
/// without listing again.
#[test]
fn servers_take_over_from_each_other() -> Result<()> {
    rules(&["S-183"]);
    let (first, second) = (FakeApi::start()?, FakeApi::start()?);
    let all = [&first, &second];
    for api in all {
        api.set_streams(Streams::Served);
        fill(api);
    }
    first.set_down(true);
    let path = Path::start(&all)?;
    path.await_backends("10.96.0.1", "10.1.0.1:8080")?;
    second.set_down(true);
    all.iter()
        .for_each(|api| api.apply(&slice("steady", &pods(2))));
    first.set_down(false);
    path.await_backends("10.96.0.1", "10.1.0.1:8080 10.1.0.2:8080")?;
    first.set_down(true);
    all.iter()
        .for_each(|api| api.apply(&slice("steady", &pods(3))));
    second.set_down(false);
    path.await_backends("10.96.0.1", "10.1.0.1:8080 10.1.0.2:8080 10.1.0.3:8080")?;
    for plural in PLURALS {
        let lists = all.map(|api| api.lists(plural));
        ensure!(lists == [0, 1], "{plural} were listed again: {lists:?}");
    }
    path.end()
}
