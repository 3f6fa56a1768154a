//! The health ports of Services (S-140 to S-143): how many local endpoints a load balancer finds
//! behind this node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::watch;

use super::BIND_RETRY;
use super::http::{self, Answer, Handler, Ipv6Only, Server};
use super::pages::Health;
use crate::events::{Events, Note, Regarding, Severity};
use crate::objects::ObjectName;

/// The health check of one Service on this node, in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Check {
    /// Its healthCheckNodePort.
    pub port: u16,
    /// Different addresses of local ready endpoints.
    pub local_endpoints: usize,
}

/// The checks of one family, and where they are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checks {
    /// The unspecified address alone, or the addresses that serve NodePorts.
    pub addresses: Vec<IpAddr>,
    /// By Service.
    pub services: BTreeMap<ObjectName, Check>,
}

/// The checks of IPv4 and of IPv6.
pub type Wanted = [Checks; 2];

/// Keeps servers as `wanted` says, until its sender is gone.
pub async fn serve(mut wanted: watch::Receiver<Wanted>, health: Health, events: Events) {
    let mut servers = Servers {
        health,
        events,
        running: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    loop {
        let places = places(&wanted.borrow_and_update());
        servers.set(places).await;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(BIND_RETRY), if !servers.failed.is_empty() => {}
        }
    }
}

/// One listening socket.
type ServerPlace = (SocketAddr, ObjectName);

struct Servers {
    health: Health,
    events: Events,
    running: BTreeMap<ServerPlace, (Server, Count)>,
    /// Where listening failed, and why: said once.
    failed: BTreeMap<ServerPlace, String>,
}

/// What a server answers with; changed in place, so that connections outlive a new count.
type Count = Arc<Mutex<usize>>;

impl Servers {
    /// Closes what is unneeded, then opens what is missing (S-143).
    async fn set(&mut self, places: BTreeMap<ServerPlace, usize>) {
        let unneeded: Vec<ServerPlace> = self
            .running
            .keys()
            .filter(|place| !places.contains_key(*place))
            .cloned()
            .collect();
        for place in unneeded {
            if let Some((server, _)) = self.running.remove(&place) {
                server.close().await;
            }
        }
        self.failed.retain(|place, _| places.contains_key(place));
        for (place, count) in places {
            match self.running.get(&place) {
                Some((_, known)) => *lock(known) = count,
                None => self.open(place, count),
            }
        }
    }

    fn open(&mut self, place: ServerPlace, count: usize) {
        let (addr, service) = &place;
        match http::bind(*addr, Ipv6Only::Yes) {
            Ok(listener) => {
                let count = Count::new(Mutex::new(count));
                let handler = handler(service.clone(), count.clone(), self.health.clone());
                self.failed.remove(&place);
                let server = http::serve(listener, handler);
                self.running.insert(place, (server, count));
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.get(&place) != Some(&error) {
                    self.events.publish(Note {
                        regarding: Regarding::Service(service.clone()),
                        severity: Severity::Warning,
                        reason: "FailedToStartServiceHealthcheck",
                        action: "Listen",
                        text: format!("health check port: listening on {addr}: {error}"),
                    });
                    self.failed.insert(place, error);
                }
            }
        }
    }
}

/// Every socket that should listen, with its count.
fn places(wanted: &Wanted) -> BTreeMap<ServerPlace, usize> {
    let mut places = BTreeMap::new();
    for checks in wanted {
        for (service, check) in &checks.services {
            for addr in &checks.addresses {
                let addr = SocketAddr::new(*addr, check.port);
                places.insert((addr, service.clone()), check.local_endpoints);
            }
        }
    }
    places
}

fn handler(service: ObjectName, count: Count, health: Health) -> Handler {
    Arc::new(move |_path| {
        let count = *lock(&count);
        let answer = answer(&service, count, health.is_proxy_healthy());
        Box::pin(std::future::ready(answer))
    })
}

/// S-141: the same for every path and method.
fn answer(service: &ObjectName, local_endpoints: usize, is_proxy_healthy: bool) -> Answer {
    let body = Body {
        service: ServiceBody {
            namespace: &service.namespace,
            name: &service.name,
        },
        local_endpoints,
        service_proxy_healthy: is_proxy_healthy,
    };
    let status = match local_endpoints > 0 && is_proxy_healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    // Plain data: this cannot fail.
    let body = serde_json::to_string(&body).unwrap_or_default();
    let mut answer = Answer::json(status, body);
    let weight = local_endpoints.to_string();
    answer
        .headers
        .push(("x-load-balancing-endpoint-weight", weight));
    answer
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceBody<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceBody<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn lock(count: &Count) -> std::sync::MutexGuard<'_, usize> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}
