//! Ways back that no program of ours sees (P-4).

use anyhow::{Result, ensure};
use serde_json::json;
use tests::rig::{Client, Rig, Target, contains, node_addresses};
use tests::rules;
use tests::topology::addresses::{FAMILIES, uplink2};
use tests::topology::{Firewall, Uplinks, Variant};
use tests::traffic::{Plan, SocketKind};

use Client::Outside;
use Target::NodePort1;

/// Connections of one look.
const CONNECTIONS: u32 = 5;

/// Sends what pod `a` answers out by n1's second uplink.
fn turn_away(rig: &Rig) -> Result<()> {
    let (pod, peer) = (rig.pods["a"].addresses, uplink2(100));
    let n1 = &rig.cluster.nodes[0].netns;
    n1.ip(&format!(
        "route add default via {} dev up1 table 99\nroute add default via {} dev up1 table 99\n",
        peer.v4, peer.v6
    ))?;
    for (option, source) in [("-4", pod.v4.to_string()), ("-6", pod.v6.to_string())] {
        let words = ["ip", option, "rule", "add", "from", &source, "lookup", "99"];
        n1.run(&words)?;
    }
    Ok(())
}

/// A client outside is answered by a local endpoint whose answers leave by an interface without our
/// programs: policy Local keeps the source, unless nobody could translate the answer.
#[test]
fn answers_that_would_leave_untranslated_come_back_to_the_node() -> Result<()> {
    rules(&["S-081", "S-091"]);
    let variant = Variant {
        uplinks: Uplinks::Two,
        firewall: Firewall::None,
        ..Variant::default()
    };
    let mut rig = Rig::without_agents(variant)?;
    let local = json!({"externalTrafficPolicy": "Local"});
    let service = rig.services["near"].clone().spec(local);
    rig.add("near", service)?;
    rig.start_agents(&["--interfaces", "up0", "--interfaces", "p-*"])?;
    let report = |rig: &mut Rig, family, socket| {
        let plan = Plan::new(socket, rig.address(NodePort1("near"), family));
        let plan = plan.times(CONNECTIONS).payload(10).timeout_ms(3_000);
        rig.client(Outside)?.connect(plan.max_failures(1))
    };
    for is_turned_away in [false, true] {
        if is_turned_away {
            turn_away(&rig)?;
        }
        for family in FAMILIES {
            for socket in [SocketKind::Tcp, SocketKind::UdpConnected] {
                let report = report(&mut rig, family, socket)?;
                ensure!(report.failed() == 0, "{family:?} {socket:?}: {report:?}");
                let wanted = match is_turned_away {
                    false => rig.own_addresses(Outside),
                    true => node_addresses(1),
                };
                let is_right = report.seen_as.keys().all(|ip| contains(&wanted, *ip));
                ensure!(is_right, "{is_turned_away} {family:?}: {report:?}");
            }
        }
    }
    Ok(())
}
