//! The watch against a real API server, with EndpointSlices made by the real controllers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxy_userspace::objects::{EndpointSlice, Kind, Object, ObjectEvent, ObjectName, Service};
use proxy_userspace::pipeline::watch::{self, ApiSource, KINDS, Selection, Source};
use tests::lab::Lab;
use tests::net::{Netns, Sandbox, eventually};
use tests::rules;
use tokio::sync::oneshot;

/// Far longer than a controller or a reconnection takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane takes half a gigabyte: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Cluster {
    lab: Lab,
    // Dropped last: it ends the control plane.
    _sandbox: Sandbox,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    fn start() -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let sandbox = Sandbox::new()?;
        let netns = sandbox.netns("api")?;
        let lab = Lab::start(&sandbox, &netns, "127.0.0.1")?;
        Ok(Self {
            lab,
            _sandbox: sandbox,
            _turn: turn,
        })
    }
}

/// What a source has told so far, kept as a store would.
#[derive(Debug, Default)]
struct Seen {
    objects: BTreeMap<(Kind, ObjectName), Object>,
    stale: BTreeMap<Kind, Vec<ObjectName>>,
    listed: Vec<Kind>,
    rejected: Vec<String>,
}

impl Seen {
    fn take(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Restarted(kind) => {
                let known = self.objects.keys().filter(|key| key.0 == kind);
                let known = known.map(|key| key.1.clone()).collect();
                self.stale.insert(kind, known);
            }
            ObjectEvent::Applied(object) => {
                let metadata = object.metadata();
                let name = ObjectName {
                    namespace: metadata.namespace.clone(),
                    name: metadata.name.clone(),
                };
                let kind = object.kind();
                self.stale
                    .entry(kind)
                    .or_default()
                    .retain(|stale| *stale != name);
                self.objects.insert((kind, name), object);
            }
            ObjectEvent::Deleted(kind, name) => {
                self.objects.remove(&(kind, name));
            }
            ObjectEvent::Listed(kind) => {
                for name in self.stale.remove(&kind).unwrap_or_default() {
                    self.objects.remove(&(kind, name));
                }
                self.listed.push(kind);
            }
            ObjectEvent::Reread { .. } => {}
            ObjectEvent::Rejected { place, error, .. } => {
                self.rejected.push(format!("{place}: {error}"));
            }
        }
    }
}

/// A running source; dropping it ends it.
struct Watching {
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watching {
    fn start(netns: &Netns, kubeconfig: PathBuf, servers: &[&str]) -> Self {
        let servers = servers.iter().map(|&url| url.to_owned()).collect();
        let source = Source::Api(ApiSource {
            kubeconfig: Some(kubeconfig),
            servers,
            ..ApiSource::default()
        });
        let selection = Selection {
            node_name: "n1".to_owned(),
            proxy_name: None,
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, stopped) = oneshot::channel();
        let (netns, shared) = (netns.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            netns.enter(|| {
                // One thread: sockets are made where the runtime's thread is.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let mut events = watch::start(source, selection).await?;
                    let follow = async {
                        while let Some(event) = events.recv().await {
                            shared
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .take(event);
                        }
                    };
                    tokio::select! {
                        () = follow => bail!("the source ended"),
                        _ = stopped => Ok(()),
                    }
                })
            })?
        });
        Self {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn until<T>(&self, what: &str, condition: impl Fn(&Seen) -> Result<T>) -> Result<T> {
        eventually(PATIENCE, || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            condition(&seen).with_context(|| format!("{seen:#?}"))
        })
        .with_context(|| what.to_owned())
    }

    fn until_service(&self, what: &str, wanted: impl Fn(&Service) -> bool) -> Result<Service> {
        self.until(what, |seen| {
            match seen.objects.get(&(Kind::Service, in_default("web"))) {
                Some(Object::Service(service)) if wanted(service) => Ok(service.clone()),
                other => bail!("{other:?}"),
            }
        })
    }

    /// Until the IPv4 slices of `web` together have endpoints as `wanted`.
    fn until_endpoints(&self, what: &str, wanted: &[(&str, bool)]) -> Result<()> {
        self.until(what, |seen| {
            let mut found: Vec<_> = slices(seen, "IPv4")
                .flat_map(|slice| &slice.endpoints)
                .map(|it| {
                    (
                        it.addresses[0].as_str(),
                        it.conditions.ready.unwrap_or(true),
                    )
                })
                .collect();
            found.sort_unstable();
            ensure!(found == wanted, "{found:?} are not {wanted:?}");
            Ok(())
        })
    }

    fn end(mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn in_default(name: &str) -> ObjectName {
    ObjectName {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn slices<'a>(seen: &'a Seen, family: &'a str) -> impl Iterator<Item = &'a EndpointSlice> {
    seen.objects
        .values()
        .filter_map(move |object| match object {
            Object::EndpointSlice(slice)
                if slice.address_type == family
                    && slice
                        .metadata
                        .labels
                        .get("kubernetes.io/service-name")
                        .map(String::as_str)
                        == Some("web") =>
            {
                Some(slice)
            }
            _ => None,
        })
}

fn knows(seen: &Seen, kind: Kind, namespace: &str, name: &str) -> bool {
    let name = ObjectName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    seen.objects.contains_key(&(kind, name))
}

fn service(name: &str, spec: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
         spec: {{selector: {{app: web}}, {spec}}}\n"
    )
}

const WEB: &str = "type: NodePort, ipFamilyPolicy: PreferDualStack, \
                   ports: [{name: http, port: 80, targetPort: 8080}]";
const FOREIGN: &str = "service.kubernetes.io/service-proxy-name";

#[test]
fn objects_of_a_real_cluster_arrive_and_are_followed() -> Result<()> {
    rules(&["S-001", "S-002", "S-004", "S-079"]);
    let cluster = Cluster::start()?;
    let lab = &cluster.lab;
    lab.add_node("n1", &["192.0.2.11"])?;
    lab.add_node("n2", &["192.0.2.12"])?;
    lab.add_pod("web-1", "n1", "web", &["10.244.0.5", "fd00:10:244::5"])?;
    lab.apply(&service("web", WEB, ""))?;
    lab.apply(&service("foreign", WEB, &format!("{FOREIGN}: mesh")))?;
    lab.apply(&service("none", "clusterIP: None, ports: [{port: 80}]", ""))?;

    let watching = Watching::start(lab.netns(), lab.kubeconfig(), &[]);
    watching.until("complete lists", |seen| {
        ensure!(KINDS.iter().all(|kind| seen.listed.contains(kind)));
        Ok(())
    })?;
    let web = watching.until_service("web", |_| true)?;
    ensure!(
        web.spec.cluster_ips.len() == 2 && web.spec.ip_families == ["IPv4", "IPv6"],
        "{web:?}"
    );
    ensure!(web.spec.ports[0].node_port >= 30_000, "{web:?}");
    watching.until_endpoints("the pod", &[("10.244.0.5", true)])?;
    watching.until("the pod in IPv6 and its place", |seen| {
        let slice = slices(seen, "IPv6").next().context("no slice")?;
        let endpoint = slice.endpoints.first().context("no endpoint")?;
        ensure!(endpoint.addresses == ["fd00:10:244::5"]);
        ensure!(endpoint.node_name.as_deref() == Some("n1"));
        ensure!(slice.ports[0].port == Some(8080), "{slice:?}");
        Ok(())
    })?;
    watching.until(
        "this node, its pod networks and the Service networks",
        |seen| {
            let node = seen.objects.get(&(Kind::Node, cluster_scoped("n1")));
            let Some(Object::Node(node)) = node else {
                bail!("no node")
            };
            ensure!(node.status.addresses[0].address == "192.0.2.11");
            ensure!(node.spec.pod_cidrs.len() == 2);
            let cidrs = seen
                .objects
                .get(&(Kind::ServiceCidr, cluster_scoped("kubernetes")));
            let Some(Object::ServiceCidr(cidrs)) = cidrs else {
                bail!("no ServiceCIDR")
            };
            ensure!(cidrs.spec.cidrs == ["10.96.0.0/16", "fd00:10:96::/112"]);
            ensure!(!knows(seen, Kind::Node, "", "n2"), "another node");
            ensure!(
                !knows(seen, Kind::Service, "default", "foreign"),
                "another proxy's Service"
            );
            ensure!(
                !knows(seen, Kind::Service, "default", "none"),
                "a headless Service"
            );
            ensure!(seen.rejected.is_empty());
            Ok(())
        },
    )?;
    changes_are_followed(lab, &watching)?;
    labels_and_networks_are_followed(lab, &watching)?;
    watching.end()
}

fn cluster_scoped(name: &str) -> ObjectName {
    ObjectName {
        namespace: String::new(),
        name: name.to_owned(),
    }
}

fn changes_are_followed(lab: &Lab, watching: &Watching) -> Result<()> {
    lab.add_pod("web-2", "n2", "web", &["10.244.1.5"])?;
    watching.until_endpoints(
        "a second pod",
        &[("10.244.0.5", true), ("10.244.1.5", true)],
    )?;
    lab.set_ready("web-1", "False")?;
    watching.until_endpoints("unready", &[("10.244.0.5", false), ("10.244.1.5", true)])?;
    lab.delete(&["pod", "web-1"])?;
    watching.until_endpoints("one pod gone", &[("10.244.1.5", true)])?;

    let patch = "{\"spec\":{\"externalIPs\":[\"198.51.100.7\"]}}";
    lab.kubectl(&["patch", "service", "web", "-p", patch])?;
    watching.until_service("external address", |it| {
        it.spec.external_ips == ["198.51.100.7"]
    })?;
    let gone = |seen: &Seen| {
        ensure!(!knows(seen, Kind::Service, "default", "web"));
        Ok(())
    };
    lab.kubectl(&["label", "service", "web", &format!("{FOREIGN}=")])?;
    watching.until("hidden by a label", gone)?;
    lab.kubectl(&["label", "service", "web", &format!("{FOREIGN}-")])?;
    watching.until_service("shown again", |_| true)?;
    lab.delete(&["service", "web"])?;
    watching.until("deleted", gone)?;
    watching.until("slices deleted", |seen| {
        ensure!(
            slices(seen, "IPv4")
                .chain(slices(seen, "IPv6"))
                .next()
                .is_none()
        );
        Ok(())
    })
}

/// A slice becomes headless; a second ServiceCIDR comes and goes; another node changes.
fn labels_and_networks_are_followed(lab: &Lab, watching: &Watching) -> Result<()> {
    lab.apply(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: by-hand, labels: {kubernetes.io/service-name: db}}\n\
         addressType: IPv4\nports: [{name: \"\", port: 8080}]\n\
         endpoints: [{addresses: [10.244.0.9]}]\n",
    )?;
    let has_slice = |seen: &Seen| knows(seen, Kind::EndpointSlice, "default", "by-hand");
    watching.until("a slice made by hand", |seen| {
        ensure!(has_slice(seen));
        Ok(())
    })?;
    let headless = "service.kubernetes.io/headless=";
    lab.kubectl(&["label", "endpointslice", "by-hand", headless])?;
    watching.until("the slice is headless", |seen| {
        ensure!(!has_slice(seen));
        Ok(())
    })?;
    lab.apply(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\n\
         spec: {cidrs: [10.97.0.0/24]}\n",
    )?;
    let key = (Kind::ServiceCidr, cluster_scoped("more"));
    watching.until("a second ServiceCIDR", |seen| {
        let Some(Object::ServiceCidr(more)) = seen.objects.get(&key) else {
            bail!("no second ServiceCIDR")
        };
        ensure!(more.spec.cidrs == ["10.97.0.0/24"]);
        Ok(())
    })?;
    lab.delete(&["servicecidr", "more"])?;
    watching.until("one ServiceCIDR again", |seen| {
        ensure!(!seen.objects.contains_key(&key));
        Ok(())
    })?;
    let label = "topology.kubernetes.io/zone=z1";
    lab.kubectl(&["label", "node", "n2", label])?;
    lab.kubectl(&["label", "node", "n1", label])?;
    watching.until("the own Node's zone, and no other Node", |seen| {
        let node = seen.objects.get(&(Kind::Node, cluster_scoped("n1")));
        let zone = node.and_then(|node| node.metadata().labels.get("topology.kubernetes.io/zone"));
        ensure!(zone.is_some_and(|zone| zone == "z1"));
        ensure!(!knows(seen, Kind::Node, "", "n2"));
        Ok(())
    })
}

#[test]
fn daemon_set_is_accepted_and_its_rights_suffice() -> Result<()> {
    rules(&["S-001"]);
    let cluster = Cluster::start()?;
    let lab = &cluster.lab;
    lab.apply(include_str!("../../deploy/shunt.yaml"))?;
    let container = "jsonpath={.spec.template.spec.containers[0].securityContext.privileged}";
    let words = [
        "-n",
        "kube-system",
        "get",
        "daemonset",
        "shunt",
        "-o",
        container,
    ];
    ensure!(lab.kubectl(&words)? == "true");

    lab.add_node("n1", &["192.0.2.11"])?;
    let kubeconfig = lab.kubeconfig_of("kube-system", "shunt")?;
    let watching = Watching::start(lab.netns(), kubeconfig, &[]);
    watching.until(
        "every kind with the rights of the service account",
        |seen| {
            ensure!(KINDS.iter().all(|kind| seen.listed.contains(kind)));
            ensure!(
                knows(seen, Kind::Node, "", "n1")
                    && knows(seen, Kind::Service, "default", "kubernetes")
            );
            Ok(())
        },
    )?;
    watching.end()
}

#[test]
fn watch_goes_on_after_an_api_server_is_away() -> Result<()> {
    rules(&["S-008", "S-179", "S-183"]);
    let cluster = Cluster::start()?;
    let lab = &cluster.lab;
    lab.apply(&service("web", WEB, ""))?;
    // The first server never answers: nothing listens there.
    let servers = ["https://127.0.0.1:1", &lab.url()];
    let watching = Watching::start(lab.netns(), lab.kubeconfig(), &servers);
    watching.until_service("the second server", |_| true)?;

    lab.stop_server()?;
    ensure!(knows(
        &watching.seen.lock().unwrap_or_else(PoisonError::into_inner),
        Kind::Service,
        "default",
        "web"
    ));
    lab.up()?;
    lab.apply(&service("late", WEB, ""))?;
    lab.delete(&["service", "web"])?;
    watching.until("what changed afterwards", |seen| {
        ensure!(knows(seen, Kind::Service, "default", "late"));
        ensure!(!knows(seen, Kind::Service, "default", "web"));
        Ok(())
    })?;
    watching.end()
}
