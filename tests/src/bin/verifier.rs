//! The program of `cargo xtask verifier`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tests::verifier::{Book, measure};

/// Measures what the BPF programs cost the verifier, and compares it with the budget.
#[derive(Parser)]
struct Arguments {
    /// The BPF object
    #[arg(long, env = "SHUNT_EBPF_OBJECT")]
    object: PathBuf,
    /// The file of budgets
    #[arg(long)]
    book: PathBuf,
    /// Write the file of budgets anew
    #[arg(long)]
    update: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let object =
        std::fs::read(&arguments.object).with_context(|| arguments.object.display().to_string())?;
    let costs = measure(&object)?;
    for (name, cost) in &costs {
        println!(
            "{name:>16} {:>8} instructions explored {:>4} bytes of stack",
            cost.explored, cost.stack
        );
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel")?;
    let kernel: Vec<&str> = release.split('.').take(2).collect();
    let kernel = kernel.join(".");
    let path = arguments.book.display().to_string();
    if arguments.update {
        return std::fs::write(&arguments.book, Book::text(&kernel, &costs)).context(path);
    }
    let text = std::fs::read_to_string(&arguments.book).with_context(|| path.clone())?;
    let complaints = Book::parse(&text)
        .context(path)?
        .complaints(&kernel, &costs);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}
