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
    match output {
        Output::Json => println!("{}", serde_json::json!({ "removed": removed })),
        Output::Table if removed.is_empty() => println!("nothing of kube-proxy is left"),
        Output::Table => removed.iter().for_each(|it| println!("removed {it}")),
    }
    Ok(())
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
    match args.output {
        Output::Json => println!("{}", serde_json::json!({ "removed": was_there })),
        Output::Table if was_there => println!("removed everything below {root}"),
        Output::Table => println!("nothing below {root}"),
    }
    Ok(())
}
