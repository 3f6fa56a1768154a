//! `shunt top`.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;

use super::Misuse;
use super::args::TopArgs;
use crate::datapath::pin::Pins;
use crate::top::sample::Reader;
use crate::top::screen;
use crate::top::state::{Key, Next, State};

/// Shows Services by rate until `q` is pressed or a signal ends it.
pub fn show(args: &TopArgs) -> anyhow::Result<()> {
    if args.query.output.form().is_some() || !io::stdout().is_terminal() {
        let text = "top is for terminals: `shunt service list -w -o json` prints what changes";
        return Err(Misuse(text.to_owned()).into());
    }
    let pins = Pins::at(&args.query.bpffs);
    if !pins.exist() {
        bail!(
            "nothing is pinned below {}: start an agent, or name its folder by --bpffs",
            pins.root().display()
        );
    }
    let terminal = ratatui::try_init().context("setting the terminal up")?;
    end_on_signals().context("waiting for signals")?;
    let period = Duration::from_secs(args.interval.into());
    let shown = run(terminal, Reader::new(pins), period);
    ratatui::restore();
    shown
}

/// On SIGTERM and SIGHUP, from here on, restores the terminal and ends this process: from a thread
/// of its own, because one that reads a terminal that is gone does not come back (crossterm).
fn end_on_signals() -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGHUP);
    set.thread_block()?;
    std::thread::spawn(move || {
        // It fails where there is nothing to wait for.
        if set.wait().is_ok() {
            ratatui::restore();
            // Else the terminal does it when it is dropped. One that is gone shows none.
            let _ = execute!(io::stdout(), Show);
            std::process::exit(0);
        }
    });
    Ok(())
}

/// True once an event of the terminal can be read, false when it is time.
fn wait(due: Instant) -> io::Result<bool> {
    event::poll(due.saturating_duration_since(Instant::now()))
}

fn run(mut terminal: DefaultTerminal, mut reader: Reader, period: Duration) -> anyhow::Result<()> {
    let mut state = State::default();
    let mut last: Option<Instant> = None;
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        if now >= due {
            let elapsed = last.map_or(Duration::ZERO, |last| now - last);
            match reader.read(state.focus.as_deref(), now) {
                Ok(sample) => {
                    state.take(sample, elapsed.as_secs_f64());
                    last = Some(now);
                }
                Err(error) => state.trouble = Some(crate::error_chain(&error)),
            }
            due = now + period;
        }
        terminal.draw(|frame| screen::draw(frame, &mut state))?;
        if wait(due)?
            && let Event::Key(pressed) = event::read()?
            && let Some(key) = key(pressed)
        {
            match state.press(key) {
                Next::Draw => {}
                Next::Read => due = Instant::now(),
                Next::Quit => return Ok(()),
            }
        }
    }
}

fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let is_control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if is_control => Key::Interrupt,
        KeyCode::Char(_) if is_control => return None,
        KeyCode::Char(character) => Key::Char(character),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Down => Key::Move(1),
        KeyCode::Up => Key::Move(-1),
        KeyCode::PageDown => Key::Page(1),
        KeyCode::PageUp => Key::Page(-1),
        KeyCode::Home => Key::Move(isize::MIN),
        KeyCode::End => Key::Move(isize::MAX),
        _ => return None,
    })
}
