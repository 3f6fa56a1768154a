//! One packet through the stages.

use std::net::IpAddr;

use bytemuck::Zeroable;
use proxy_common::flow::flags as flow_flags;
use proxy_common::interface::flags as interface_flags;
use proxy_common::node::address_flags;
use proxy_common::{Address as _, Be16, Connection, Counter, FrontendKey, FrontendKind, Tuple};
use proxy_ebpf::environment::RouteQuery;
use proxy_ebpf::pipeline::frontend::{self, Found, Origin, Place};
use proxy_ebpf::pipeline::host::no_headers;
use proxy_ebpf::pipeline::parse::Headers;
use proxy_ebpf::pipeline::select::{self, Choice, Part, Takers};
use proxy_ebpf::pipeline::{filter, nat, parse};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Environment, Family, Hook, Stop, Tables, V6, socket};

use super::world::{Entries, Routes, UPLINK, World};
use super::{Answer, From, MetBy, Query, Stage, Verdict, endpoint_text, kind_text, packet, words};
use crate::family::{IpFamily, frontend_text};

/// Says what happens to the packet, and why.
pub fn explain(world: &World, query: &Query) -> Answer {
    let (src, dst) = (query.src.to_canonical(), query.dst.to_canonical());
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Run::new(world, &world.v4, query).run(src.into(), dst.into())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Run::<V6>::new(world, &world.v6, query).run(src.into(), dst.into())
        }
        _ => Answer {
            reason: "the addresses are of two families: no such packet".to_owned(),
            ..nothing()
        },
    }
}

fn nothing() -> Answer {
    Answer {
        verdict: Verdict::None,
        reason: String::new(),
        service: None,
        kind: None,
        backends: Vec::new(),
        chosen: None,
        snat: false,
        snat_address: None,
        hairpin: false,
        stages: Vec::new(),
        met_by: None,
    }
}

/// One packet on its way.
struct Run<'a, F: Family> {
    world: &'a World,
    tables: &'a HostTables<F>,
    query: &'a Query,
    answer: Answer,
}

/// The kernel around the packet: no other connection, no socket in the way.
struct Surroundings<'a> {
    hook: Hook,
    ifindex: u32,
    routes: &'a Routes,
}

impl<F: Family<Addr: IpFamily>> Environment<F> for Surroundings<'_> {
    fn hook(&self) -> Hook {
        self.hook
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn now_secs(&self, _hz: u32) -> u32 {
        0
    }

    fn random(&self) -> u32 {
        0
    }

    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        (self.routes)(query.tuple.dst.to_ip())
    }

    fn socket_owns(&self, _tuple: &Tuple<F::Addr>, _protocol: u8) -> bool {
        false
    }
}

/// Where the packet enters.
struct Entry {
    ifindex: u32,
    origin: Origin,
    /// The socket hook serves it: no packet of it reaches an interface (P-8).
    is_at_socket: bool,
}

impl<'a, F: Family<Addr: IpFamily>> Run<'a, F> {
    fn new(world: &'a World, tables: &'a HostTables<F>, query: &'a Query) -> Self {
        Self {
            world,
            tables,
            query,
            answer: nothing(),
        }
    }

    fn run(mut self, src: F::Addr, dst: F::Addr) -> Answer {
        let tuple = Tuple {
            src,
            dst,
            sport: Be16::new(self.query.sport),
            dport: Be16::new(self.query.dport),
        };
        // A first packet meets no binding that an earlier question has made.
        self.tables.written.take();
        if let Err((stage, stop)) = self.stages(&tuple) {
            let (verdict, counter) = match stop {
                Stop::Pass(counter) => (Verdict::None, counter),
                Stop::Drop(counter) => (Verdict::Drop, counter),
                Stop::Reject(counter, _) => (Verdict::Reject, counter),
            };
            self.answer.verdict = verdict;
            self.answer.reason = counter.text().to_owned();
            self.say(stage, counter.text().to_owned());
        }
        let verdict = self.answer.verdict.name().to_owned();
        self.say("verdict", verdict);
        self.answer
    }

    fn say(&mut self, stage: &'static str, answer: String) {
        self.answer.stages.push(Stage { stage, answer });
    }

    fn stages(&mut self, tuple: &Tuple<F::Addr>) -> Result<(), (&'static str, Stop)> {
        let at = |stage| move |stop| (stage, stop);
        let tables = self.tables;
        let config = tables.config();
        let config = config.ok_or(("parse", Stop::Pass(Counter::Unconfigured)))?;
        let headers = self.parse(tuple).map_err(at("parse"))?;
        let entry = self.enter(&headers);
        filter::check(tables, config, &headers).map_err(at("filter"))?;
        self.say("filter", "may be a Service's: looked at".to_owned());
        let found = self.find(&headers, &entry).map_err(at("frontend"))?;
        let env = Surroundings {
            hook: match entry.origin.place {
                Place::Node => Hook::Egress,
                Place::PodSide | Place::Bridge | Place::Outside => Hook::Ingress,
            },
            ifindex: entry.ifindex,
            routes: &self.world.routes,
        };
        frontend::admit(tables, &env, &headers, &found).map_err(at("admit"))?;
        if found.has(proxy_common::frontend::flags::SOURCE_RANGES) {
            self.say("admit", "inside loadBalancerSourceRanges".to_owned());
        }
        let (mut part, masquerade) = select::row(tables, config, &headers, &found, entry.origin);
        if entry.is_at_socket {
            part = socket::part::<F>(config, &found, &tuple.dst);
        }
        self.answer.backends = self.members(&found, part);
        // What only the socket hooks serve counts too.
        let asked = (&found, entry.origin, Takers::All, (part, masquerade));
        let choice = select::select_of(tables, &env, config, &headers, asked)
            .map_err(|stop| ("select", self.stopped(stop, &headers, &entry)))?;
        self.choose(&found, part, &entry, &choice);
        self.translate(&headers, &env, &choice);
        Ok(())
    }

    fn parse(&mut self, tuple: &Tuple<F::Addr>) -> Result<Headers<F>, Stop> {
        let protocol = self.query.protocol.number();
        let packet = packet::starting::<F>(tuple, protocol);
        let mut headers = no_headers();
        parse::parse::<F, _>(&packet, 0, &mut headers)?;
        self.say(
            "parse",
            format!(
                "{} {} -> {}",
                crate::family::protocol_name(protocol),
                endpoint_text(tuple.src.to_ip(), tuple.sport.get()),
                endpoint_text(tuple.dst.to_ip(), tuple.dport.get()),
            ),
        );
        Ok(headers)
    }

    /// Where the packet enters, and whether its source counts as a pod (S-083).
    fn enter(&mut self, headers: &Headers<F>) -> Entry {
        let is_own = self.is_own(&headers.tuple.src);
        let detect = |interface, place| match self.tables.config() {
            Some(config) => frontend::detect::<F>(config, &headers.tuple.src, place, interface),
            None => Origin {
                place,
                is_pod: false,
                has_detector: false,
                bridge: 0,
            },
        };
        let (ifindex, interface) = self.interface();
        let from = self.query.from.unwrap_or_else(|| {
            if is_own {
                From::Node
            } else if detect(interface, Place::Outside).is_pod
                || interface & interface_flags::POD_SIDE != 0
            {
                From::Pod
            } else {
                From::External
            }
        });
        let place = match from {
            From::Node => Place::Node,
            From::Pod => Place::PodSide,
            From::External => Place::Outside,
        };
        // A process' packet has no input interface.
        let origin = detect(if from == From::Node { 0 } else { interface }, place);
        let is_at_socket = from == From::Node && self.is_own(&headers.tuple.dst);
        self.say("origin", words::origin_text(from, self.query.from, origin));
        if from == From::Node {
            self.say("hook", words::hook_text(is_at_socket).to_owned());
        }
        self.answer.met_by = Some(match place {
            Place::Node if is_at_socket => MetBy::Socket,
            Place::Node => MetBy::Egress,
            Place::PodSide => MetBy::Ingress(interface | interface_flags::POD_SIDE),
            Place::Bridge | Place::Outside => MetBy::Ingress(interface),
        });
        Entry {
            ifindex,
            origin,
            is_at_socket,
        }
    }

    fn is_own(&self, addr: &F::Addr) -> bool {
        self.tables.node_address(addr) & address_flags::OWN != 0 || addr.is_loopback()
    }

    /// The interface that the packet enters by, and its flags.
    fn interface(&self) -> (u32, u32) {
        let name = self.query.in_interface.as_deref();
        match (&self.world.entries, name) {
            (Entries::Live(interfaces), Some(name)) => {
                let ifindex = interfaces.get(name).copied().unwrap_or(0);
                let known = self.tables.interface(ifindex);
                (ifindex, known.map_or(0, |interface| interface.flags))
            }
            (Entries::Named(detect), Some(name)) if detect.matches(name) => {
                (UPLINK, interface_flags::DETECTED)
            }
            // Of a pod's interface nothing is known but that it matches.
            (_, None) if self.query.from == Some(From::Pod) => (UPLINK, interface_flags::DETECTED),
            _ => (UPLINK, 0),
        }
    }

    /// S-075 (b) to (f).
    fn find(&mut self, headers: &Headers<F>, entry: &Entry) -> Result<Found, Stop> {
        let config = self.tables.config();
        let config = config.ok_or(Stop::Pass(Counter::Unconfigured))?;
        let tuple = &headers.tuple;
        let found = if entry.is_at_socket && tuple.dst.is_loopback() {
            let key = FrontendKey {
                addr: tuple.dst,
                port: tuple.dport,
                protocol: headers.protocol,
                pad: 0,
            };
            let found = socket::find(self.tables, config, &key);
            found.ok_or(Stop::Pass(Counter::NotFrontend))?
        } else {
            frontend::find(self.tables, config, headers)?
        };
        self.name(&found);
        Ok(found)
    }

    /// Puts names to what was found.
    fn name(&mut self, found: &Found) {
        let Some(frontend) = self.tables.frontends.get(&found.id) else {
            return;
        };
        let key = &frontend.key;
        let dialed = (key.addr.to_ip(), key.port.get(), key.protocol);
        let service = self.world.services.get(&dialed).cloned();
        let service = service.unwrap_or_else(|| format!("#{}", found.tail.service_port));
        let kind = FrontendKind::from_number(found.header.kind);
        let kind_name = kind.map_or("frontend", kind_text);
        let text = format!("{kind_name} {} of {service}", frontend_text(key));
        self.answer.service = Some(service);
        self.answer.kind = kind;
        self.say("frontend", text);
    }

    /// What stops at a socket stops otherwise than a packet.
    fn stopped(&mut self, stop: Stop, headers: &Headers<F>, entry: &Entry) -> Stop {
        self.answer.backends.clear();
        let stop = match entry.is_at_socket {
            true => socket::stopped(stop, &headers.tuple.dst),
            false => stop,
        };
        if let Stop::Pass(_) = stop {
            self.answer.service = None;
            self.answer.kind = None;
        }
        stop
    }

    /// Every backend of a set that takes new flows.
    fn members(&self, found: &Found, part: Part) -> Vec<String> {
        let (count, start) = select::bounds(found, part);
        let members = (0..count)
            .filter_map(|index| select::member(self.tables, found.region + start, index))
            .map(|(_, backend)| endpoint_text(backend.addr.to_ip(), backend.port.get()));
        let mut members: Vec<String> = members.collect();
        members.sort();
        members.dedup();
        members
    }

    fn choose(&mut self, found: &Found, part: Part, entry: &Entry, choice: &Choice<F>) {
        let chosen = endpoint_text(choice.backend.addr.to_ip(), choice.backend.port.get());
        let set = words::set_text(found, part, entry.origin);
        let count = self.answer.backends.len();
        self.say("select", format!("{set}: {chosen}, one of {count}"));
        let kind = self.answer.kind.map_or("frontend", kind_text);
        let service = self.answer.service.as_deref().unwrap_or_default();
        self.answer.reason = format!("{kind} of {service}: {set}");
        self.answer.chosen = Some(chosen);
        self.answer.verdict = Verdict::Dnat;
    }

    /// The source that the backend sees (S-091 to S-096).
    fn translate(&mut self, headers: &Headers<F>, env: &Surroundings<'_>, choice: &Choice<F>) {
        let backend = &choice.backend;
        let to = Tuple {
            dst: backend.addr,
            dport: backend.port,
            ..headers.tuple
        };
        self.answer.hairpin = nat::is_hairpin(headers, choice);
        self.answer.snat = nat::is_masqueraded(self.tables, env, headers, choice, &to);
        let mut connection = Connection::zeroed();
        let planned = nat::plan(self.tables, env, headers, choice, &mut connection);
        if planned.is_ok() && connection.flags & flow_flags::SNAT != 0 {
            self.answer.snat_address = Some(connection.to.src.to_ip());
        }
        let is_delivered = self.tables.node_address(&backend.addr) & address_flags::OWN != 0;
        let source = match (self.answer.snat, self.answer.snat_address, planned) {
            (false, _, _) => format!("source kept: {}", words::kept_text(choice)),
            (true, Some(addr), _) => format!(
                "source becomes {addr}: {}",
                words::snat_text(self.answer.hairpin, choice)
            ),
            (true, None, _) if is_delivered => "source kept: local delivery".to_owned(),
            (true, None, Err(Stop::Drop(counter))) => {
                format!("to be masqueraded, but {}", counter.text())
            }
            (true, None, _) => "to be masqueraded".to_owned(),
        };
        self.say("nat", source);
    }
}
