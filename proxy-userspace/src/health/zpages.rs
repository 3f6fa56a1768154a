//! `/flagz` and `/statusz` (S-148): for people, in the form that Kubernetes components have
//! (KEP-4828, KEP-4827).

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use proxy_common::ABI_VERSION;
use serde_json::Value as Json;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no \
                       formatting compatibility guarantees and is for debugging purposes only.";

/// The options in force as flags, by name. `configz`: what `/configz` says.
pub fn flagz(configz: &str) -> String {
    let configz: Json = serde_json::from_str(configz).unwrap_or_default();
    let documents = configz.as_object().into_iter().flat_map(|all| all.values());
    let fields = documents.filter_map(Json::as_object).flatten();
    let mut flags: Vec<_> = fields.map(|(key, it)| (flag(key), value(it))).collect();
    flags.sort();
    let mut text = format!("\nshunt flagz\n{WARNING}\n\n");
    for (name, value) in flags {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// The name of a flag, whose key in a ShuntConfiguration is `key`: `externalIPs` is `external-ips`.
fn flag(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    let mut flag = String::new();
    for (at, char) in chars.iter().enumerate() {
        let after_lower = at > 0 && chars[at - 1].is_lowercase();
        if char.is_uppercase() && after_lower {
            flag.push('-');
        }
        flag.extend(char.to_lowercase());
    }
    flag
}

/// A value as it would be given on the command line.
fn value(json: &Json) -> String {
    match json {
        Json::String(text) => text.clone(),
        Json::Array(values) => values.iter().map(value).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// What runs, and since when. `paths`: what else is served beside it.
pub fn statusz(started: Timestamp, up: Duration, paths: &[&str]) -> String {
    let (hours, secs) = (up.as_secs() / 3600, up.as_secs() % 3600);
    let release = nix::sys::utsname::uname();
    let release = release.map(|it| it.release().to_string_lossy().into_owned());
    format!(
        "\nshunt statusz\n{WARNING}\n\nStarted: {started:.0}\n\
         Up: {hours} hr {:02} min {:02} sec\nBinary version: {}\nMap ABI version: {ABI_VERSION}\n\
         Kernel: {}\n\nPaths: {}\n",
        secs / 60,
        secs % 60,
        env!("CARGO_PKG_VERSION"),
        release.unwrap_or_default(),
        paths.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{flag, flagz, statusz};

    #[test]
    fn keys_become_the_flags_of_their_names() {
        for (key, name) in [
            ("maxFlows", "max-flows"),
            ("externalIPs", "external-ips"),
            ("clusterCIDR", "cluster-cidr"),
            ("bpffs", "bpffs"),
        ] {
            assert_eq!(flag(key), name);
        }
    }

    #[test]
    fn flags_are_listed_by_name_with_their_values_in_force() {
        let text = flagz(r#"{"v":{"snatPorts":["1-2","3-4"],"maxFlows":5,"masqueradeAll":true}}"#);
        let flags = text.split_once("only.\n\n").expect(&text).1;
        assert_eq!(
            flags,
            "masquerade-all=true\nmax-flows=5\nsnat-ports=1-2,3-4\n"
        );
    }

    #[test]
    fn status_says_since_when_and_what_else_there_is() {
        let started = "2026-03-01T10:00:00Z".parse().unwrap();
        let text = statusz(
            started,
            Duration::from_secs(90_061),
            &["/flagz", "/metrics"],
        );
        for line in [
            "Started: 2026-03-01T10:00:00Z",
            "Up: 25 hr 01 min 01 sec",
            "Paths: /flagz /metrics",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}{text}");
        }
    }
}
