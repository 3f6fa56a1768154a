//! `> settings NAME VALUE ...`

use anyhow::{Context, Result, bail};
use proxy_userspace::pipeline::watch::Selection;
use proxy_userspace::settings::{ExternalIps, NodePortAddress, Settings};

/// `node-name NAME`, `proxy-name NAME`, `external-ips ignore`, `cluster-cidr CIDR ...`,
/// `nodeport-addresses ENTRY ...`.
pub(super) fn setting(
    settings: &mut Settings,
    selection: &mut Selection,
    arguments: &[String],
) -> Result<()> {
    let (name, values) = arguments.split_first().context("settings NAME VALUE ...")?;
    match name.as_str() {
        "node-name" => {
            settings.node_name = values.first().cloned().unwrap_or_default();
            selection.node_name.clone_from(&settings.node_name);
        }
        "proxy-name" => selection.proxy_name = values.first().cloned(),
        "external-ips" => settings.external_ips = ExternalIps::Ignore,
        "cluster-cidr" => {
            settings.cluster_cidrs = values
                .iter()
                .map(|text| Ok(text.parse()?))
                .collect::<Result<_>>()?;
        }
        "nodeport-addresses" => {
            for value in values {
                settings.node_port_addresses.push(match value.as_str() {
                    "primary" => NodePortAddress::Primary,
                    "localhost" => NodePortAddress::Localhost,
                    "all" => NodePortAddress::All,
                    cidr => NodePortAddress::Cidr(cidr.parse()?),
                });
            }
        }
        name => bail!("unknown setting {name}"),
    }
    Ok(())
}
