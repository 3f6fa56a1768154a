//! Scenarios: text files with objects in steps and the maps expected after them.
//!
//! A file begins with `# rules: S-0xx, S-0yy` and goes on in steps, each a line `> word arguments`
//! and its text up to the next one:
//!
//! - `> settings NAME VALUE`: before anything else (see [`setting`]).
//! - `> addresses ADDR ...`: the node's addresses; `lo:ADDR` on the loopback interface.
//! - `> apply`: manifests. `> delete KIND NAMESPACE/NAME`: the object goes.
//! - `> unsynced`: the lists are not complete yet; `> sync`: they are.
//! - `> relist`: everything is listed again. `> restart`: the agent starts anew on the maps.
//! - `> expect`: reconciles; the maps look like the text. Lines of a kind that the text does not
//!   mention (`cluster-ip`, `node-address`, `config`) are not compared.
//! - `> expect-no-writes`: reconciles, and nothing is written.
//! - `> expect-problems N`: so many entries and objects were left out.
//!
//! Every Scenario runs three times: plainly; with a tenth of all writes failing; and killed after
//! each single write of each step, with a restart on what is there. All must end in the same maps.
//! At the end everything is deleted, and the maps must be empty.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use proxy_userspace::fake_maps::{Failures, FakeMaps};
use proxy_userspace::map_dump::{dump, dump_config};
use proxy_userspace::maps::{Capacity, Maps};
use proxy_userspace::objects::{Kind, Object, ObjectEvent, ObjectName};
use proxy_userspace::pipeline::watch::{KINDS, decode};
use proxy_userspace::pipeline::{LocalAddress, Reconciler, Report};
use proxy_userspace::settings::{ExternalIps, NodePortAddress, Settings};

/// Reconciles until writes that fail at random must have succeeded.
const ROUNDS_MAX: usize = 1000;

/// Kinds of lines that are compared only where a text mentions them.
const OPTIONAL_LINES: [&str; 4] = ["cluster-ip", "node-address", "service-cidr", "pods"];

/// How writes fail while a Scenario runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They do not.
    Plain,
    /// A tenth of them, by this seed.
    Failing(u64),
    /// Killed after each write of each step.
    Killed,
}

/// One file.
#[derive(Debug)]
pub struct Scenario {
    /// The rules that it is about.
    pub rules: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    line: usize,
    word: String,
    arguments: Vec<String>,
    text: String,
}

impl Scenario {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self> {
        let rules = text.lines().find_map(|line| line.strip_prefix("# rules:"));
        let rules = rules.context("no line `# rules:`")?;
        let rules: Vec<String> = rules
            .split(',')
            .map(|rule| rule.trim().to_owned())
            .collect();
        let mut steps: Vec<Step> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if let Some(head) = line.strip_prefix("> ") {
                let mut words = head.split_whitespace().map(str::to_owned);
                let word = words.next().unwrap_or_default();
                let arguments = words.collect();
                steps.push(Step {
                    line: index + 1,
                    word,
                    arguments,
                    text: String::new(),
                });
            } else if let Some(step) = steps.last_mut() {
                step.text.push_str(line);
                step.text.push('\n');
            }
        }
        Ok(Self { rules, steps })
    }

    /// Runs all steps, then deletes everything.
    pub fn run(&self, mode: Mode) -> Result<()> {
        let mut world = World::new(mode);
        for step in &self.steps {
            let place = || format!("line {}: {}", step.line, step.word);
            world.step(step).with_context(place)?;
        }
        world
            .delete_everything()
            .context("at the end, with everything deleted")
    }
}

/// The agent's surroundings and what it was told.
struct World {
    mode: Mode,
    settings: Settings,
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
    fn new(mode: Mode) -> Self {
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

    fn step(&mut self, step: &Step) -> Result<()> {
        match step.word.as_str() {
            "settings" => setting(&mut self.settings, &step.arguments),
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
        for found in content.objects {
            let object = found.object;
            self.objects.insert(object_key(&object), object.clone());
            self.events.push(ObjectEvent::Applied(object));
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

    fn delete_everything(&mut self) -> Result<()> {
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
    for _ in 0..ROUNDS_MAX {
        let report = agent.reconcile(maps, *now);
        maps.check().map_err(|error| anyhow!(error))?;
        if report.pending == 0 {
            return Ok(());
        }
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

/// `node-name NAME`, `external-ips ignore`, `cluster-cidr CIDR`, `nodeport-addresses ENTRY ...`.
fn setting(settings: &mut Settings, arguments: &[String]) -> Result<()> {
    let (name, values) = arguments.split_first().context("settings NAME VALUE ...")?;
    match name.as_str() {
        "node-name" => settings.node_name = values.first().cloned().unwrap_or_default(),
        "external-ips" => settings.external_ips = ExternalIps::Ignore,
        "cluster-cidr" => {
            settings.cluster_cidrs = values
                .iter()
                .map(|text| Ok(text.parse()?))
                .collect::<Result<_>>()?;
        }
        "nodeport-addresses" => {
            for value in values {
                settings.node_port_addresses.push(match value.as_str() {
                    "primary" => NodePortAddress::Primary,
                    "localhost" => NodePortAddress::Localhost,
                    "all" => NodePortAddress::All,
                    cidr => NodePortAddress::Cidr(cidr.parse()?),
                });
            }
        }
        name => bail!("unknown setting {name}"),
    }
    Ok(())
}

/// Compares line by line, without comments, blank lines and what the expected text leaves out.
fn compare(expected: &str, found: &str) -> Result<()> {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    let (mut expected_lines, mut found_lines) = (lines(expected), lines(found));
    for word in OPTIONAL_LINES {
        if !expected_lines.is_empty() && !expected_lines.iter().any(|line| line.starts_with(word)) {
            found_lines.retain(|line| !line.starts_with(word));
        }
    }
    expected_lines.retain(|line| line != "nothing");
    expected_lines.sort();
    found_lines.sort();
    let missing: Vec<_> = expected_lines
        .iter()
        .filter(|line| !found_lines.contains(line))
        .collect();
    let surplus: Vec<_> = found_lines
        .iter()
        .filter(|line| !expected_lines.contains(line))
        .collect();
    ensure!(
        expected_lines == found_lines,
        "the maps differ\n  missing: {missing:#?}\n  surplus: {surplus:#?}"
    );
    Ok(())
}
