//! `cargo xtask VERB`: what a developer runs. Each verb prepares what it needs by itself.

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod check;
mod command;
mod coverage;
mod demo;
mod fuzz;
mod kernels;
mod progress;
mod rules;
mod setup;
mod test;
mod tidy;
mod verifier;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and demonstrates shunt.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the BPF object into target/bpf/shunt-ebpf.o
    BuildEbpf,
    /// Builds the agent, with the BPF object inside, into target/release/shunt
    Build(build::Options),
    /// Builds what tests of upgrades start besides: an agent of another version of the map ABI,
    /// into target/other-abi/shunt
    BuildOtherAbi,
    /// Runs all tests, set-up included (root)
    Test(test::Options),
    /// Runs rustfmt, clippy on host and BPF targets, tidy and rules
    Check,
    /// Shows what the BPF programs cost the verifier, and compares it with docs/verifier.md (root)
    Verifier(verifier::Options),
    /// Shows which lines the host layers of the tests reach
    Coverage,
    /// Damages packets and looks at what the packet's path makes of them: `--minutes N`, `parse` or
    /// `pipeline`
    Fuzz(fuzz::Options),
    /// Shows which tests cite which rule of docs/service-semantics.md
    Rules,
    /// Runs the kernel tests on other kernels, booted in qemu (root)
    Kernels(kernels::Options),
    /// Measures shunt (root): `control-plane`, `datapath`, `network`, `all` of these or, simulated,
    /// `cluster`, with options
    Bench(bench::Options),
    /// Does everything that happens to a node, over and over, under traffic (root): `--minutes N`
    Soak(bench::SoakOptions),
    /// Shows Services at work in a small cluster of network namespaces on this machine (root)
    Demo(demo::Options),
}

fn main() -> std::process::ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::BuildEbpf => build::ebpf().map(drop),
        Verb::Build(options) => build::run(&options),
        Verb::BuildOtherAbi => build::other_abi(),
        Verb::Test(options) => test::run(&options),
        Verb::Check => check::run(),
        Verb::Verifier(options) => verifier::run(&options),
        Verb::Coverage => coverage::run(),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Rules => rules::run(),
        Verb::Kernels(options) => kernels::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Soak(options) => bench::run(&options.as_benchmark()),
        Verb::Demo(options) => demo::run(&options),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
