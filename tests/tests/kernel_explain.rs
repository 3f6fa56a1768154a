//! What `shunt explain` answers is what the programs do: every packet of the tables in
//! `tests/explain`, by BPF_PROG_TEST_RUN over the same maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use proxy_common::node::address_flags;
use proxy_common::{Counter, Interface, interface};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, Verdict};
use proxy_userspace::cli::explain as cli;
use proxy_userspace::explain::{self, Answer, MetBy, Query};
use tests::cases::kernel::{HZ, Input, Runner};
use tests::cases::world::{CaseFamily, MARK};
use tests::model::plan::Tcp;
use tests::model::wire::{Spec, TTL, ends, wrong_answer};
use tests::net::{Netns, Sandbox};
use tests::oracle::Protocol;
use tests::packet_tables::{Question, questions};

/// The interface that packets enter and leave by.
const UPLINK: u32 = 10;
/// Its MTU in bytes.
const MTU: u32 = 1500;

/// What became of the questions, by what the answer was.
type Seen = BTreeMap<&'static str, usize>;

#[test]
fn programs_do_what_explain_says() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let questions = questions(scratch.path())?;
    let sandbox = Sandbox::new()?;
    let netns = node(&sandbox)?;
    let (seen, failures) = netns.enter(|| ask_all(&questions))??;
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let missing = ["dnat", "snat", "reject", "drop", "none"];
    for what in missing {
        assert!(seen.get(what).is_some_and(|count| *count >= 5), "{seen:?}");
    }
    // All that no packet shows: a socket hook translates before there is one.
    assert!(seen["socket"] * 4 < questions.len(), "{seen:?}");
    println!("{seen:?}");
    Ok(())
}

/// A node whose only way is its uplink.
fn node(sandbox: &Sandbox) -> Result<Netns> {
    let netns = sandbox.netns("explain")?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        netns.sysctl(key, value)?;
    }
    netns.ip(&format!(
        "link add name up0 index {UPLINK} mtu {MTU} type veth peer name up1\n\
         link set up0 up\nlink set up1 up\n\
         route add 0.0.0.0/0 dev up0\nroute add ::/0 dev up0\n"
    ))?;
    Ok(netns)
}

fn ask_all(questions: &[Question]) -> Result<(Seen, Vec<String>)> {
    let mut runner = Runner::new()?;
    let (mut seen, mut failures) = (Seen::new(), Vec::new());
    for question in questions {
        match ask(&mut runner, question) {
            Ok(found) => {
                for what in found {
                    *seen.entry(what).or_default() += 1;
                }
            }
            Err(error) => failures.push(format!("{}: {error:#}", question.name)),
        }
    }
    Ok((seen, failures))
}

/// Asks both; what was seen.
fn ask(runner: &mut Runner, question: &Question) -> Result<Vec<&'static str>> {
    let (queries, mut world) = cli::asked(&question.args)?;
    let [query] = queries.as_slice() else {
        bail!("{} packets", queries.len());
    };
    let answer = explain::explain(&world, query);
    question.check(&serde_json::to_value(&answer)?)?;
    let at = match answer.met_by {
        None | Some(MetBy::Socket) => return Ok(vec!["socket"]),
        Some(MetBy::Egress) => (Hook::Egress, 0),
        Some(MetBy::Ingress(flags)) => (Hook::Ingress, flags),
    };
    match query.src {
        IpAddr::V4(src) => send(runner, &mut world.v4, (query, src.into()), at, &answer),
        IpAddr::V6(src) => send(runner, &mut world.v6, (query, src.into()), at, &answer),
    }
}

fn send<F: CaseFamily>(
    runner: &mut Runner,
    tables: &mut HostTables<F>,
    (query, src): (&Query, F::Addr),
    (hook, flags): (Hook, u32),
    answer: &Answer,
) -> Result<Vec<&'static str>> {
    tables.written.take();
    if let Some(config) = &mut tables.config {
        config.hz = HZ;
        config.redirect_mark = MARK;
    }
    let uplink = tables.interfaces.values().next();
    let uplink = Interface {
        flags: flags | interface::flags::ATTACHED,
        ..*uplink.context("an interface")?
    };
    tables.interfaces = BTreeMap::from([(UPLINK, uplink)]);
    if hook == Hook::Egress {
        // What a process sends from is an address of its node.
        *tables.node_addresses.entry(src).or_default() |= address_flags::OWN;
    }
    let packet = packet(query);
    let bytes = packet.bytes();
    let input = Input {
        hook,
        ifindex: UPLINK,
        mark: 0,
        segment_len: 0,
        bytes: &bytes,
    };
    let (outcome, _) = runner.send(tables, input, Verdict::Pass)?;
    let counters = &outcome.counters;
    compare(&packet, &outcome.bytes, outcome.verdict, counters, answer)
        .with_context(|| format!("{counters:?}, {answer:?}"))
}

fn packet(query: &Query) -> Spec {
    use proxy_userspace::explain::Protocol as Asked;
    Spec {
        src: SocketAddr::new(query.src.to_canonical(), query.sport),
        dst: SocketAddr::new(query.dst.to_canonical(), query.dport),
        protocol: match query.protocol {
            Asked::Tcp => Protocol::Tcp,
            Asked::Udp => Protocol::Udp,
            Asked::Sctp => Protocol::Sctp,
        },
        tcp: Tcp::Syn,
        is_reply: false,
        ttl: TTL,
    }
}

/// What the program did against what was said of it.
fn compare(
    sent: &Spec,
    bytes: &[u8],
    verdict: Verdict,
    counters: &BTreeMap<Counter, u64>,
    answer: &Answer,
) -> Result<Vec<&'static str>> {
    if counters.contains_key(&Counter::HostOwnAddress) {
        // No hook of the packet path sees the answers: the socket hook serves it (P-8).
        ensure!(verdict == Verdict::Pass && sent.is(bytes), "{verdict:?}");
        return Ok(vec!["socket"]);
    }
    match answer.verdict {
        explain::Verdict::Drop => {
            ensure!(verdict == Verdict::Drop, "{verdict:?}");
            Ok(vec!["drop"])
        }
        explain::Verdict::None => {
            ensure!(verdict == Verdict::Pass, "{verdict:?}");
            ensure!(sent.is(bytes), "it was changed");
            Ok(vec!["none"])
        }
        explain::Verdict::Reject => {
            ensure!(verdict == Verdict::Return, "{verdict:?}");
            match wrong_answer(sent, bytes) {
                Some(text) => bail!(text),
                None => Ok(vec!["reject"]),
            }
        }
        explain::Verdict::Dnat => {
            ensure!(verdict != Verdict::Drop, "dropped");
            let found = ends(bytes);
            let is_chosen = answer.chosen == Some(found.dst.to_string());
            ensure!(is_chosen, "sent to {}", found.dst);
            let src = answer.snat_address.unwrap_or(sent.src.ip());
            ensure!(found.src.ip() == src, "sent from {}", found.src);
            Ok(match answer.snat_address {
                Some(_) => vec!["dnat", "snat"],
                None => vec!["dnat"],
            })
        }
    }
}
