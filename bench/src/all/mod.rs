//! `cargo xtask bench all`: every benchmark that has something to be compared with, in one run,
//! and one page of what came out.

mod machine;
mod page;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::control_plane::{self, Source};
use crate::peers::Row;
use crate::{network, process};

/// Where the page lies.
const FOLDER: &str = "docs";
/// Where a quick one lies, which nobody is to read for its figures.
const QUICK_FOLDER: &str = "target/benchmarks";
/// The page.
const PAGE: &str = "benchmarks.md";

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Little of everything: shows that it works, and no more
    #[arg(long)]
    quick: bool,
    /// Where page and pictures go [default: docs, with --quick target/benchmarks]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    json: bool,
}

/// What was measured.
struct Found {
    is_quick: bool,
    machine: String,
    /// Rows of `bench datapath --json`.
    datapath: Vec<Value>,
    network: network::Report,
    /// Services and endpoints of the next ones.
    size: (u32, u32),
    control_plane: Vec<Row>,
}

impl Found {
    fn json(&self) -> Value {
        let peers = self.control_plane.iter().map(Row::json);
        json!({
            "datapath": self.datapath,
            "network": network::json(&self.network),
            "control_plane": peers.collect::<Vec<_>>(),
        })
    }
}

/// Measures, and writes the page.
pub fn run(options: &Options) -> Result<()> {
    let usual = if options.quick { QUICK_FOLDER } else { FOLDER };
    let folder = options.folder.clone().unwrap_or_else(|| usual.into());
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let machine = machine::describe(&process::load())?;
    let datapath = datapath(options.quick, &picture(&folder, "datapath"))?;
    let network = network::measure(&network::Options::of_quick(options.quick))?;
    network::print(&network);
    drawn(&network::draw(&picture(&folder, "network"), &network)?)?;
    let control_plane = control_plane_options(options.quick, picture(&folder, "control-plane"));
    let (_, rows) = control_plane::measure(&control_plane)?;
    std::fs::remove_file(picture(&folder, "control-plane").with_extension("png"))?;
    let found = Found {
        is_quick: options.quick,
        machine,
        datapath,
        network,
        size: (control_plane.services, control_plane.endpoints),
        control_plane: rows,
    };
    let path = folder.join(PAGE);
    std::fs::write(&path, page::text(&found))
        .with_context(|| format!("writing {}", path.display()))?;
    println!("written: {}", path.display());
    if options.json {
        println!("{}", found.json());
    }
    network::ensure_hooks(&found.network)
}

/// The SVG file of a part.
fn picture(folder: &Path, part: &str) -> PathBuf {
    folder.join(format!("benchmarks-{part}.svg"))
}

/// A page shows SVG files: the PNG file beside each is for those who look at one alone.
fn drawn([_, png]: &[PathBuf; 2]) -> Result<()> {
    Ok(std::fs::remove_file(png)?)
}

/// A process of its own, because it stays on one processor.
fn datapath(is_quick: bool, picture: &Path) -> Result<Vec<Value>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["datapath", "--json", "--plot"]).arg(picture);
    command.args(is_quick.then_some("--quick"));
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("standard output")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if !line.starts_with('{') {
            println!("{line}");
        }
        last = line;
    }
    let status = child.wait()?;
    ensure!(status.success(), "bench datapath: {status}");
    std::fs::remove_file(picture.with_extension("png"))?;
    let mut figures: Value = serde_json::from_str(&last).with_context(|| last.clone())?;
    serde_json::from_value(figures["rows"].take()).context("rows of bench datapath")
}

fn control_plane_options(is_quick: bool, picture: PathBuf) -> control_plane::Options {
    let (services, endpoints, changes, storm_secs) = match is_quick {
        true => (40, 400, 3, 1),
        false => (10_000, 100_000, 1000, 30),
    };
    control_plane::Options {
        services,
        endpoints,
        source: Source::Apiserver,
        changes,
        storm_secs,
        storm_rate: if is_quick { 100 } else { 1000 },
        peers: true,
        plot: Some(picture),
        kube_proxy: None,
        json: false,
    }
}
