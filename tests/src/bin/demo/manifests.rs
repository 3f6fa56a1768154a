//! The demo's own copy of `deploy/demo/`: what the agents follow, and what the checks expect.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use tests::topology::addresses::IpFamily;

/// The file whose change takes a backend out.
const SLICES: &str = "endpointslices.yaml";

/// A folder of manifests, read.
pub struct Manifests {
    /// The folder the agents follow.
    pub folder: PathBuf,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl Manifests {
    /// Copies `from` to `folder` and reads it.
    pub fn copy(from: &Path, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut manifests = Self {
            folder,
            services: Vec::new(),
            slices: Vec::new(),
        };
        let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
        for entry in entries {
            let path = entry?.path();
            let Some(name) = path.file_name() else {
                continue;
            };
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            fs::write(manifests.folder.join(name), &text)?;
            manifests
                .read(&text)
                .with_context(|| format!("in {}", path.display()))?;
        }
        Ok(manifests)
    }

    fn read(&mut self, text: &str) -> Result<()> {
        for document in serde_saphyr::from_multiple::<Value>(text)? {
            match document["kind"].as_str() {
                Some("Service") => self.services.push(serde_json::from_value(document)?),
                Some("EndpointSlice") => self.slices.push(serde_json::from_value(document)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// A port of a Service, by their names.
    pub fn port(&self, service: &str, port: &str) -> Result<&ServicePort> {
        let spec = self.service(service)?.spec.as_ref();
        let ports = spec
            .and_then(|spec| spec.ports.as_deref())
            .unwrap_or_default();
        let found = ports
            .iter()
            .find(|candidate| candidate.name.as_deref() == Some(port));
        found.with_context(|| format!("Service {service} has no port {port}"))
    }

    /// The ClusterIP of a family.
    pub fn cluster_ip(&self, service: &str, family: IpFamily) -> Result<IpAddr> {
        let spec = self.service(service)?.spec.as_ref();
        let texts = spec
            .and_then(|spec| spec.cluster_ips.as_deref())
            .unwrap_or_default();
        let mut addresses = texts.iter().filter_map(|text| text.parse::<IpAddr>().ok());
        let found = addresses.find(|address| is_of(*address, family));
        found.with_context(|| format!("Service {service} has no ClusterIP of {family:?}"))
    }

    /// The ready endpoints of a Service's port, in one family.
    pub fn ready(&self, service: &str, port: &str, family: IpFamily) -> BTreeSet<SocketAddr> {
        let all = self.endpoints().into_iter();
        let wanted = |e: &Endpoint| e.service == service && e.port == port && e.is_ready;
        all.filter(wanted)
            .map(|e| e.at)
            .filter(|at| is_of(at.ip(), family))
            .collect()
    }

    /// Every endpoint of every Service, with its protocol.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.slices.iter().flat_map(endpoints_of).collect()
    }

    /// Takes every endpoint at one of `addresses` out of the manifest, in one step.
    pub fn remove(&self, addresses: &[IpAddr]) -> Result<()> {
        let mut text = String::new();
        for slice in &self.slices {
            let mut slice = slice.clone();
            slice.endpoints.get_or_insert_default().retain(|endpoint| {
                let own = endpoint
                    .addresses
                    .iter()
                    .filter_map(|text| text.parse().ok());
                !own.into_iter().any(|own: IpAddr| addresses.contains(&own))
            });
            // JSON is YAML, and an API object is what it serializes to.
            text += &format!("---\n{}\n", serde_json::to_string_pretty(&slice)?);
        }
        // Beside the folder, on the same file system, so that readers see the old file or the new.
        let made = self.folder.with_extension("in-the-making");
        fs::write(&made, text).context("writing the changed manifest")?;
        fs::rename(made, self.folder.join(SLICES)).context("putting the manifest in place")
    }

    fn service(&self, name: &str) -> Result<&Service> {
        let found = self
            .services
            .iter()
            .find(|s| s.metadata.name.as_deref() == Some(name));
        found.with_context(|| format!("no Service {name} in {}", self.folder.display()))
    }
}

/// An endpoint of one port.
pub struct Endpoint {
    /// The Service it belongs to.
    pub service: String,
    /// The port's name.
    pub port: String,
    /// TCP or UDP.
    pub protocol: String,
    /// Where it listens.
    pub at: SocketAddr,
    is_ready: bool,
}

fn endpoints_of(slice: &EndpointSlice) -> Vec<Endpoint> {
    let labels = slice.metadata.labels.as_ref();
    let service = labels
        .and_then(|labels| labels.get("kubernetes.io/service-name"))
        .cloned();
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let Some(ip) = endpoint
            .addresses
            .first()
            .and_then(|text| text.parse().ok())
        else {
            continue;
        };
        let conditions = endpoint.conditions.as_ref();
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else {
                continue;
            };
            found.push(Endpoint {
                service: service.clone().unwrap_or_default(),
                port: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                at: SocketAddr::new(ip, number),
                is_ready: conditions
                    .and_then(|conditions| conditions.ready)
                    .unwrap_or(true),
            });
        }
    }
    found
}

fn is_of(address: IpAddr, family: IpFamily) -> bool {
    matches!(
        (address, family),
        (IpAddr::V4(_), IpFamily::V4) | (IpAddr::V6(_), IpFamily::V6)
    )
}
