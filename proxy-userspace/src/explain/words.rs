//! What stages decided, in words.

use proxy_common::frontend::flags;
use proxy_ebpf::Family;
use proxy_ebpf::pipeline::frontend::{Found, Origin};
use proxy_ebpf::pipeline::select::{Choice, Masquerade, Part};

use super::From;

/// Where it enters, and what the detector says.
pub fn origin_text(from: From, given: Option<From>, origin: Origin) -> String {
    let place = match from {
        From::Node => "sent by a process of this node",
        From::Pod => "enters by a pod's interface",
        From::External => "enters from outside of the node",
    };
    let told = match given {
        Some(_) => "",
        None => " (told by its source)",
    };
    let detected = match (origin.has_detector, origin.is_pod) {
        (false, _) => "there is no detector: nothing counts as a pod",
        (true, true) => "its source counts as a pod",
        (true, false) => "its source does not count as a pod",
    };
    format!("{place}{told}; {detected} (S-083)")
}

/// Which hook sees a process' packet.
pub fn hook_text(is_at_socket: bool) -> &'static str {
    match is_at_socket {
        true => "to an own address: only the socket hook sees it, at connect or sendmsg (P-8)",
        false => "the egress hook, or the socket hook where that gives the same",
    }
}

/// Which set, and why.
pub fn set_text(found: &Found, part: Part, origin: Origin) -> String {
    let is_local = found.has(flags::LOCAL_POLICY);
    let policy = match (found.is_cluster_ip(), is_local) {
        (true, true) => "internalTrafficPolicy Local",
        (true, false) => "internalTrafficPolicy Cluster",
        (false, true) => "externalTrafficPolicy Local",
        (false, false) => "externalTrafficPolicy Cluster",
    };
    let set = match part {
        Part::Cluster => "Cluster set",
        Part::Local => "Local set",
    };
    let exception = match (is_local, part, origin.is_pod) {
        (true, Part::Cluster, true) => ", short-circuited for a pod (S-081)",
        (true, Part::Cluster, false) => ", short-circuited for an own address (S-081)",
        _ => "",
    };
    format!("{set} ({policy}{exception})")
}

/// Why the source is kept.
pub fn kept_text<F: Family>(choice: &Choice<F>) -> &'static str {
    match choice.masquerade {
        Masquerade::IfNotLocal => "the backend is on this node, its answer returns here (P-4)",
        Masquerade::No | Masquerade::IfUnseen | Masquerade::Yes => "S-091",
    }
}

/// Why the source is changed.
pub fn snat_text<F: Family>(is_hairpin: bool, choice: &Choice<F>) -> &'static str {
    match (is_hairpin, choice.masquerade) {
        (true, _) => "the backend is the client itself (S-094)",
        (false, Masquerade::IfUnseen) => "the answer would leave past our programs (P-4)",
        (false, Masquerade::IfNotLocal) => "the answer would not return by this node (P-4)",
        (false, _) => "S-091",
    }
}
