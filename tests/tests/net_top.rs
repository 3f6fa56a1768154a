//! `shunt top` in a real terminal, on a node with an agent and traffic.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::agent;
use tests::net::eventually;
use tests::rig::{Client, Rig, Target};
use tests::screen::{ENDED, Screen, Size};
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

/// Columns and lines of the terminals here.
const SIZE: Size = (120, 20);

fn screen(rig: &Rig, script: &str) -> Result<Screen> {
    Screen::start(&rig.cluster.sandbox().dir(), SIZE, script)
}

/// The command on n1, as a shell gets it.
fn command(rig: &Rig, more: &str) -> Result<String> {
    let netns = rig.place(Client::Node)?.netns;
    let (binary, bpffs) = (agent::binary()?, rig.agents[0].bpffs());
    let netns = netns.path();
    Ok(format!(
        "nsenter --net={} {} top --bpffs {bpffs} {more}",
        netns.display(),
        binary.display()
    ))
}

fn connect(rig: &mut Rig, service: &'static str, times: u32) -> Result<()> {
    let to = rig.address(Target::ClusterIp(service), IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(times);
    let report = rig.client(Client::PodAsPackets)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    Ok(())
}

/// The number behind a name in a line: the rate is the first, the total follows the history.
fn total(line: &str) -> Option<u64> {
    // Behind it two rates, each a number and its unit.
    line.split_whitespace().rev().nth(4)?.parse().ok()
}

#[test]
fn services_are_shown_by_rate_and_keys_lead_to_their_backends() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let screen = screen(&rig, &command(&rig, "")?)?;
    screen.await_text("five Services", |lines| lines[0].starts_with("5 Services"))?;
    screen.await_text("the keys", |lines| {
        lines.iter().any(|it| it.starts_with("q quit"))
    })?;

    // The one with traffic comes first, and its history stays when it is over.
    connect(&mut rig, "far", 20)?;
    screen.await_text("demo/far first", |lines| {
        let is_counted = lines[2].split_whitespace().any(|word| word == "20");
        lines[2].starts_with("demo/far") && is_counted && lines[2].contains('█')
    })?;

    // By name, and back.
    screen.press(&["n"])?;
    screen.await_text("demo/all first", |lines| lines[2].starts_with("demo/all"))?;
    screen.press(&["n"])?;
    screen.await_text("demo/self first", |lines| lines[2].starts_with("demo/self"))?;

    screen.press(&["/", "a", "r"])?;
    screen.await_text("two left", |lines| {
        lines[0].starts_with("2 of 5 Services") && lines.iter().any(|it| it.starts_with("/ar"))
    })?;
    screen.press(&["Enter"])?;
    screen.await_text("the filter kept", |lines| {
        lines.iter().any(|it| it.contains("q quit  /ar"))
    })?;

    backends_of_far(&rig, &screen)?;

    screen.press(&["Escape"])?;
    screen.await_text("the list", |lines| lines[0].contains("of 5 Services"))?;
    screen.press(&["Escape"])?;
    screen.await_text("all Services", |lines| lines[0].starts_with("5 Services"))?;

    // Without the agent the counters go on.
    rig.agents[0].kill()?;
    connect(&mut rig, "near", 5)?;
    screen.await_text("demo/near counted", |lines| {
        let line = lines.iter().find(|it| it.starts_with("demo/near"));
        line.is_some_and(|it| it.split_whitespace().any(|word| word == "5"))
    })?;

    // The terminal is as it was.
    screen.press(&["q"])?;
    let ended = format!("{ENDED} 0");
    screen.await_text("its end", |lines| lines[0].trim() == ended)
}

/// From a list of `far` and `near` into the backends of the first.
fn backends_of_far(rig: &Rig, screen: &Screen) -> Result<()> {
    // The chosen row was `self`, which the filter has hidden: the first one is chosen.
    screen.press(&["Home", "Enter"])?;
    let far = |lines: &[&str]| lines[0].starts_with("demo/far: ");
    let near = |lines: &[&str]| lines[0].starts_with("demo/near: ");
    screen.await_text("backends", |lines| far(lines) || near(lines))?;
    if near(&screen.text()?.lines().collect::<Vec<_>>()) {
        screen.press(&["Escape"])?;
        screen.await_text("the list", |lines| lines[0].contains("of 5 Services"))?;
        screen.press(&["End", "Enter"])?;
    }
    screen.await_text("backends of demo/far", far)?;
    let of_far = |pod: &str| format!("{}:8080", rig.pods[pod].addresses.v4);
    for pod in ["b", "c"] {
        let address = of_far(pod);
        screen.await_text(&address, |lines| {
            let line = lines.iter().find(|it| it.starts_with(&address));
            line.is_some_and(|it| it.contains("Active") && it.contains("other"))
        })?;
    }
    // Their counts are those of the Service together.
    let (b, c) = (of_far("b"), of_far("c"));
    screen.await_text("20 connections", |lines| {
        let of_it = lines
            .iter()
            .filter(|it| it.starts_with(&b) || it.starts_with(&c));
        let of_it = of_it.filter(|it| it.contains("TCP") || it.contains("tcp"));
        of_it.filter_map(|it| total(it)).sum::<u64>() == 20
    })?;
    Ok(())
}

/// The only child of a process.
fn child(pid: &str) -> Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.trim().parse()?)
}

#[test]
fn a_signal_ends_it_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let rig = Rig::new(Variant::default(), &[])?;
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        // A long interval: the signal is not noticed by the next tick.
        let script = format!(
            "{}; echo code $?; stty -a",
            command(&rig, "--interval 3600")?
        );
        let screen = screen(&rig, &script)?;
        screen.await_text("five Services", |lines| lines[0].starts_with("5 Services"))?;
        let format = |format: &str| screen.tmux(&["display-message", "-p", format]);
        ensure!(format("#{alternate_on}")?.trim() == "1");
        let shell = format("#{pane_pid}")?;
        kill(Pid::from_raw(child(shell.trim())?), signal)?;
        screen.await_text("a terminal in order", |lines| {
            let has = |text: &str| lines.iter().any(|line| line.contains(text));
            let words: Vec<&str> = lines.iter().flat_map(|it| it.split([' ', ';'])).collect();
            let is_on = |word: &str| words.contains(&word);
            has("code 0") && is_on("echo") && is_on("icanon") && is_on("isig")
        })?;
        ensure!(
            format("#{alternate_on}#{cursor_flag}")?.trim() == "01",
            "{signal}"
        );
    }
    Ok(())
}

#[test]
fn it_ends_with_its_terminal() -> Result<()> {
    let rig = Rig::new(Variant::default(), &[])?;
    let screen = screen(&rig, &command(&rig, "")?)?;
    screen.await_text("five Services", |lines| lines[0].starts_with("5 Services"))?;
    let shell = screen.tmux(&["display-message", "-p", "#{pane_pid}"])?;
    let top = Pid::from_raw(child(shell.trim())?);
    drop(screen);
    eventually(Duration::from_secs(30), || {
        // Signal 0 only asks whether the process is there.
        ensure!(kill(top, None).is_err(), "process {top} goes on");
        Ok(())
    })
}

#[test]
fn what_is_no_terminal_is_told_what_to_use() -> Result<()> {
    let rig = Rig::new(Variant::default(), &[])?;
    let bpffs = rig.agents[0].bpffs();
    for words in [
        &["top", "--bpffs", &bpffs][..],
        &["top", "-o", "json", "--bpffs", &bpffs],
    ] {
        let error = rig.agents[0].shunt(words).expect_err("it ended well");
        let text = format!("{error:#}");
        ensure!(text.contains("service list -w"), "{text}");
    }
    // In a terminal too, and it is left alone.
    let screen = screen(&rig, &command(&rig, "-o json")?)?;
    let ended = format!("{ENDED} 2");
    screen.await_text("a hint", |lines| {
        lines[0].contains("service list -w") && lines.iter().any(|it| it.trim() == ended)
    })
}
