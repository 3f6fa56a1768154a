//! The real Kubernetes control plane for tests: `tests/kube-lab`, built with Go.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::packages;
use crate::command;
use crate::progress;

const KUBERNETES: (&str, &str, &str) = ("1", "37", "v1.37.2");

/// Installs what the lab's scripts call, and says where Go is missing.
pub fn programs() -> Result<()> {
    if command::which("go").is_none() {
        bail!("no Go: the API server of the tests is built with it (1.26 or later, from go.dev)");
    }
    packages::ensure_programs(&[
        ("openssl", "openssl"),
        ("curl", "curl"),
        ("python3", "python3"),
    ])
}

/// Builds the control plane and returns the folder it lies in. Go's cache knows what is new.
pub fn build() -> Result<PathBuf> {
    let bin = command::target("kube-lab/bin");
    let (major, minor, version) = KUBERNETES;
    let key = "-X k8s.io/component-base/version.";
    let flags =
        format!("-s -w {key}gitVersion={version} {key}gitMajor={major} {key}gitMinor={minor}");
    let mut build = go("kube-lab/kube", &flags)?;
    build.arg(bin.join("hyperkube")).arg("./hyperkube");
    let what = format!("building Kubernetes {version} for the tests (about 10 minutes when cold)");
    progress::beside(&what, "kube-lab", &mut build)?;
    Ok(bin)
}

/// Builds the program that asks Prometheus' engine, and returns it.
pub fn prometheus() -> Result<PathBuf> {
    let binary = command::target("prometheus/prometheus");
    let mut build = go("prometheus", "-s -w")?;
    build.arg(&binary).arg(".");
    let what = "building Prometheus' engine (about 2 minutes when cold)";
    progress::beside(what, "prometheus", &mut build)?;
    Ok(binary)
}

/// `go build -o` in a folder of `tests`; what is built is to be added.
fn go(folder: &str, flags: &str) -> Result<Command> {
    let Some(go) = command::which("go") else {
        bail!("no Go to build the programs of `tests/{folder}` with")
    };
    let mut build = Command::new(go);
    build.args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false"]);
    build.args(["-ldflags", flags, "-o"]);
    build.current_dir(command::root().join("tests").join(folder));
    build.env("CGO_ENABLED", "0").env_remove("GOFLAGS");
    Ok(build)
}
