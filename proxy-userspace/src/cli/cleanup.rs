//! `shunt cleanup`.

use super::args::{CleanupArgs, Output, QueryArgs};
use crate::agent::socket;
use crate::datapath;
use crate::datapath::pin::Pins;
use crate::leftovers;

/// Cleans up after shunt or after kube-proxy.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    match args.kube_proxy {
        true => clean_kube_proxy(args.query.output),
        false => clean(&args.query),
    }
}

fn clean_kube_proxy(output: Output) -> anyhow::Result<()> {
    let removed = leftovers::remove()?;
    let lines = || removed.iter().map(|it| format!("removed {it}"));
    let text = match output.form() {
        Some(form) => form.text(&serde_json::json!({ "removed": removed }))?,
        None if removed.is_empty() => "nothing of kube-proxy is left".to_owned(),
        None => lines().collect::<Vec<_>>().join("\n"),
    };
    super::print(&text).map(drop)
}

/// Takes everything of ours below `--bpffs` away. Nothing there is nothing to do.
pub fn clean(args: &QueryArgs) -> anyhow::Result<()> {
    let pins = Pins::at(&args.bpffs);
    let was_there = pins.exist();
    let socket = socket::path(&pins);
    datapath::cleanup(&args.bpffs)?;
    if let Ok(path) = socket {
        // Left by an agent that was killed; harmless where it stays.
        let _ = std::fs::remove_file(path);
    }
    let root = pins.root().display();
    let text = match args.output.form() {
        Some(form) => form.text(&serde_json::json!({ "removed": was_there }))?,
        None if was_there => format!("removed everything below {root}"),
        None => format!("nothing below {root}"),
    };
    super::print(&text).map(drop)
}
