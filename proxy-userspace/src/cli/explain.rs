//! `shunt explain`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Misuse;
use super::args::{ExplainArgs, Output};
use crate::config::{self, AgentOptions, Machine};
use crate::datapath::pin::Pins;
use crate::explain::live::{self, LiveError, Overrides};
use crate::explain::{self, Answer, Query, World, packets, text};
use crate::objects::ObjectEvent;
use crate::pipeline::watch::Source;
use crate::pipeline::watch::manifests::Manifests;

/// Prints what happens to the packets.
pub fn explain(args: ExplainArgs) -> anyhow::Result<()> {
    let (answers, complaints) = answers(&args)?;
    for complaint in &complaints {
        eprintln!("shunt: {complaint}");
    }
    let is_list = args.packets.is_some();
    let format = args.output.unwrap_or(match is_list {
        true => Output::Json,
        false => Output::Table,
    });
    match (format.form(), answers.as_slice()) {
        (Some(form), [answer]) if !is_list => println!("{}", form.text(answer)?),
        (Some(form), answers) => println!("{}", form.text(answers)?),
        (None, answers) => {
            let texts: Vec<String> = answers.iter().map(text::text).collect();
            print!("{}", texts.join("\n"));
        }
    }
    Ok(())
}

/// The answers in the order of the packets, and what is to be said besides.
pub fn answers(args: &ExplainArgs) -> anyhow::Result<(Vec<Answer>, Vec<String>)> {
    let (queries, world) = asked(args)?;
    let answers = queries.iter();
    let answers = answers
        .map(|query| explain::explain(&world, query))
        .collect();
    Ok((answers, world.complaints))
}

/// What is asked, and the node that it is asked about.
pub fn asked(args: &ExplainArgs) -> anyhow::Result<(Vec<Query>, World)> {
    Ok((queries(args)?, world(args)?))
}

fn queries(args: &ExplainArgs) -> Result<Vec<Query>, Misuse> {
    if let Some(path) = &args.packets {
        let name = path.display();
        let text = read(path).map_err(|error| Misuse(format!("{name}: {error}")))?;
        return packets::parse(&text).map_err(|error| Misuse(format!("{name}: {error}")));
    }
    let (Some((src, sport)), Some((dst, dport))) = (args.source, args.destination) else {
        return Err(Misuse(
            "--source and --destination, or --packets".to_owned(),
        ));
    };
    let query = Query {
        src,
        sport,
        dst,
        dport,
        protocol: args.protocol,
        from: args.from,
        in_interface: args.in_interface.clone(),
    };
    packets::one_family(&query).map_err(Misuse)?;
    Ok(vec![query])
}

/// A file, or standard input by the name `-`.
fn read(path: &Path) -> std::io::Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn world(args: &ExplainArgs) -> anyhow::Result<World> {
    let machine = Machine::this();
    let misuse = |error| Misuse(crate::error_chain(&error));
    let file = config::merge(args.given.clone(), args.config.as_deref(), &machine);
    let given = file.map_err(misuse)?.given;
    // The server that a configuration file names is the agent's business.
    if args.given.kubeconfig.is_some() || args.given.apiserver.is_some() {
        let text = "explain reads --manifests or the maps of this node, no API server";
        return Err(Misuse(text.to_owned()).into());
    }
    let options = config::resolve(given.clone(), &machine).map_err(misuse)?;
    if let Source::Manifests(paths) = &options.source {
        return Ok(of_manifests(&options, paths, args)?);
    }
    let overrides = Overrides {
        given: &given,
        settings: &options.settings,
        addresses: &args.local_address,
    };
    let world = live::world(&Pins::at(&options.bpffs), &overrides);
    world.map_err(|error| match error {
        LiveError::Flag { .. } => Misuse(error.to_string()).into(),
        other => anyhow::Error::from(other),
    })
}

fn of_manifests(
    options: &AgentOptions,
    paths: &[PathBuf],
    args: &ExplainArgs,
) -> Result<World, Misuse> {
    for path in paths {
        std::fs::metadata(path)
            .map_err(|error| Misuse(format!("manifests: {}: {error}", path.display())))?;
    }
    let events: Vec<ObjectEvent> = Manifests::new(paths.to_vec(), options.selection.clone()).list();
    Ok(World::of_objects(
        &options.settings,
        events,
        &args.local_address,
    ))
}
