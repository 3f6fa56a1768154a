//! What the API server would not have accepted, and a file may hold all the same: rules over the
//! decoded object. Bad entries of a list go singly (S-012), anything else rejects the object.
//! Defaults that the API server would have filled in are filled in here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::located::Step;
use crate::ip_text::{parse_cidr, parse_ip};
use crate::objects::{
    EndpointSlice, LoadBalancerIngress, Object, Service, ServiceCidr, ServicePortSpec, ServiceSpec,
};

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Complaint {
    /// The field.
    pub path: Vec<Step>,
    /// What is wrong.
    pub error: String,
}

/// A list entry's verdict.
type Entry = Result<(), String>;

/// Checks an object and fills in its defaults. `dropped` gets a complaint for each entry of a list
/// that was left out; the error rejects the object.
pub fn object(mut object: Object, dropped: &mut Vec<Complaint>) -> Result<Object, Complaint> {
    if object.metadata().name.is_empty() {
        return Err(complaint(keys(&["metadata", "name"]), "missing"));
    }
    match &mut object {
        Object::Service(service) => {
            namespaced(&mut service.metadata.namespace);
            self::service(service, dropped)?;
        }
        Object::EndpointSlice(slice) => {
            namespaced(&mut slice.metadata.namespace);
            endpoint_slice(slice, dropped)?;
        }
        Object::Node(node) => node.metadata.namespace.clear(),
        Object::ServiceCidr(service_cidr) => {
            service_cidr.metadata.namespace.clear();
            cidrs(service_cidr, dropped);
        }
    }
    Ok(object)
}

fn namespaced(namespace: &mut String) {
    if namespace.is_empty() {
        "default".clone_into(namespace);
    }
}

fn service(service: &mut Service, dropped: &mut Vec<Complaint>) -> Result<(), Complaint> {
    let spec = &mut service.spec;
    one_of(
        &["spec", "type"],
        spec.type_.as_deref(),
        &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"],
    )?;
    for (name, value) in [
        ("internalTrafficPolicy", &spec.internal_traffic_policy),
        ("externalTrafficPolicy", &spec.external_traffic_policy),
    ] {
        one_of(&["spec", name], value.as_deref(), &["Cluster", "Local"])?;
    }
    one_of(
        &["spec", "sessionAffinity"],
        spec.session_affinity.as_deref(),
        &["None", "ClientIP"],
    )?;
    affinity_timeout(spec)?;
    ports(spec)?;
    cluster_ips(spec, dropped)?;
    retain(
        &mut spec.external_ips,
        &keys(&["spec", "externalIPs"]),
        dropped,
        |text| text.is_empty() || parse_ip(text).is_some(),
    );
    let ranges = keys(&["spec", "loadBalancerSourceRanges"]);
    retain(
        &mut spec.load_balancer_source_ranges,
        &ranges,
        dropped,
        |text| text.trim().is_empty() || parse_cidr(text.trim()).is_some(),
    );
    ingress(&mut service.status.load_balancer.ingress, dropped);
    Ok(())
}

fn affinity_timeout(spec: &ServiceSpec) -> Result<(), Complaint> {
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|it| it.client_ip.as_ref());
    match client_ip.and_then(|config| config.timeout_seconds) {
        None | Some(1..=86_400) => Ok(()),
        Some(_) => Err(complaint(
            keys(&[
                "spec",
                "sessionAffinityConfig",
                "clientIP",
                "timeoutSeconds",
            ]),
            "must be 1 to 86400",
        )),
    }
}

fn ports(spec: &ServiceSpec) -> Result<(), Complaint> {
    let needs_ports =
        spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref() != Some("None");
    if spec.ports.is_empty() && needs_ports {
        let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
        let error = format!("a Service of type {type_} needs at least one port");
        return Err(Complaint {
            path: keys(&["spec", "ports"]),
            error,
        });
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let at = |field: &str| {
            let mut path = keys(&["spec", "ports"]);
            path.push(Step::Index(index));
            path.push(Step::Key(field.to_owned()));
            path
        };
        if port.port == 0 {
            return Err(complaint(at("port"), "must be 1 to 65535"));
        }
        protocol(at("protocol"), port.protocol.as_deref())?;
        if port.name.is_empty() && spec.ports.len() > 1 {
            return Err(complaint(
                at("name"),
                "needed where there are several ports",
            ));
        }
        if !names.insert(&port.name) {
            return Err(complaint(at("name"), "given to two ports"));
        }
        if !numbers.insert(number(port)) {
            return Err(complaint(at("port"), "given twice with the same protocol"));
        }
    }
    Ok(())
}

fn number(port: &ServicePortSpec) -> (u16, &str) {
    (port.port, port.protocol.as_deref().unwrap_or("TCP"))
}

fn protocol(path: Vec<Step>, value: Option<&str>) -> Result<(), Complaint> {
    match value {
        None | Some("TCP" | "UDP" | "SCTP") => Ok(()),
        Some(_) => Err(complaint(path, "must be TCP, UDP or SCTP")),
    }
}

/// Leaves out what is no address and gives every ClusterIP its family, as the API server does.
fn cluster_ips(spec: &mut ServiceSpec, dropped: &mut Vec<Complaint>) -> Result<(), Complaint> {
    let first = spec.cluster_ip.clone().unwrap_or_default();
    if first == "None" || spec.type_.as_deref() == Some("ExternalName") {
        return Ok(());
    }
    if spec.cluster_ips.is_empty() && !first.is_empty() {
        match parse_ip(&first) {
            Some(_) => spec.cluster_ips.push(first),
            None => {
                dropped.push(complaint(keys(&["spec", "clusterIP"]), "is no address"));
                spec.cluster_ip = None;
            }
        }
    }
    let families = std::mem::take(&mut spec.ip_families);
    let path = keys(&["spec", "clusterIPs"]);
    retain(&mut spec.cluster_ips, &path, dropped, |text| {
        parse_ip(text).is_some()
    });
    for addr in spec.cluster_ips.iter().filter_map(|text| parse_ip(text)) {
        spec.ip_families.push(family(addr).to_owned());
    }
    let both: BTreeSet<_> = spec.ip_families.iter().collect();
    if both.len() < spec.ip_families.len() {
        return Err(complaint(path, "two addresses of one family"));
    }
    for (index, given) in families.iter().enumerate() {
        let path = [keys(&["spec", "ipFamilies"]), vec![Step::Index(index)]].concat();
        if given != "IPv4" && given != "IPv6" {
            return Err(complaint(path, "must be IPv4 or IPv6"));
        }
        if !spec.ip_families.is_empty() && !spec.ip_families.contains(given) {
            dropped.push(complaint(path, "there is no ClusterIP of this family"));
        }
    }
    spec.cluster_ip = spec.cluster_ips.first().cloned();
    Ok(())
}

fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn ingress(entries: &mut Vec<LoadBalancerIngress>, dropped: &mut Vec<Complaint>) {
    let path = keys(&["status", "loadBalancer", "ingress"]);
    retain_entries(entries, &path, dropped, |entry| {
        let ip = entry.ip.as_deref().unwrap_or_default();
        if !ip.is_empty() && parse_ip(ip).is_none() {
            return Err(format!("ip: {ip:?} is no address"));
        }
        match entry.ip_mode.as_deref() {
            None | Some("VIP" | "Proxy") => Ok(()),
            Some(_) => Err("ipMode: must be VIP or Proxy".to_owned()),
        }
    });
}

fn endpoint_slice(
    slice: &mut EndpointSlice,
    dropped: &mut Vec<Complaint>,
) -> Result<(), Complaint> {
    let address_type = slice.address_type.as_str();
    one_of(
        &["addressType"],
        Some(address_type),
        &["IPv4", "IPv6", "FQDN"],
    )?;
    for (index, port) in slice.ports.iter().enumerate() {
        let path = vec![key("ports"), Step::Index(index), key("protocol")];
        protocol(path, port.protocol.as_deref())?;
    }
    if address_type == "FQDN" {
        return Ok(());
    }
    let mut index = 0;
    slice.endpoints.retain_mut(|endpoint| {
        let path = vec![key("endpoints"), Step::Index(index), key("addresses")];
        index += 1;
        retain_entries(
            &mut endpoint.addresses,
            &path,
            dropped,
            |text| match parse_ip(text) {
                Some(addr) if family(addr) == address_type => Ok(()),
                Some(addr) => Err(format!(
                    "{addr} is an {} address in an {address_type} slice",
                    family(addr)
                )),
                None => Err(format!("{text:?} is no address")),
            },
        );
        !endpoint.addresses.is_empty()
    });
    Ok(())
}

fn cidrs(service_cidr: &mut ServiceCidr, dropped: &mut Vec<Complaint>) {
    retain(
        &mut service_cidr.spec.cidrs,
        &keys(&["spec", "cidrs"]),
        dropped,
        |text| parse_cidr(text).is_some(),
    );
}

/// Keeps the texts that `is_good`.
fn retain(
    texts: &mut Vec<String>,
    path: &[Step],
    dropped: &mut Vec<Complaint>,
    is_good: impl Fn(&str) -> bool,
) {
    retain_entries(texts, path, dropped, |text| {
        if is_good(text) {
            Ok(())
        } else {
            Err(format!("{text:?} cannot be read"))
        }
    });
}

/// Keeps the entries that `verdict` accepts, and says of each other one what is wrong with it.
fn retain_entries<T>(
    entries: &mut Vec<T>,
    path: &[Step],
    dropped: &mut Vec<Complaint>,
    verdict: impl Fn(&T) -> Entry,
) {
    let mut index = 0;
    entries.retain(|entry| {
        let verdict = verdict(entry);
        if let Err(error) = &verdict {
            let path = [path, &[Step::Index(index)]].concat();
            dropped.push(Complaint {
                path,
                error: format!("{error}; this entry is left out"),
            });
        }
        index += 1;
        verdict.is_ok()
    });
}

fn one_of(path: &[&str], value: Option<&str>, allowed: &[&str]) -> Result<(), Complaint> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            let error = format!("{value:?} is not one of {}", allowed.join(", "));
            Err(Complaint {
                path: keys(path),
                error,
            })
        }
        _ => Ok(()),
    }
}

fn complaint(path: Vec<Step>, error: &str) -> Complaint {
    Complaint {
        path,
        error: error.to_owned(),
    }
}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

fn keys(names: &[&str]) -> Vec<Step> {
    names.iter().map(|name| key(name)).collect()
}
