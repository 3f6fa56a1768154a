//! Cleaning up when the reader interrupts.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tests::net;
use tokio::signal::unix::{SignalKind, signal};

/// The sandbox to remove, once it is there.
static SANDBOX: OnceLock<String> = OnceLock::new();
/// How long a sandbox in the making may take.
const IN_THE_MAKING: Duration = Duration::from_secs(10);
/// How long the removal may take.
const REMOVAL: Duration = Duration::from_secs(10);
/// What shells report of a program ended by SIGINT.
const EXIT_CODE: i32 = 130;
/// Set when the process is about to end by a signal.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Names what has to go when this process is interrupted.
pub fn owns(sandbox: &str) {
    SANDBOX.get_or_init(|| sandbox.to_owned());
}

/// Waits for the end of the process when a signal decided on it: nothing that fails because the
/// cluster goes away is worth a word.
pub fn yield_to_interrupt() {
    while INTERRUPTED.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// From here on SIGINT, SIGTERM and SIGHUP remove the sandbox and end the process.
pub fn listen() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Release);
        clean_up();
        std::process::exit(EXIT_CODE);
    });
    Ok(())
}

fn clean_up() {
    eprintln!("\ninterrupted: removing the cluster");
    let name = net::eventually(IN_THE_MAKING, || {
        SANDBOX
            .get()
            .ok_or_else(|| anyhow::anyhow!("no cluster was made"))
    });
    // The main thread may be removing the same things: what it took away first is no failure.
    let removed = name.and_then(|name| net::eventually(REMOVAL, || net::remove(name)));
    match removed {
        Ok(()) => eprintln!("all of it is gone"),
        Err(error) => eprintln!("{error:#}"),
    }
}
