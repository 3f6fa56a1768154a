//! The health servers over real sockets, with a clock that the test moves.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::http::{self, Answer, Handler, Ipv6Only, Server};
use super::metrics::{Extent, LocalPolicy, Metrics};
use super::pages::{self, Health, Profiling, StatusPages};
use super::proxy::Moment;
use super::service::{self, Check, Checks, Wanted};
use super::slis::Slis;
use super::{BindFailure, NodeServer};
use crate::agent::socket::{Question, Request};
use crate::events::{Events, Note, Regarding, Severity};
use crate::objects::{Metadata, Node, NodeSpec, ObjectName, Taint};
use crate::rules;

/// Between two looks at what a task of another time does.
const POLL: Duration = Duration::from_millis(5);
/// kube-proxy's syncPeriod.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// When the clocks of these tests start.
const START: &str = "2026-03-01T10:00:00Z";

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct Clock(Arc<Mutex<Moment>>);

impl Clock {
    fn start() -> Self {
        Self(Arc::new(Mutex::new(Moment {
            time: START.parse().unwrap(),
            ..Moment::now()
        })))
    }

    fn pass(&self, secs: u64) {
        let mut now = self.0.lock().unwrap();
        let by = Duration::from_secs(secs);
        *now = Moment {
            instant: now.instant + by,
            time: now.time + by,
        };
    }

    fn health(&self) -> Health {
        let clock = self.clone();
        Health::new(SYNC_PERIOD, Arc::new(move || *clock.0.lock().unwrap()))
    }
}

/// What came over the wire.
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn has(&self, line: &str) -> bool {
        self.body.lines().any(|it| it == line)
    }

    /// Its headers as they were sent, but for the date.
    fn headers(&self) -> Vec<&str> {
        let lines = self.head.lines().skip(1);
        let mut lines: Vec<&str> = lines.filter(|line| !line.starts_with("Date: ")).collect();
        lines.sort_unstable();
        lines
    }
}

async fn fetch(addr: SocketAddr, request: &str, body: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let len = body.len();
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let request = format!("{head}Content-Length: {len}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    reply
}

async fn ask(addr: SocketAddr, request: &str) -> Reply {
    let text = String::from_utf8(fetch(addr, request, "").await).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Reply {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.replace("\r\n", "\n"),
        body: body.to_owned(),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A server on a port of the kernel's choice.
fn served(handler: Handler) -> (SocketAddr, Server) {
    let listener = http::bind(loopback(0), Ipv6Only::Yes).unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, http::serve(listener, handler))
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind(loopback(0)).unwrap();
    socket.local_addr().unwrap().port()
}

fn node(taints: &[&str], deletion_timestamp: Option<&str>) -> Node {
    let taint = |key: &&str| Taint {
        key: (*key).to_owned(),
    };
    Node {
        metadata: Metadata {
            name: "n1".to_owned(),
            deletion_timestamp: deletion_timestamp.map(str::to_owned),
            ..Metadata::default()
        },
        spec: NodeSpec {
            taints: taints.iter().map(taint).collect(),
            ..NodeSpec::default()
        },
        ..Node::default()
    }
}

fn slis() -> Slis {
    Slis::new().unwrap()
}

fn metrics() -> Metrics {
    Metrics::new().unwrap()
}

#[tokio::test]
async fn healthz_and_livez_say_who_is_late_and_whether_the_node_leaves() {
    rules(&["S-011", "S-144", "S-145", "S-146"]);
    let clock = Clock::start();
    let health = clock.health();
    let (addr, _server) = served(pages::health(health.clone(), metrics(), slis()));

    // The Node is unknown: no traffic, but no reason to restart.
    assert_eq!(ask(addr, "GET /healthz").await.status, 503);
    assert_eq!(ask(addr, "GET /livez").await.status, 200);

    health.update(|state, now| {
        state.set_node(Some(&node(&[], None)));
        state.updated("IPv4", now);
        state.updated("IPv6", now);
    });
    clock.pass(5);
    let reply = ask(addr, "GET /healthz").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.headers(),
        [
            "Connection: close".to_owned(),
            format!("Content-Length: {}", reply.body.len()),
            "Content-Type: application/json".to_owned(),
            "X-Content-Type-Options: nosniff".to_owned(),
        ]
    );
    // While it is healthy the time is this moment's.
    let families = json!({
        "IPv4": {"lastUpdated": START, "healthy": true},
        "IPv6": {"lastUpdated": START, "healthy": true},
    });
    assert_eq!(
        reply.json(),
        json!({
            "lastUpdated": "2026-03-01T10:00:05Z", "currentTime": "2026-03-01T10:00:05Z",
            "nodeEligible": true, "healthy": true, "status": families,
        })
    );
    let livez = ask(addr, "GET /livez").await.json();
    assert_eq!(livez.get("nodeEligible"), None);
    assert_eq!(livez["healthy"], true);

    // IPv6 is late after 60 s, and an IPv4 sync does not cure that.
    health.update(|state, now| state.queued("IPv6", now));
    clock.pass(59);
    health.update(|state, now| state.queued("IPv6", now));
    assert_eq!(ask(addr, "GET /healthz").await.status, 200);
    clock.pass(1);
    health.update(|state, now| state.updated("IPv4", now));
    for path in ["GET /healthz", "HEAD /livez", "POST /livez"] {
        assert_eq!(ask(addr, path).await.status, 503, "{path}");
    }
    let body = ask(addr, "GET /healthz").await.json();
    assert_eq!(body["healthy"], false);
    assert_eq!(body["nodeEligible"], true);
    assert_eq!(body["lastUpdated"], "2026-03-01T10:01:05Z");
    assert_eq!(body["status"]["IPv4"]["healthy"], true);
    assert_eq!(
        body["status"]["IPv6"],
        json!({"lastUpdated": START, "healthy": false})
    );
    health.update(|state, now| state.updated("IPv6", now));
    assert_eq!(ask(addr, "GET /healthz").await.status, 200);
    assert_eq!(ask(addr, "GET /else").await.status, 404);
}

#[tokio::test]
async fn full_map_turns_nobody_away() {
    rules(&["S-011", "S-215"]);
    let clock = Clock::start();
    let health = clock.health();
    let (addr, _server) = served(pages::health(health.clone(), metrics(), slis()));
    health.update(|state, now| {
        state.set_node(Some(&node(&[], None)));
        state.updated("IPv4", now);
        state.updated("IPv6", now);
        state.short_of_room("IPv6", now);
    });
    clock.pass(60);
    for path in ["GET /healthz", "GET /livez"] {
        let reply = ask(addr, path).await;
        assert_eq!(reply.status, 200, "{path}");
        let body = reply.json();
        assert_eq!(body["healthy"], true);
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        assert_eq!(body["status"]["IPv6"]["healthy"], false);
    }
    // A write that fails is another matter.
    health.update(|state, now| state.queued("IPv6", now));
    assert_eq!(ask(addr, "GET /livez").await.status, 503);
}

#[tokio::test]
async fn idle_proxy_stays_healthy_without_an_api_server() {
    rules(&["S-144", "S-147", "S-179"]);
    let clock = Clock::start();
    let health = clock.health();
    let (addr, _server) = served(pages::health(health.clone(), metrics(), slis()));
    health.update(|state, now| {
        state.set_node(Some(&node(&[], None)));
        state.updated("IPv4", now);
    });
    clock.pass(3600);
    assert_eq!(ask(addr, "GET /healthz").await.status, 200);
}

#[tokio::test]
async fn node_on_its_way_out_fails_healthz_and_not_livez() {
    rules(&["S-145", "S-146"]);
    let clock = Clock::start();
    let health = clock.health();
    let (addr, _server) = served(pages::health(health.clone(), metrics(), slis()));
    let autoscaler = "ToBeDeletedByClusterAutoscaler";
    let cases = [
        (Some(node(&[], None)), 200),
        (Some(node(&["node.kubernetes.io/unschedulable"], None)), 200),
        (Some(node(&["a", autoscaler], None)), 503),
        (Some(node(&[], Some("2026-03-01T09:00:00Z"))), 503),
        (None, 503),
    ];
    for (node, status) in cases {
        health.update(|state, now| {
            state.set_node(node.as_ref());
            state.updated("IPv4", now);
        });
        let reply = ask(addr, "GET /healthz").await;
        assert_eq!(reply.status, status, "{node:?}");
        let body = reply.json();
        // The body tells the two apart.
        assert_eq!(body["healthy"], true);
        assert_eq!(body["nodeEligible"], status == 200);
        assert_eq!(ask(addr, "GET /livez").await.status, 200);
    }
}

/// The servers of Services, as the agent runs them.
struct Services {
    wanted: watch::Sender<Wanted>,
    notes: mpsc::Receiver<Note>,
    health: Health,
    clock: Clock,
    task: JoinHandle<()>,
}

impl Services {
    fn start() -> Self {
        let clock = Clock::start();
        let health = clock.health();
        let (wanted, watched) = watch::channel(Wanted::default());
        let (events, notes) = Events::channel();
        let task = tokio::spawn(service::serve(watched, health.clone(), events));
        Self {
            wanted,
            notes,
            health,
            clock,
            task,
        }
    }

    /// IPv4 checks of Services by name.
    fn want(&self, checks: &[(&str, u16, usize)]) {
        let services = checks.iter().map(|&(name, port, local_endpoints)| {
            let check = Check {
                port,
                local_endpoints,
            };
            (service(name), check)
        });
        let v4 = Checks {
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            services: services.collect(),
        };
        self.wanted.send_replace([v4, Checks::default()]);
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn service(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// Asks until the port is as `wanted`: served, or closed.
async fn until(port: u16, wanted: bool) {
    while TcpStream::connect(loopback(port)).await.is_ok() != wanted {
        tokio::time::sleep(POLL).await;
    }
}

/// Asks until so many endpoints are told.
async fn until_count(port: u16, count: usize) -> Reply {
    until(port, true).await;
    loop {
        let reply = ask(loopback(port), "GET /").await;
        if reply.json()["localEndpoints"] == count {
            return reply;
        }
    }
}

#[tokio::test]
async fn service_port_tells_its_local_endpoints() {
    rules(&["S-140", "S-141", "S-142"]);
    let services = Services::start();
    let port = free_port();
    services.want(&[("web", port, 3)]);
    until(port, true).await;
    for request in ["GET /anything", "POST /healthz", "DELETE /"] {
        let reply = ask(loopback(port), request).await;
        assert_eq!(reply.status, 200, "{request}");
        assert_eq!(
            reply.body,
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":3,"serviceProxyHealthy":true}"#
        );
        assert_eq!(
            reply.headers(),
            [
                "Connection: close",
                &format!("Content-Length: {}", reply.body.len()),
                "Content-Type: application/json",
                "X-Content-Type-Options: nosniff",
                "X-Load-Balancing-Endpoint-Weight: 3",
            ]
        );
    }

    // No endpoint: the server stays and says so.
    services.want(&[("web", port, 0)]);
    let reply = until_count(port, 0).await;
    assert_eq!(reply.status, 503);
    assert!(
        reply
            .headers()
            .contains(&"X-Load-Balancing-Endpoint-Weight: 0")
    );

    // An unhealthy proxy fails the check, and the count keeps its value.
    services.want(&[("web", port, 2)]);
    until_count(port, 2).await;
    services
        .health
        .update(|state, now| state.queued("IPv4", now));
    services.clock.pass(60);
    let reply = ask(loopback(port), "GET /").await;
    assert_eq!(reply.status, 503);
    let body = reply.json();
    assert_eq!(body["serviceProxyHealthy"], false);
    assert_eq!(body["localEndpoints"], 2);
    assert!(
        reply
            .headers()
            .contains(&"X-Load-Balancing-Endpoint-Weight: 2")
    );
}

#[tokio::test]
async fn service_ports_come_and_go_with_their_services() {
    rules(&["S-140", "S-143"]);
    let services = Services::start();
    let (first, second) = (free_port(), free_port());
    services.want(&[("web", first, 1)]);
    until_count(first, 1).await;

    // Its port changes.
    services.want(&[("web", second, 1)]);
    until_count(second, 1).await;
    until(first, false).await;

    // Another Service takes over the same port.
    services.want(&[("api", second, 4)]);
    let reply = until_count(second, 4).await;
    assert_eq!(reply.json()["service"]["name"], "api");

    // Policy Cluster, or deleted: nothing is wanted.
    services.want(&[]);
    until(second, false).await;
}

#[tokio::test]
async fn families_listen_beside_each_other() {
    rules(&["S-140"]);
    let services = Services::start();
    let port = free_port();
    let checks = |addr: &str, local_endpoints| Checks {
        addresses: vec![addr.parse().unwrap()],
        services: [(
            service("web"),
            Check {
                port,
                local_endpoints,
            },
        )]
        .into(),
    };
    services
        .wanted
        .send_replace([checks("127.0.0.1", 1), checks("::", 2)]);
    assert_eq!(until_count(port, 1).await.status, 200);
    let v6 = SocketAddr::new("::1".parse().unwrap(), port);
    while TcpStream::connect(v6).await.is_err() {
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(ask(v6, "GET /").await.json()["localEndpoints"], 2);
}

#[tokio::test(start_paused = true)]
async fn service_port_that_is_taken_is_told_and_tried_again() {
    rules(&["S-143"]);
    let mut services = Services::start();
    let other = std::net::TcpListener::bind(loopback(0)).unwrap();
    let port = other.local_addr().unwrap().port();
    services.want(&[("web", port, 1)]);
    let note = services.notes.recv().await.unwrap();
    assert_eq!(note.reason, "FailedToStartServiceHealthcheck");
    assert_eq!(note.severity, Severity::Warning);
    assert_eq!(note.regarding, Regarding::Service(service("web")));
    // Every sync tries again, and says it only once.
    services.want(&[("web", port, 2)]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(services.notes.try_recv().is_err());
    drop(other);
    until_count(port, 2).await;
}

#[tokio::test(start_paused = true)]
async fn node_server_waits_for_its_address() {
    rules(&["S-149"]);
    let other = std::net::TcpListener::bind(loopback(0)).unwrap();
    let addr = other.local_addr().unwrap();
    let (events, mut notes) = Events::channel();
    let server = || NodeServer {
        name: "healthz",
        addr,
        failed: "FailedToStartProxierHealthcheck",
        handler: Arc::new(|_| Box::pin(std::future::ready(Answer::text("here")))),
    };
    assert!(super::start(server(), BindFailure::Fatal, &events).is_err());
    let note = notes.recv().await.unwrap();
    assert_eq!(note.reason, "FailedToStartProxierHealthcheck");
    assert_eq!(note.regarding, Regarding::Node);

    let running = super::start(server(), BindFailure::Retry, &events).unwrap();
    let task = tokio::spawn(running);
    notes.recv().await.unwrap();
    drop(other);
    until(addr.port(), true).await;
    assert_eq!(ask(addr, "GET /").await.body, "here");
    task.abort();
}

#[tokio::test]
async fn status_server_answers_people_and_prometheus() {
    rules(&["S-148", "S-110", "S-160", "S-161", "S-215"]);
    let (metrics, slis) = (metrics(), slis());
    let health = Clock::start().health();
    let (probes, _probes) = served(pages::health(health, metrics.clone(), slis.clone()));
    ask(probes, "GET /healthz").await;
    ask(probes, "GET /livez").await;
    ask(probes, "GET /livez").await;

    let (asked, mut requests) = mpsc::channel::<Request>(1);
    let answering = metrics.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            assert_eq!(request.question, Question::Metrics);
            answering.set_no_local_endpoints("IPv4", LocalPolicy::External, 2);
            answering.set_held_up("IPv4", 1);
            let now = START.parse().unwrap();
            answering.synced("IPv4", now, Duration::from_millis(3), Extent::Partial);
            answering.programmed("IPv4", &[1.2]);
            answering.set_pending([1, 2]);
            let counters = [("flows_created".to_owned(), 7)].into();
            request.answer.send(answering.text(&counters)).unwrap();
        }
    });
    let configz = r#"{"shunt/v1alpha1":{"maxFlows":5}}"#.to_owned();
    let (addr, _server) = served(pages::status(StatusPages {
        configz: configz.clone(),
        ..status_pages(asked, slis, Profiling::Off)
    }));
    for (path, body) in [("/healthz", "ok"), ("/proxyMode", "shunt")] {
        let reply = ask(addr, &format!("GET {path}")).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, body));
    }
    let reply = ask(addr, "GET /configz").await;
    assert_eq!((reply.status, reply.body), (200, configz));
    let reply = ask(addr, "GET /metrics").await;
    assert_eq!(reply.status, 200);
    let type_ = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
    assert!(reply.headers().contains(&type_));
    for line in [
        r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
        r#"kubeproxy_proxy_livez_total{code="200"} 2"#,
        "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
        concat!(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            r#"{ip_family="IPv4",traffic_policy="external"} 2"#
        ),
        r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1772359200"#,
        r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 0"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 1"#,
        "kubeproxy_sync_proxy_rules_service_changes_pending 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
        "# slow",
        r#"shunt_service_ports_held_up{ip_family="IPv4"} 1"#,
        r#"shunt_datapath_events_total{event="flows_created"} 7"#,
    ] {
        assert!(reply.has(line), "{line}\n{}", reply.body);
    }
    assert_eq!(ask(addr, "GET /else").await.status, 404);
}

#[tokio::test]
async fn status_server_tells_checks_flags_and_versions() {
    rules(&["S-148"]);
    let slis = slis();
    let health = Clock::start().health();
    let (probes, _probes) = served(pages::health(health, metrics(), slis.clone()));
    for path in ["/healthz", "/livez", "/livez"] {
        ask(probes, &format!("GET {path}")).await;
    }
    let (asked, _requests) = mpsc::channel::<Request>(1);
    let (addr, _server) = served(pages::status(StatusPages {
        configz: r#"{"shunt/v1alpha1":{"maxFlows":5}}"#.to_owned(),
        ..status_pages(asked, slis, Profiling::Off)
    }));
    ask(addr, "GET /healthz").await;
    let reply = ask(addr, "GET /metrics/slis").await;
    for line in [
        r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
        r#"kubernetes_healthcheck{name="node",type="healthz"} 0"#,
        r#"kubernetes_healthchecks_total{name="node",status="error",type="healthz"} 1"#,
        r#"kubernetes_healthchecks_total{name="proxy",status="success",type="livez"} 2"#,
    ] {
        assert!(reply.has(line), "{line}\n{}", reply.body);
    }
    let reply = ask(addr, "GET /flagz").await;
    assert!(reply.body.ends_with("\nmax-flows=5\n"), "{}", reply.body);
    let reply = ask(addr, "GET /statusz").await;
    assert!(reply.body.contains("\nUp: 0 hr 00 min "), "{}", reply.body);
    for path in ["/debug/flags/v", "/debug/pprof/profile?seconds=1"] {
        assert_eq!(ask(addr, &format!("GET {path}")).await.status, 404);
    }
}

/// A status server that nobody asks for metrics.
fn status_pages(agent: mpsc::Sender<Request>, slis: Slis, profiling: Profiling) -> StatusPages {
    StatusPages {
        configz: "{}".to_owned(),
        profiling,
        agent,
        slow: Arc::new(|| "# slow\n".to_owned()),
        slis,
        started: Moment::now(),
    }
}

#[tokio::test]
async fn profiling_serves_a_profile_and_takes_a_verbosity() {
    rules(&["S-148"]);
    let (asked, _requests) = mpsc::channel::<Request>(1);
    let (addr, _server) = served(pages::status(status_pages(asked, slis(), Profiling::On)));
    let profile = fetch(addr, "GET /debug/pprof/profile?seconds=1", "").await;
    assert!(profile.starts_with(b"HTTP/1.1 200 OK"));
    // Field 11 of a profile is the type of its period: samples are of CPU time.
    assert!(profile.windows(3).any(|it| it == b"cpu"));
    let reply = ask(addr, "GET /debug/pprof/profile?seconds=0").await;
    assert_eq!(reply.status, 400);
    for (body, status) in [("4", 200), ("none", 400)] {
        let reply = fetch(addr, "PUT /debug/flags/v", body).await;
        let text = String::from_utf8(reply).unwrap();
        // A test has no log whose level could be set.
        let (is_read, is_set) = (text.contains("the log was not started"), status == 200);
        assert!(
            text.starts_with("HTTP/1.1 400") && is_read == is_set,
            "{text}"
        );
    }
    let paths = ask(addr, "GET /statusz").await.body;
    assert!(
        paths.contains("Paths: /debug/flags/v /debug/pprof/profile "),
        "{paths}"
    );
}
