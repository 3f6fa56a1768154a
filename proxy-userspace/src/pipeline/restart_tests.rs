//! Restarts while objects cannot be decoded: what they may be about goes on being served.

use super::super::reconciler::CALM;
use super::super::store::Store;
use super::*;

/// Two Services with two endpoints each.
fn world() -> World {
    let mut world = World::new();
    world.tell(known("web", 1).into_iter().chain(known("api", 2)));
    world
}

fn known(name: &str, number: u8) -> [ObjectEvent; 2] {
    [
        applied(service(name, &format!("10.96.1.{number}"))),
        applied_slice(known_slice(name, number)),
    ]
}

fn known_slice(name: &str, number: u8) -> EndpointSlice {
    let pods = [1, 2].map(|pod| endpoint(&format!("10.4.{number}.{pod}")));
    slice(name, name, pods.into(), 8080)
}

fn rejected(object: Option<(Kind, &str)>) -> ObjectEvent {
    ObjectEvent::Rejected {
        object: object.map(|(kind, name)| (kind, object_name(name))),
        place: "a.yaml:3".into(),
        error: "syntax".into(),
    }
}

fn reread() -> ObjectEvent {
    ObjectEvent::Reread {
        place: "a.yaml".into(),
    }
}

impl World {
    /// A first list of these objects and complaints.
    fn restart(&mut self, listed: impl IntoIterator<Item = ObjectEvent>) -> Report {
        self.agent = Reconciler::restore(settings(), &self.maps);
        let listed = listed.into_iter().chain(KINDS.map(ObjectEvent::Listed));
        self.tell(KINDS.map(ObjectEvent::Restarted).into_iter().chain(listed))
    }

    /// Lets the time pass that less doubt needs.
    fn calm_down(&mut self) {
        assert_eq!(self.agent.next_wakeup(), Some(self.now + CALM));
        self.now += CALM;
        self.tell([]);
        let wakeup = self.agent.next_wakeup();
        assert!(wakeup.is_none_or(|at| at > self.now + CALM), "{wakeup:?}");
    }
}

/// Flows look for their next hops when the number is another one, and not because of a restart.
#[test]
fn next_hops_are_looked_for_when_they_move_and_a_restart_moves_none() {
    rules(&["S-208"]);
    let mut world = world();
    let number = |world: &World| world.maps.config().expect("a CONFIG").next_hops;
    let first = number(&world);
    world.agent.next_hops_moved();
    assert_eq!(world.tell([]).writes, 1);
    assert_eq!(number(&world), first + 1);
    assert_eq!(world.tell([]).writes, 0);
    let all = || known("web", 1).into_iter().chain(known("api", 2));
    assert_eq!(world.restart(all()).writes, 0);
    world.agent.next_hops_moved();
    world.tell([]);
    assert_eq!(number(&world), first + 2);
}

/// Nothing of the first list counts before both are complete; the other kinds are not waited for.
#[test]
fn lists_that_come_one_after_the_other_write_nothing_before_the_second() {
    rules(&["S-007"]);
    let (services, slices) = (Kind::Service, Kind::EndpointSlice);
    for (first, second) in [(services, slices), (slices, services)] {
        let mut world = world();
        let before = dump(&world.maps);
        let of = |kind| {
            let all = known("web", 1).into_iter().chain(known("api", 2));
            let is_of = move |event: &ObjectEvent| match event {
                ObjectEvent::Applied(object) => object.kind() == kind,
                _ => false,
            };
            all.filter(is_of).chain([ObjectEvent::Listed(kind)])
        };
        world.agent = Reconciler::restore(settings(), &world.maps);
        assert_eq!(world.tell(KINDS.map(ObjectEvent::Restarted)).writes, 0);
        assert_eq!(world.tell(of(first)).writes, 0);
        world.now += Duration::from_secs(5);
        assert_eq!(world.tell([]).writes, 0);
        assert_eq!(dump(&world.maps), before);
        assert_eq!(world.tell(of(second)).writes, 0);
        assert_eq!(dump(&world.maps), before);
        world.tell([applied(service("late", "10.96.1.3"))]);
        assert!(dump(&world.maps).contains("frontend 10.96.1.3:80/TCP"));
    }
}

/// The lists may be complete before the maps are there.
#[test]
fn objects_taken_in_before_the_maps_change_nothing_by_themselves() {
    rules(&["S-007", "S-178"]);
    let mut world = world();
    let before = dump(&world.maps);
    let mut store = Store::default();
    let all = known("web", 1).into_iter().chain(known("api", 2));
    let listed = KINDS.map(ObjectEvent::Restarted).into_iter().chain(all);
    listed.for_each(|event| store.handle(event));
    world.agent = Reconciler::restore(settings(), &world.maps).with_store(store);
    assert_eq!(world.tell([]).writes, 0);
    assert_eq!(world.tell([ObjectEvent::Listed(Kind::Service)]).writes, 0);
    assert!(!world.agent.is_synced());
    assert_eq!(
        world
            .tell([ObjectEvent::Listed(Kind::EndpointSlice)])
            .writes,
        0
    );
    assert!(world.agent.is_synced());
    assert_eq!(dump(&world.maps), before);
}

#[test]
fn service_deleted_while_nobody_watched_goes_with_the_next_list() {
    rules(&["S-008"]);
    let mut world = World::new();
    let api = || applied(service("api", "10.96.1.2"));
    world.tell([applied(service("web", "10.96.1.1")), api()]);
    let before = dump(&world.maps);
    world.tell([ObjectEvent::Restarted(Kind::Service), api()]);
    assert_eq!(dump(&world.maps), before, "the list may still bring it");
    world.tell([ObjectEvent::Listed(Kind::Service)]);
    let after = dump(&world.maps);
    assert!(!after.contains("10.96.1.1"), "{after}");
    assert!(after.contains("frontend 10.96.1.2:80/TCP"), "{after}");
}

#[test]
fn service_in_unreadable_file_outlives_a_restart() {
    rules(&["S-178"]);
    let mut world = world();
    let before = dump(&world.maps);
    let ids = world.backends(&vip(2));
    let report = world.restart(known("web", 1).into_iter().chain([rejected(None)]));
    assert_eq!(report, Report::default());
    assert_eq!(dump(&world.maps), before);
    assert_eq!(
        world.agent.kept_frontends(),
        [("10.96.1.2:80".parse().expect("an address"), 6)]
    );
    // Mended: the Service first, its slice and the end of the complaint in later batches.
    let [service, slice] = known("api", 2);
    for event in [service, slice, reread()] {
        assert_eq!(world.tell([event]), Report::default());
    }
    world.calm_down();
    assert_eq!(dump(&world.maps), before);
    assert_eq!(world.backends(&vip(2)), ids);
    assert_eq!(world.agent.kept_frontends(), []);
    // Its ids are known as its own: it goes as it should.
    world.tell([
        ObjectEvent::Deleted(Kind::Service, object_name("api")),
        ObjectEvent::Deleted(Kind::EndpointSlice, object_name("api")),
    ]);
    assert!(!dump(&world.maps).contains("10.96.1.2"));
}

#[test]
fn restored_frontends_nobody_wants_go_with_the_complaint() {
    rules(&["S-178"]);
    for complaint in [None, Some((Kind::Service, "broken"))] {
        let mut world = world();
        let before = dump(&world.maps);
        world.restart(known("web", 1).into_iter().chain([rejected(complaint)]));
        // Read again with another error: one moment without a complaint is no answer.
        world.tell([reread()]);
        world.now += CALM / 2;
        world.tell([rejected(complaint)]);
        world.now += 2 * CALM;
        world.tell([]);
        assert_eq!(dump(&world.maps), before);
        world.tell([reread()]);
        world.calm_down();
        let text = dump(&world.maps);
        assert!(!text.contains("10.96.1.2"), "{text}");
        assert!(text.contains("10.96.1.1"), "{text}");
    }
}

#[test]
fn complaint_about_other_kinds_keeps_nothing() {
    rules(&["S-178"]);
    let mut world = world();
    let complaints = [Kind::Node, Kind::EndpointSlice].map(|kind| rejected(Some((kind, "x"))));
    world.restart(known("web", 1).into_iter().chain(complaints));
    assert!(!dump(&world.maps).contains("10.96.1.2"));
}

#[test]
fn complaint_about_a_known_object_keeps_nothing() {
    rules(&["S-178"]);
    let mut world = world();
    let complaint = rejected(Some((Kind::Service, "web")));
    world.restart(known("web", 1).into_iter().chain([complaint]));
    assert!(!dump(&world.maps).contains("10.96.1.2"));
}

#[test]
fn endpoints_in_rejected_slices_outlive_a_restart() {
    rules(&["S-178"]);
    let mut world = world();
    let before = dump(&world.maps);
    let [api, slice] = known("api", 2);
    let complaint = rejected(Some((Kind::EndpointSlice, "api")));
    let listed = known("web", 1).into_iter().chain([api, complaint]);
    assert_eq!(world.restart(listed), Report::default());
    assert_eq!(dump(&world.maps), before);
    let ports = world.agent.service_ports();
    let kept: Vec<_> = ports
        .iter()
        .filter(|port| port.obstacle.is_some())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:#?}");
    assert_eq!(*kept[0].name.service, object_name("api"));
    // The slice arrives, and then goes for good: nothing is kept of what was once known.
    assert_eq!(world.tell([slice]), Report::default());
    world.tell([
        rejected(None),
        ObjectEvent::Deleted(Kind::EndpointSlice, object_name("api")),
    ]);
    let text = dump(&world.maps);
    assert!(!text.contains("10.4.2.1"), "{text}");
}

#[test]
fn rejected_object_that_a_list_lacks_is_forgotten() {
    rules(&["S-178"]);
    let mut world = world();
    let complaint = rejected(Some((Kind::Service, "api")));
    world.restart(known("web", 1).into_iter().chain([complaint]));
    assert!(dump(&world.maps).contains("10.96.1.2"));
    let [web, _] = known("web", 1);
    world.tell([
        ObjectEvent::Restarted(Kind::Service),
        web,
        ObjectEvent::Listed(Kind::Service),
    ]);
    world.calm_down();
    assert!(!dump(&world.maps).contains("10.96.1.2"));
}

#[test]
fn node_port_that_another_service_took_gives_no_ids_away() {
    rules(&["S-178", "S-034"]);
    let with_node_port = |name: &str, number: u8| {
        let mut object = service(name, &format!("10.96.1.{number}"));
        object.spec.ports[0].node_port = 30_080;
        [applied(object), applied_slice(known_slice(name, number))]
    };
    let mut world = World::new();
    world.tell(with_node_port("web", 1));
    let ids = world.backends(&vip(1));
    let both = with_node_port("api", 2)
        .into_iter()
        .chain(with_node_port("web", 1));
    world.restart(both);
    assert_eq!(world.backends(&vip(1)), ids);
}
