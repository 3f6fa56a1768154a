//! One reading of all counters, from the pinned maps. Names come from the agent, and are asked for
//! anew only where a frontend has none.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_common::{Addr4, Addr6, Address};

use super::columns::Counts;
use crate::agent::names::{self, Names};
use crate::agent::view::{self, Dialed};
use crate::datapath::maps::KernelMaps;
use crate::datapath::pin::{PinError, Pins};
use crate::family::protocol_name;
use crate::maps::FamilyMaps;

/// Between two questions for names: an answer is all that the agent knows.
const NAMES_PACE: Duration = Duration::from_secs(5);

/// All counters at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sample {
    /// Every frontend.
    pub frontends: Vec<FrontendSample>,
    /// Every backend of the Service that is looked into.
    pub backends: Vec<BackendSample>,
    /// Whether an agent gave the names.
    pub has_names: bool,
}

/// One frontend.
#[derive(Clone, PartialEq, Debug)]
pub struct FrontendSample {
    /// What clients dial.
    pub dialed: Dialed,
    /// Its Service: `namespace/name`, or what is dialed where no agent gave the name.
    pub service: Arc<str>,
    /// Its counters.
    pub counts: Counts,
}

/// One backend of a service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendSample {
    /// The service port, and where connections go.
    pub key: (String, SocketAddr),
    /// Its state.
    pub state: String,
    /// True if it runs on this node.
    pub is_local: bool,
    /// Its counters; those that only frontends have are 0.
    pub counts: Counts,
}

/// Reads samples.
#[derive(Debug)]
pub struct Reader {
    pins: Pins,
    names: Names,
    has_names: bool,
    asked: Option<Instant>,
}

impl Reader {
    /// Over the pins of an agent.
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            names: Names::new(),
            has_names: false,
            asked: None,
        }
    }

    /// Reads every counter once; backends of `service` alone. The maps are opened anew, because an
    /// upgrade puts others in their place.
    pub fn read(&mut self, service: Option<&str>, now: Instant) -> Result<Sample, PinError> {
        let maps = KernelMaps::open(&self.pins)?;
        let mut found = self.frontends(&maps);
        let is_due = self.asked.is_none_or(|at| now - at >= NAMES_PACE);
        if is_due && (found.1 > 0 || !self.has_names) {
            self.asked = Some(now);
            let answer = names::ask(&self.pins);
            self.has_names = answer.is_some();
            if let Some(names) = answer {
                self.names = names;
                found = self.frontends(&maps);
            }
        }
        let mut backends = Vec::new();
        if let Some(service) = service {
            self.backends::<Addr4>(&maps, service, &mut backends);
            self.backends::<Addr6>(&maps, service, &mut backends);
            backends.sort_by(|a, b| a.key.cmp(&b.key));
            // A backend of several frontends is one.
            backends.dedup_by(|a, b| a.key == b.key);
        }
        Ok(Sample {
            frontends: found.0,
            backends,
            has_names: self.has_names,
        })
    }

    /// All frontends, and how many of them have no name.
    fn frontends(&self, maps: &KernelMaps) -> (Vec<FrontendSample>, usize) {
        let mut all = Vec::new();
        let nameless = self.family::<Addr4>(maps, &mut all) + self.family::<Addr6>(maps, &mut all);
        (all, nameless)
    }

    fn family<A>(&self, maps: &KernelMaps, all: &mut Vec<FrontendSample>) -> usize
    where
        A: Address + Into<IpAddr>,
        KernelMaps: FamilyMaps<A>,
    {
        let mut nameless = 0;
        for (key, id) in FamilyMaps::<A>::frontend_ids(maps) {
            let dialed = (key.addr.into(), key.port.get(), key.protocol);
            let name = self.names.get(&dialed);
            nameless += usize::from(name.is_none());
            let counts = FamilyMaps::<A>::frontend_counts(maps, id);
            all.push(FrontendSample {
                dialed,
                service: name.map_or_else(|| dialed_text(dialed).into(), |name| service_of(name)),
                counts: [counts.connections, counts.refused, counts.dropped, 0, 0],
            });
        }
        nameless
    }

    fn backends<A>(&self, maps: &KernelMaps, service: &str, all: &mut Vec<BackendSample>)
    where
        A: Address + Into<IpAddr>,
        KernelMaps: FamilyMaps<A>,
    {
        for (key, id) in FamilyMaps::<A>::frontend_ids(maps) {
            let dialed = (key.addr.into(), key.port.get(), key.protocol);
            let name = self.names.get(&dialed);
            let text = name.map_or_else(|| dialed_text(dialed).into(), |name| service_of(name));
            if &*text != service {
                continue;
            }
            let Some(frontend) = view::frontend(maps, &key, id, None) else {
                continue;
            };
            let port = name.and_then(|name| name.rsplit_once(':'));
            let port = port.map(|(_, port)| port.to_owned()).unwrap_or_default();
            let both = frontend.backends.into_iter().chain(frontend.local_backends);
            all.extend(both.map(|backend| BackendSample {
                key: (port.clone(), backend.address),
                state: backend.state,
                is_local: backend.local,
                counts: [
                    backend.connections,
                    0,
                    0,
                    backend.traffic.bytes_to,
                    backend.traffic.bytes_from,
                ],
            }));
        }
    }
}

/// `namespace/name` of `namespace/name:port`.
fn service_of(name: &str) -> Arc<str> {
    name.rsplit_once(':')
        .map_or(name, |(service, _)| service)
        .into()
}

/// What is dialed, where nobody says by which Service.
fn dialed_text((addr, port, protocol): Dialed) -> String {
    let protocol = protocol_name(protocol);
    match addr.is_unspecified() {
        true => format!("*:{port}/{protocol}"),
        false => format!("{}/{protocol}", SocketAddr::new(addr, port)),
    }
}
