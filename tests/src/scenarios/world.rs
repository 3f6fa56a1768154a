//! A Scenario's world: the objects, the agent over maps in memory, and time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use proxy_userspace::fake_maps::{Failures, FakeMaps};
use proxy_userspace::map_dump::{dump, dump_config};
use proxy_userspace::maps::{Capacity, Maps};
use proxy_userspace::objects::{Kind, Object, ObjectEvent, ObjectName};
use proxy_userspace::pipeline::watch::{KINDS, Selection, decode, hidden};
use proxy_userspace::pipeline::{LocalAddress, Reconciler, Report};
use proxy_userspace::settings::Settings;

use super::compare::compare;
use super::{Mode, Step, setting};

/// Reconciles until writes that fail at random must have succeeded.
const ROUNDS_MAX: usize = 1000;

/// All of them together: before the re-verification would repair what was forgotten.
const SETTLING_MAX: Duration = Duration::from_secs(600);

/// The agent's surroundings and what it was told.
pub(super) struct World {
    mode: Mode,
    settings: Settings,
    selection: Selection,
    addresses: Vec<LocalAddress>,
    objects: BTreeMap<(Kind, ObjectName), Object>,
    /// Told since the last reconcile; a restart forgets them, for it lists everything.
    events: Vec<ObjectEvent>,
    /// As told at the last reconcile.
    told: BTreeMap<(Kind, ObjectName), Object>,
    is_synced: bool,
    maps: FakeMaps,
    reconciler: Option<Reconciler>,
    now: Instant,
}

impl World {
    pub(super) fn new(mode: Mode) -> Self {
        let mut maps = FakeMaps::new(Capacity {
            frontends: 64,
            backends: 256,
            slots: 1024,
        });
        if let Mode::Failing(seed) = mode {
            maps.set_failures(Failures::Percent { percent: 10, seed });
        }
        Self {
            mode,
            settings: Settings {
                node_name: "n1".into(),
                ..Settings::default()
            },
            selection: Selection {
                node_name: "n1".into(),
                proxy_name: None,
            },
            addresses: Vec::new(),
            objects: BTreeMap::new(),
            events: Vec::new(),
            told: BTreeMap::new(),
            is_synced: true,
            maps,
            reconciler: None,
            now: Instant::now(),
        }
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        match step.word.as_str() {
            "settings" => setting(&mut self.settings, &mut self.selection, &step.arguments),
            "addresses" => self.set_addresses(&step.arguments),
            "apply" => self.apply(&step.text),
            "delete" => self.delete(&step.arguments),
            "unsynced" => {
                self.is_synced = false;
                Ok(())
            }
            "sync" => {
                self.is_synced = true;
                self.events.extend(KINDS.map(ObjectEvent::Listed));
                Ok(())
            }
            "relist" => {
                self.events.extend(self.list());
                Ok(())
            }
            "restart" => {
                self.reconciler = None;
                Ok(())
            }
            "expect" => {
                self.converge()?;
                compare(&step.text, &self.dump())
            }
            "expect-no-writes" => {
                let writes = self.maps.writes();
                self.converge()?;
                ensure!(
                    self.maps.writes() == writes,
                    "{} writes",
                    self.maps.writes() - writes
                );
                Ok(())
            }
            "expect-problems" => self.expect_problems(&step.arguments),
            word => Err(anyhow!("unknown step {word}")),
        }
    }

    fn set_addresses(&mut self, texts: &[String]) -> Result<()> {
        self.addresses.clear();
        for text in texts {
            let (is_on_loopback, addr) = match text.strip_prefix("lo:") {
                Some(addr) => (true, addr),
                None => (false, text.as_str()),
            };
            let addr: IpAddr = addr.parse()?;
            self.addresses.push(LocalAddress {
                addr,
                ifindex: 1,
                is_on_loopback,
            });
        }
        Ok(())
    }

    fn apply(&mut self, text: &str) -> Result<()> {
        let content = decode::decode(text);
        for found in content.objects {
            let object = found.object;
            let (kind, name) = object_key(&object);
            if !hidden(&object, &self.selection) {
                self.objects.insert((kind, name), object.clone());
                self.events.push(ObjectEvent::Applied(object));
            } else if self.objects.remove(&(kind, name.clone())).is_some() {
                self.events.push(ObjectEvent::Deleted(kind, name));
            }
        }
        for rejection in content.rejected {
            ensure!(
                rejection.object.is_some(),
                "{}: {}",
                rejection.line,
                rejection.error
            );
            self.events.push(ObjectEvent::Rejected {
                object: rejection.object,
                place: format!("line {}", rejection.line),
                error: rejection.error,
            });
        }
        Ok(())
    }

    fn delete(&mut self, arguments: &[String]) -> Result<()> {
        let [kind, name] = arguments else {
            bail!("delete KIND NAMESPACE/NAME")
        };
        let kind = match kind.as_str() {
            "Service" => Kind::Service,
            "EndpointSlice" => Kind::EndpointSlice,
            "Node" => Kind::Node,
            "ServiceCIDR" => Kind::ServiceCidr,
            kind => bail!("unknown kind {kind}"),
        };
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let name = ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        };
        let found = self.objects.remove(&(kind, name.clone()));
        ensure!(found.is_some(), "{name:?} does not exist");
        self.events.push(ObjectEvent::Deleted(kind, name));
        Ok(())
    }

    fn expect_problems(&mut self, arguments: &[String]) -> Result<()> {
        self.converge()?;
        let reconciler = self.reconciler.as_ref().context("no agent")?;
        let mut problems: Vec<String> = reconciler.problems().values().flatten().cloned().collect();
        problems.extend(
            reconciler
                .rejections()
                .map(|rejection| rejection.error.clone()),
        );
        let expected: usize = arguments.first().context("how many?")?.parse()?;
        ensure!(problems.len() == expected, "{problems:#?}");
        Ok(())
    }

    /// The list of everything, as a source tells it.
    fn list(&self) -> Vec<ObjectEvent> {
        list(&self.objects, self.is_synced)
    }

    /// Brings the maps in step with what was told, as the mode has it.
    fn converge(&mut self) -> Result<()> {
        if self.reconciler.is_none() {
            self.events = self.list();
        }
        if self.mode == Mode::Killed && !self.events.is_empty() {
            self.converge_killed()?;
        }
        let restore = || Reconciler::restore(self.settings.clone(), &self.maps);
        let mut reconciler = self.reconciler.take().unwrap_or_else(restore);
        reconciler.set_local_addresses(self.addresses.clone());
        for event in self.events.drain(..) {
            reconciler.handle(event);
        }
        self.told = self.objects.clone();
        settle(&mut reconciler, &mut self.maps, &mut self.now)?;
        let report = reconciler.reconcile(&mut self.maps, self.now);
        ensure!(report == Report::default(), "not at rest: {report:?}");
        self.reconciler = Some(reconciler);
        Ok(())
    }

    /// Kills the agent after each write of this step; each time the next one must get to where an
    /// undisturbed one gets.
    fn converge_killed(&mut self) -> Result<()> {
        let mut undisturbed = self.maps.clone();
        let mut agent = self.restarted(&undisturbed, &self.told)?;
        self.tell(&mut agent);
        settle(&mut agent, &mut undisturbed, &mut self.now)?;
        let (before, after) = (self.maps.writes(), undisturbed.writes());
        for writes in before..after {
            let mut maps = self.maps.clone();
            let mut agent = self.restarted(&maps, &self.told)?;
            maps.set_failures(Failures::After(writes));
            self.tell(&mut agent);
            agent.reconcile(&mut maps, self.now);
            maps.check()
                .map_err(|error| anyhow!("after {writes} writes: {error}"))?;
            maps.set_failures(Failures::Never);
            let mut agent = self.restarted(&maps, &self.objects)?;
            settle(&mut agent, &mut maps, &mut self.now)?;
            compare(&dump(&undisturbed), &dump(&maps))
                .with_context(|| format!("killed after {} writes", writes - before))?;
        }
        Ok(())
    }

    /// An agent on these maps that was told these objects.
    fn restarted(
        &self,
        maps: &FakeMaps,
        objects: &BTreeMap<(Kind, ObjectName), Object>,
    ) -> Result<Reconciler> {
        let mut agent = Reconciler::restore(self.settings.clone(), maps);
        agent.set_local_addresses(self.addresses.clone());
        for event in list(objects, self.is_synced) {
            agent.handle(event);
        }
        Ok(agent)
    }

    fn tell(&self, agent: &mut Reconciler) {
        for event in &self.events {
            agent.handle(event.clone());
        }
    }

    fn dump(&self) -> String {
        let mut text = dump(&self.maps);
        if let Some(config) = self.maps.config() {
            text.push_str(&dump_config(&config));
        }
        text
    }

    pub(super) fn delete_everything(&mut self) -> Result<()> {
        self.is_synced = true;
        self.events.extend(KINDS.map(ObjectEvent::Listed));
        for (kind, name) in std::mem::take(&mut self.objects).into_keys() {
            self.events.push(ObjectEvent::Deleted(kind, name));
        }
        self.addresses.clear();
        self.converge()?;
        compare("", &self.dump())
    }
}

/// Reconciles until nothing is pending; programs never see anything wrong on the way.
fn settle(agent: &mut Reconciler, maps: &mut FakeMaps, now: &mut Instant) -> Result<()> {
    let start = *now;
    for _ in 0..ROUNDS_MAX {
        let report = agent.reconcile(maps, *now);
        maps.check().map_err(|error| anyhow!(error))?;
        if report.pending == 0 {
            return Ok(());
        }
        ensure!(*now - start < SETTLING_MAX, "settles too late: {report:?}");
        let wakeup = agent.next_wakeup().context("pending without a wakeup")?;
        *now = wakeup.max(*now + Duration::from_millis(1));
    }
    bail!("does not converge")
}

/// A complete list of all kinds, but for its end where the lists are not complete.
fn list(objects: &BTreeMap<(Kind, ObjectName), Object>, is_synced: bool) -> Vec<ObjectEvent> {
    let mut events: Vec<ObjectEvent> = KINDS.map(ObjectEvent::Restarted).into();
    events.extend(objects.values().cloned().map(ObjectEvent::Applied));
    if is_synced {
        events.extend(KINDS.map(ObjectEvent::Listed));
    }
    events
}

fn object_key(object: &Object) -> (Kind, ObjectName) {
    let metadata = object.metadata();
    let name = ObjectName {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
    };
    (object.kind(), name)
}
