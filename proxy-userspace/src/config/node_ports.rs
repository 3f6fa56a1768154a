//! `nodePortAddresses` (S-118) and what is odd about it (S-191).

use super::{ConfigError, wrong};
use crate::ip_text::parse_cidr;
use crate::settings::NodePortAddress;

/// Not given is empty.
pub fn node_port_addresses(texts: Option<&[String]>) -> Result<Vec<NodePortAddress>, ConfigError> {
    const OPTION: &str = "nodeport-addresses";
    let mut found = Vec::new();
    for text in texts.unwrap_or_default() {
        let entry = match text.as_str() {
            "primary" => NodePortAddress::Primary,
            "localhost" => NodePortAddress::Localhost,
            "all" => NodePortAddress::All,
            other => match parse_cidr(other) {
                Some(cidr) => NodePortAddress::Cidr(cidr),
                None => {
                    let message = format!("{other:?} is no CIDR, primary, localhost or all");
                    return Err(wrong(OPTION, &message));
                }
            },
        };
        let is_keyword = !matches!(entry, NodePortAddress::Cidr(_));
        if is_keyword && found.contains(&entry) {
            return Err(wrong(OPTION, &format!("{text} is given twice")));
        }
        found.push(entry);
    }
    Ok(found)
}

/// S-191.
pub fn warn_of_node_ports(entries: &[NodePortAddress], warnings: &mut Vec<String>) {
    if entries.is_empty() {
        warnings.push(
            "nodeport-addresses is not given: NodePorts are served on the node's primary \
             addresses only"
                .to_owned(),
        );
        return;
    }
    for (is_ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
        let is_covered = entries.iter().any(|entry| match entry {
            NodePortAddress::Cidr(cidr) => cidr.addr().is_ipv4() == is_ipv4,
            NodePortAddress::Primary | NodePortAddress::Localhost | NodePortAddress::All => true,
        });
        if !is_covered {
            warnings.push(format!(
                "nodeport-addresses has no {family} CIDR: every {family} address of this node \
                 serves NodePorts"
            ));
        }
    }
}
