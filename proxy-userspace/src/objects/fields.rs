//! Fields that are decoded in their own way.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::health::latency::TRIGGER_TIME;
use crate::pipeline::desired::maglev::{ALGORITHM, WEIGHTS};
use crate::pipeline::desired::node::ZONE_LABEL;
use crate::pipeline::store::SERVICE_NAME_LABEL;
use crate::pipeline::watch::{HEADLESS_LABEL, PROXY_NAME_LABEL};

/// Labels that are read; all others are dropped at decoding.
const LABELS_READ: [&str; 4] = [
    SERVICE_NAME_LABEL,
    PROXY_NAME_LABEL,
    HEADLESS_LABEL,
    ZONE_LABEL,
];

/// Keeps the labels that mean something here; clients write any number of their own.
pub fn labels_read<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let mut labels = BTreeMap::deserialize(deserializer)?;
    labels.retain(|key: &String, _| LABELS_READ.contains(&key.as_str()));
    Ok(labels)
}

/// Annotations that are read; all others are dropped at decoding.
const ANNOTATIONS_READ: [&str; 3] = [ALGORITHM, WEIGHTS, TRIGGER_TIME];

/// Keeps the annotations that mean something here.
pub fn annotations_read<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let all: Option<BTreeMap<String, String>> = Option::deserialize(deserializer)?;
    let mut all = all.unwrap_or_default();
    all.retain(|key, _| ANNOTATIONS_READ.contains(&key.as_str()));
    Ok(all)
}

/// Reads `null` as the type's default, as the API writes empty lists.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
