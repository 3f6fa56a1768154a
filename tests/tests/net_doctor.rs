//! `shunt doctor`: a node that is well, and one thing after another that is wrong with it.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use proxy_userspace::datapath::sys::{self, AttachType, LinkTarget, Place};
use serde_json::Value;
use tests::agent::Agent;
use tests::rig::Rig;
use tests::topology::{Node, Variant};

/// The doctor's answer about a node.
struct Answer {
    code: i32,
    findings: Vec<Value>,
    text: String,
}

impl Answer {
    /// What one check says that is not as it should be.
    fn bad(&self, check: &str) -> Vec<&Value> {
        let of_it = self.findings.iter().filter(|it| it["check"] == check);
        let bad = of_it.filter(|it| it["severity"] != "ok" && it["severity"] != "note");
        bad.collect()
    }

    /// The only thing that one check says is wrong: its severity, first place and text.
    fn only(&self, check: &str) -> Result<[String; 3]> {
        let bad = self.bad(check);
        ensure!(bad.len() == 1, "{check}: {bad:#?}\n{}", self.text);
        ensure!(bad[0]["remedy"].is_string(), "{:#}", bad[0]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = text(&bad[0]["places"][0]);
        Ok([text(&bad[0]["severity"]), place, text(&bad[0]["found"])])
    }
}

fn doctor(agent: &Agent, node: &Node) -> Result<Answer> {
    let (bpffs, cgroup) = (agent.bpffs(), node.cgroup.display().to_string());
    let words = [
        "doctor", "-o", "json", "--bpffs", &bpffs, "--cgroup", &cgroup,
    ];
    let (code, text) = agent.shunt_answer(&words)?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let findings = report["findings"].as_array().context("findings")?.clone();
    let problems = findings.iter().filter(|it| it["severity"] == "problem");
    let problems = problems.count();
    ensure!(report["problems"] == problems, "{text}");
    ensure!((code == 1) == (problems > 0), "code {code}: {text}");
    Ok(Answer {
        code,
        findings,
        text,
    })
}

/// A program of n2's agent, which nobody on n1 knows.
fn stranger(rig: &Rig, program: &str) -> Result<OwnedFd> {
    let path = rig.cluster.nodes[1]
        .bpffs
        .join("shunt/programs")
        .join(program);
    sys::open_pinned(&path).with_context(|| path.display().to_string())
}

#[test]
fn a_node_that_is_well_has_no_problem_and_each_fault_is_found() -> Result<()> {
    let rig = Rig::new(Variant::default(), &[])?;
    let (agent, node) = (&rig.agents[0], &rig.cluster.nodes[0]);
    let well = doctor(agent, node)?;
    ensure!(well.code == 0, "{}", well.text);
    for check in [
        "bpffs",
        "agent",
        "programmed",
        "interfaces",
        "others",
        "forwarding",
    ] {
        let findings = well.findings.iter();
        let ok = findings.filter(|it| it["check"] == check && it["severity"] == "ok");
        ensure!(ok.count() > 0, "{check} is not ok: {}", well.text);
    }
    // Beside the machine's own missing features nothing is said.
    for check in [
        "programs",
        "drift",
        "snat-ports",
        "rp_filter",
        "route_localnet",
    ] {
        ensure!(well.bad(check).is_empty(), "{check}: {}", well.text);
    }

    node.netns.sysctl("net/ipv4/conf/up0/forwarding", "0")?;
    let [severity, place, _] = doctor(agent, node)?.only("forwarding")?;
    ensure!((severity.as_str(), place.as_str()) == ("problem", "net.ipv4.conf.up0.forwarding"));
    node.netns.sysctl("net/ipv4/conf/up0/forwarding", "1")?;

    node.netns.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    let [severity, place, _] = doctor(agent, node)?.only("route_localnet")?;
    ensure!((severity.as_str(), place.as_str()) == ("warning", "net.ipv4.conf.all.route_localnet"));
    node.netns.sysctl("net/ipv4/conf/all/route_localnet", "0")?;

    node.netns
        .sysctl("net/ipv4/ip_local_reserved_ports", "80")?;
    node.netns
        .sysctl("net/ipv4/ip_local_port_range", "20000 60999")?;
    let [severity, place, found] = doctor(agent, node)?.only("snat-ports")?;
    ensure!((severity.as_str(), place.as_str()) == ("problem", "net.ipv4.ip_local_port_range"));
    ensure!(found.contains("20000-60999"), "{found}");
    node.netns
        .sysctl("net/ipv4/ip_local_port_range", "32768 60999")?;

    let before = doctor(agent, node)?.bad("kube-proxy").len();
    node.netns.nft("table ip kube-proxy {}")?;
    let left = doctor(agent, node)?;
    ensure!(left.bad("kube-proxy").len() == before + 1, "{}", left.text);
    let table = "nftables table ip kube-proxy";
    let is_table = |it: &&&Value| it["places"][0] == table;
    ensure!(
        left.bad("kube-proxy").iter().any(|it| is_table(&it)),
        "{}",
        left.text
    );
    node.netns
        .run(&["nft", "delete", "table", "ip", "kube-proxy"])?;
    ensure!(doctor(agent, node)?.code == 0);
    Ok(())
}

#[test]
fn programs_of_others_are_named_with_their_place() -> Result<()> {
    let rig = Rig::new(Variant::default(), &[])?;
    let (agent, node) = (&rig.agents[0], &rig.cluster.nodes[0]);
    ensure!(doctor(agent, node)?.bad("others").is_empty());

    let program = stranger(&rig, "connect4")?;
    let folder = File::open(&node.cgroup)?;
    let target = LinkTarget::Cgroup(folder.as_fd());
    let link = sys::link_create(program.as_fd(), target, AttachType::Connect4)?;
    let [severity, place, found] = doctor(agent, node)?.only("others")?;
    ensure!(
        (severity.as_str(), place.as_str()) == ("warning", "connect4"),
        "{found}"
    );
    ensure!(
        found.contains("connect4 (program ") && found.contains("after ours"),
        "{found}"
    );
    drop(link);

    // Where the kernel has no TCX, a filter is as good.
    let pinned = rig.cluster.nodes[1].bpffs.join("shunt/programs/tc_ingress");
    let pinned = pinned.display().to_string();
    let filter = "tc filter add dev up0 ingress prio 5 bpf da object-pinned";
    let filter: Vec<&str> = filter.split(' ').chain([pinned.as_str()]).collect();
    node.netns
        .run(&["tc", "qdisc", "replace", "dev", "up0", "clsact"])?;
    node.netns.run(&filter)?;
    let with_filter = doctor(agent, node)?;
    let noted = with_filter.findings.iter().find(|it| {
        let text = it["found"].as_str().unwrap_or_default();
        it["places"][0] == "up0 ingress" && text.contains("of priority 5")
    });
    ensure!(
        noted.is_some_and(|it| it["severity"] == "note"),
        "{}",
        with_filter.text
    );

    if agent.status()?["tc"] == "tcx" {
        let program = stranger(&rig, "tc_ingress")?;
        let ifindex = node
            .netns
            .enter(|| nix::net::if_::if_nametoindex("up0"))??;
        let link = node.netns.enter(|| {
            let target = LinkTarget::Interface(ifindex, Place::First);
            sys::link_create(program.as_fd(), target, AttachType::TcxIngress)
        })??;
        let [severity, place, found] = doctor(agent, node)?.only("others")?;
        ensure!(
            (severity.as_str(), place.as_str()) == ("warning", "up0 ingress"),
            "{found}"
        );
        ensure!(found.contains("before ours"), "{found}");
        drop(link);
    }
    Ok(())
}

#[test]
fn an_agent_that_is_gone_is_a_problem_and_one_that_never_was_is_not() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    rig.agents[0].kill()?;
    let node = &rig.cluster.nodes[0];
    let [severity, place, _] = doctor(&rig.agents[0], node)?.only("agent")?;
    ensure!(severity == "problem" && place.contains("shunt-"), "{place}");

    // What comes meanwhile is not covered.
    node.netns.ip("link add late0 type veth peer name late1\n\
         addr add 198.51.100.1/24 dev late0\nlink set late0 up\n")?;
    let [severity, place, _] = doctor(&rig.agents[0], node)?.only("interfaces")?;
    ensure!((severity.as_str(), place.as_str()) == ("problem", "late0"));

    // Somebody detaches one of our programs.
    let pinned = node.bpffs.join("shunt/links/connect4");
    sys::link_detach(sys::open_pinned(&pinned)?.as_fd())?;
    let [severity, place, _] = doctor(&rig.agents[0], node)?.only("programs")?;
    ensure!((severity.as_str(), place.as_str()) == ("problem", "connect4"));

    rig.agents[0].cleanup()?;
    let clean = doctor(&rig.agents[0], node)?;
    ensure!(clean.code == 0, "{}", clean.text);
    let of_agent = clean.findings.iter().find(|it| it["check"] == "agent");
    ensure!(
        of_agent.is_some_and(|it| it["severity"] == "note"),
        "{}",
        clean.text
    );
    Ok(())
}

#[test]
fn an_uplink_without_xdp_is_told_with_the_reason() -> Result<()> {
    for (choice, severity, said) in [
        ("auto", "note", "no XDP, tc does it all: a veth"),
        ("off", "note", "no XDP, tc does it all: --xdp off"),
        ("generic", "ok", "XDP runs here (generic)"),
    ] {
        let rig = Rig::new(Variant::default(), &["--xdp", choice])?;
        let answer = doctor(&rig.agents[0], &rig.cluster.nodes[0])?;
        let is_it = |it: &&Value| it["check"] == "xdp" && it["severity"] == severity;
        let found = answer.findings.iter().find(is_it);
        let found = found.with_context(|| format!("{choice}: {}", answer.text))?;
        let text = found.to_string();
        ensure!(text.contains(said) && text.contains("up0"), "{text}");
    }
    Ok(())
}
