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
    let Some(go) = command::which("go") else {
        bail!("no Go to build the API server with")
    };
    let bin = command::target("kube-lab/bin");
    let binary = bin.join("hyperkube");
    let (major, minor, version) = KUBERNETES;
    let key = "-X k8s.io/component-base/version.";
    let flags =
        format!("-s -w {key}gitVersion={version} {key}gitMajor={major} {key}gitMinor={minor}");
    let mut build = Command::new(go);
    build.args([
        "build",
        "-trimpath",
        "-mod=readonly",
        "-buildvcs=false",
        "-ldflags",
        &flags,
        "-o",
    ]);
    build.arg(&binary).arg("./hyperkube");
    build.current_dir(command::root().join("tests/kube-lab/kube"));
    build.env("CGO_ENABLED", "0").env_remove("GOFLAGS");
    let what = format!("building Kubernetes {version} for the tests (about 10 minutes when cold)");
    progress::beside(&what, "kube-lab", &mut build)?;
    Ok(bin)
}
