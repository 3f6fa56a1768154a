//! The kernel: its release, and what it can do.

use std::path::Path;

use super::{Finding, Severity};
use crate::datapath::environment;
use crate::datapath::features::{Features, LockedMemory};

const CHECK: &str = "kernel";

pub(super) fn check(sysctls: &Path) -> Vec<Finding> {
    let mut found = match Features::probe() {
        Ok(features) => features_of(&features),
        Err(error) => vec![Finding::new(
            Severity::Problem,
            CHECK,
            "bpf(2)",
            error.to_string(),
        )],
    };
    found.extend(locked_memory());
    found.extend(jit(sysctls));
    found
}

fn features_of(features: &Features) -> Vec<Finding> {
    let place = format!("uname -r: {}", features.kernel);
    let has = format!("5.10 or newer is needed, and BPF is allowed; it has {features}");
    let mut found = vec![Finding::ok(CHECK, &place, has)];
    let mut lacks = |is_there: bool, severity, text: &str, remedy: &str| {
        if !is_there {
            found.push(Finding::new(severity, CHECK, &place, text).remedy(remedy));
        }
    };
    lacks(
        features.tcx,
        Severity::Note,
        "no TCX: programs are attached as clsact filters, which others can remove more easily",
        "6.6 or newer has it",
    );
    lacks(
        features.set_retval,
        Severity::Note,
        "no bpf_set_retval: a refused connect() fails with EPERM instead of ECONNREFUSED",
        "5.18 or newer has it",
    );
    lacks(
        features.udp_destroy,
        Severity::Warning,
        "UDP sockets cannot be destroyed: connected ones that the socket hooks translated stay \
         with a backend that is gone",
        "a kernel with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY (modprobe udp_diag)",
    );
    lacks(
        environment::netns_cookie() != 0,
        Severity::Note,
        "no cookies of network namespaces: sockets of the node are not told from those of pods",
        "5.14 or newer has them",
    );
    found
}

/// Below 5.11 maps count against a limit of the process that makes them.
fn locked_memory() -> Option<Finding> {
    match LockedMemory::read() {
        LockedMemory::NotCounted => None,
        LockedMemory::Unlimited => Some(Finding::ok(
            CHECK,
            "RLIMIT_MEMLOCK",
            "maps count against it below 5.11, and it can be raised",
        )),
        LockedMemory::Limited(bytes) => Some(
            Finding::new(
                Severity::Problem,
                CHECK,
                "RLIMIT_MEMLOCK",
                format!(
                    "{bytes} bytes, and it cannot be raised: below 5.11 maps count against it, and \
                     will not fit"
                ),
            )
            .remedy("give CAP_SYS_RESOURCE, or start with ulimit -l unlimited"),
        ),
    }
}

/// The setting is seen in the machine's first network namespace alone.
fn jit(sysctls: &Path) -> Option<Finding> {
    let path = sysctls.join("net/core/bpf_jit_enable");
    let text = std::fs::read_to_string(&path).ok()?;
    let place = path.display().to_string();
    Some(match text.trim() {
        "0" => Finding::new(
            Severity::Warning,
            CHECK,
            place,
            "0: programs are interpreted, several times slower",
        )
        .remedy("sysctl -w net.core.bpf_jit_enable=1"),
        value => Finding::ok(CHECK, place, format!("{value}: programs are compiled")),
    })
}
