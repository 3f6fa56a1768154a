//! `shunt cleanup`.

use super::args::{Output, QueryArgs};
use crate::agent::socket;
use crate::datapath;
use crate::datapath::pin::Pins;

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
