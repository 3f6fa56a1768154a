//! The audit, part by part, while objects change.

use proxy_common::Backend;

use super::*;
use crate::pipeline::reconciler::AuditRound;

/// Room for several parts of an audit.
const LARGE: Capacity = Capacity {
    frontends: 1000,
    backends: 100_000,
    slots: 4096,
};

fn moved(number: u32) -> ObjectEvent {
    let pod = endpoint(&format!("10.4.0.{}", number % 200 + 1));
    applied_slice(slice("web", "web", vec![pod], 8080))
}

impl World {
    fn audit_part(&mut self, round: &mut AuditRound) -> u64 {
        let drift = self.agent.audit_part(round, &mut self.maps, self.now);
        assert_eq!(self.maps.check(), Ok(()));
        drift
    }
}

#[test]
fn audit_finds_nothing_while_changes_come_between_its_parts() {
    rules(&["S-010"]);
    let mut world = World::with_capacity(LARGE);
    world.tell([applied(service("web", "10.96.1.1")), moved(0)]);
    let mut round = world.agent.begin_audit();
    let mut parts = 0;
    while !round.is_over() {
        parts += 1;
        assert_eq!(world.audit_part(&mut round), 0, "part {parts}");
        // Ids that were free are in use, and those in use are free.
        world.now += GRACE;
        let report = world.tell([moved(parts)]);
        assert_eq!((report.writes, report.pending), (5, 0), "part {parts}");
    }
    assert!(parts > 8, "{parts} parts");
}

#[test]
fn audit_in_parts_repairs_all_of_them() {
    rules(&["S-010"]);
    let mut world = World::with_capacity(LARGE);
    world.tell([applied(service("web", "10.96.1.1")), moved(0)]);
    let before = dump(&world.maps);
    let stranger = Backend::<Addr4> {
        state: BackendState::Active as u8,
        ..bytemuck::Zeroable::zeroed()
    };
    let ids = [1, 32_768, 32_769, 65_537, 99_999];
    for id in ids {
        FamilyMaps::<Addr4>::write_backend(&mut world.maps, id, &stranger).expect("is written");
    }
    let mut round = world.agent.begin_audit();
    let mut drift = 0;
    while !round.is_over() {
        drift += world
            .agent
            .audit_part(&mut round, &mut world.maps, world.now);
    }
    assert_eq!(drift, ids.len() as u64);
    world.settle();
    assert_eq!(dump(&world.maps), before);
}
