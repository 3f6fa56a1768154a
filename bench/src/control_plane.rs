//! The control plane: cold start, one change, a storm of changes, memory.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::apiserver::{self, Server};
use crate::objects::Size;
use crate::peers::{self, KubeProxy, Row};
use crate::{in_process, plot, process};

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Services
    #[arg(long, default_value_t = 10_000)]
    pub services: u32,
    /// Endpoints in total, spread evenly
    #[arg(long, default_value_t = 100_000)]
    pub endpoints: u32,
    /// Where the objects come from
    #[arg(long, value_enum, default_value_t)]
    pub source: Source,
    /// Single changes that are measured
    #[arg(long, default_value_t = 1000)]
    pub changes: u32,
    /// Seconds of the storm of endpoint changes
    #[arg(long, default_value_t = 30)]
    pub storm_secs: u32,
    /// Endpoint changes a second in the storm
    #[arg(long, default_value_t = 1000)]
    pub storm_rate: u32,
    /// Measure kube-proxy on the same objects too
    #[arg(long)]
    pub peers: bool,
    /// Draw shunt and the peers, which are measured then, into an SVG file and a PNG file beside it
    #[arg(
        long, value_name = "FILE", num_args = 0..=1,
        default_missing_value = "target/control-plane.svg"
    )]
    pub plot: Option<PathBuf>,
    /// The kube-proxy that is measured [default: the one that was built for the tests]
    #[arg(long, value_name = "FILE")]
    pub kube_proxy: Option<PathBuf>,
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    pub json: bool,
}

/// Where the objects come from.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// A real API server, filled with real objects
    Apiserver,
    /// A generator in a second process
    #[default]
    InProcess,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Figures {
    /// Process start until everything is programmed.
    pub cold_start_s: f64,
    /// CPU time of all threads, from the last object decoded to the last frontend published.
    pub cold_cpu_ms: f64,
    /// From the arrival of an event to the first lookup that returns the backend.
    pub change_us: Percentiles,
    /// From the write to the API.
    pub change_from_api_ms: Option<FromApi>,
    /// Map writes of one change.
    pub writes_per_change: f64,
    /// Resident memory of the agent at the end.
    pub rss_mib: f64,
    /// Service tables.
    pub maps_mib: f64,
    /// Flow tables.
    pub flow_maps_mib: f64,
}

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Change times from the write to the API.
#[derive(Clone, Copy, Debug)]
pub struct FromApi {
    /// Until a lookup returned the backend, ms.
    pub visible: Percentiles,
    /// Until a client that only watches had the event, ms.
    pub watch_p99: f64,
}

impl Percentiles {
    /// Of all measured values.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (values.len() as f64 * share) as usize;
            let value = values.get(index).or(values.last());
            value.copied().unwrap_or_default()
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// Rounds to two decimals: more are noise.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn summary(options: &Options, figures: &Figures) -> Value {
    let source = match options.source {
        Source::Apiserver => "apiserver",
        Source::InProcess => "in-process",
    };
    let change = figures.change_us;
    let from_api = figures.change_from_api_ms.map(|found| {
        json!({
            "p50": round(found.visible.p50), "p99": round(found.visible.p99),
            "watch_p99": round(found.watch_p99),
        })
    });
    json!({
        "source": source, "services": options.services, "endpoints": options.endpoints,
        "cold_start_s": round(figures.cold_start_s), "cold_cpu_ms": round(figures.cold_cpu_ms),
        "change_us": {"p50": round(change.p50), "p99": round(change.p99)},
        "change_from_api_ms": from_api,
        "writes_per_change": round(figures.writes_per_change),
        "rss_mib": round(figures.rss_mib), "maps_mib": round(figures.maps_mib),
        "flow_maps_mib": round(figures.flow_maps_mib),
    })
}

/// Measures, and prints what was found.
pub fn run(options: &Options) -> Result<()> {
    let (figures, _) = measure(options)?;
    let summary = summary(options, &figures);
    match options.json {
        true => println!("{summary}"),
        false => println!("{summary:#}"),
    }
    Ok(())
}

/// Measures; with peers there is a row for shunt and one for each of them.
pub fn measure(options: &Options) -> Result<(Figures, Vec<Row>)> {
    ensure!(options.services > 0, "no Services are no measurement");
    let kube_proxy = match options.peers || options.plot.is_some() {
        true => Some(KubeProxy::find(options)?),
        false => None,
    };
    let size = Size {
        services: options.services,
        endpoints: options.endpoints,
    };
    println!("load averages before: {}", process::load());
    let mut rows = Vec::new();
    let figures = match options.source {
        Source::InProcess => in_process::measure(size, options)?,
        Source::Apiserver => {
            let server = Server::start(size)?;
            let figures = apiserver::measure(&server, size, options)?;
            if let Some(kube_proxy) = &kube_proxy {
                let plot = options.plot.as_deref();
                rows = compare(&server, size, &figures, (kube_proxy, plot))?;
            }
            figures
        }
    };
    println!("load averages after: {}", process::load());
    Ok((figures, rows))
}

/// Measures the peers, and draws all rows where that is wanted.
fn compare(
    server: &Server,
    size: Size,
    figures: &Figures,
    (kube_proxy, plot): (&KubeProxy, Option<&Path>),
) -> Result<Vec<Row>> {
    let change = figures
        .change_from_api_ms
        .map(|found| found.visible.p50 / 1e3);
    let mut rows = vec![Row {
        name: "shunt".to_owned(),
        program_s: Some(figures.cold_start_s),
        change_s: change,
        rss_mib: figures.rss_mib,
    }];
    rows.extend(kube_proxy.measure(server, size)?);
    for row in &rows {
        println!("{}", peers::text(row));
    }
    if let Some(path) = plot {
        for path in plot::draw(path, size, &rows)? {
            println!("drawn into {}", path.display());
        }
    }
    Ok(rows)
}
