//! The names of Services, which the agent alone knows: the maps hold ids.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket::{self, Question};
use super::view::{Dialed, FrontendView};
use crate::datapath::pin::Pins;
use crate::family::protocol_number;

/// The address in a NodePort's key.
const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The address in a NodePort's key.
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The service port (`ns/name:port`) behind what clients dial.
pub type Names = BTreeMap<Dialed, String>;

/// Asks the agent of these pins; `None` where none answers.
pub fn ask(pins: &Pins) -> Option<Names> {
    let path = socket::path(pins).ok()?;
    let text = socket::ask(&path, Question::Services).ok()??;
    let views: Vec<FrontendView> = serde_json::from_str(&text).ok()?;
    Some(of(&views))
}

/// The names in what the agent says of its frontends.
pub fn of(views: &[FrontendView]) -> Names {
    let mut names = Names::new();
    for view in views {
        // A NodePort has no address; its backends say the family, where there are any.
        let mut backends = view.backends.iter().chain(&view.local_backends);
        let addresses = match (view.address, backends.next()) {
            (Some(address), _) => vec![address],
            (None, Some(backend)) if backend.address.is_ipv4() => vec![ANY4],
            (None, Some(_)) => vec![ANY6],
            (None, None) => vec![ANY4, ANY6],
        };
        let Some(protocol) = protocol_number(Some(&view.protocol)) else {
            continue;
        };
        let (namespace, name, port) = (&view.namespace, &view.name, &view.port_name);
        for address in addresses {
            let service = format!("{namespace}/{name}:{port}");
            names.insert((address, view.port, protocol), service);
        }
    }
    names
}

/// `name`, `ns/name` or `ns/name:port` for `ns/name:port`; also `#ID` for itself.
pub fn is_service(wanted: &str, found: &str) -> bool {
    let (service, _) = found.rsplit_once(':').unwrap_or((found, ""));
    let name = service.rsplit_once('/').map_or(service, |(_, name)| name);
    [found, service, name].contains(&wanted)
}

/// An address with or without a port.
pub fn is_address(wanted: &str, found: SocketAddr) -> bool {
    wanted.parse() == Ok(found) || wanted.parse::<IpAddr>() == Ok(found.ip())
}
