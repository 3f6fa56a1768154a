//! Files that change: what is told, and what is not.

use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::pipeline::watch::follow;
use crate::rules;

/// Far longer than anything takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn service(name: &str, port: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n\
         spec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: {port}\n"
    )
}

/// Events as short texts: `+name:port`, `-name`, `!place: error`.
fn short(event: &ObjectEvent) -> String {
    match event {
        ObjectEvent::Restarted(kind) => format!("restarted {kind:?}"),
        ObjectEvent::Listed(kind) => format!("listed {kind:?}"),
        ObjectEvent::Applied(Object::Service(service)) => {
            format!("+{}:{}", service.metadata.name, service.spec.ports[0].port)
        }
        ObjectEvent::Applied(object) => format!("+{}", object.metadata().name),
        ObjectEvent::Deleted(_, name) => format!("-{}", name.name),
        ObjectEvent::Reread { place } => format!("?{place}"),
        ObjectEvent::Rejected { place, error, .. } => format!("!{place}: {error}"),
    }
}

struct Folder {
    dir: TempDir,
    manifests: Manifests,
    now: Instant,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let dir = TempDir::new().unwrap();
        let selection = Selection {
            node_name: "n1".to_owned(),
            proxy_name: None,
        };
        let manifests = Manifests::new(vec![dir.path().to_owned()], selection);
        let mut folder = Self {
            dir,
            manifests,
            now: Instant::now(),
        };
        for (name, text) in files {
            folder.write(name, text);
        }
        let events = folder.manifests.list();
        let events = folder.texts(&events);
        let listed = events.len() - KINDS.len();
        assert!(
            events[..KINDS.len()]
                .iter()
                .all(|it| it.starts_with("restarted")),
            "{events:?}"
        );
        assert!(
            events[listed..].iter().all(|it| it.starts_with("listed")),
            "{events:?}"
        );
        let events = events[KINDS.len()..listed].to_vec();
        (folder, events)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn texts(&self, events: &[ObjectEvent]) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        events
            .iter()
            .map(|event| short(event).replace(&folder, ""))
            .collect()
    }

    /// After a completed write of `name`.
    fn written(&mut self, name: &str, text: &str) -> Vec<String> {
        self.write(name, text);
        let refreshed = self
            .manifests
            .refresh(&BTreeSet::from([self.path(name)]), self.now);
        assert_eq!(refreshed.again_at, None);
        self.texts(&refreshed.events)
    }

    fn refresh_after(&mut self, time: Duration) -> (Vec<String>, Option<Instant>) {
        self.now += time;
        let refreshed = self.manifests.refresh(&BTreeSet::new(), self.now);
        (self.texts(&refreshed.events), refreshed.again_at)
    }
}

#[test]
fn folder_is_listed_with_its_subfolders() {
    let (_folder, events) = Folder::new(&[
        ("b.yml", &service("b", 2)),
        ("sub/deep/a.YAML", &service("a", 1)),
        ("note.txt", &service("no", 3)),
        (".hidden.yaml", &service("no", 3)),
        ("..2026/c.yaml", &service("no", 3)),
    ]);
    assert_eq!(events, ["+a:1", "+b:2"]);
}

#[test]
fn change_is_told_and_nothing_else_is() {
    let text = service("a", 1) + &service("b", 2) + &service("c", 3);
    let (mut folder, _) = Folder::new(&[("f.yaml", &text)]);
    assert_eq!(folder.written("f.yaml", &text), [""; 0]);
    let changed = service("a", 1) + &service("b", 20) + &service("d", 4);
    assert_eq!(folder.written("f.yaml", &changed), ["+b:20", "+d:4", "-c"]);
}

#[test]
fn syntax_error_keeps_what_was_known_of_the_file() {
    let text = service("a", 1) + &service("b", 2);
    let (mut folder, _) = Folder::new(&[("f.yaml", &text)]);
    let half = service("a", 10) + "---\napiVersion: v1\nkind: [";
    let events = folder.written("f.yaml", &half);
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0], "+a:10");
    assert!(events[1].starts_with("!f.yaml:12: syntax: "), "{events:?}");
    assert_eq!(
        folder.written("f.yaml", &service("a", 10)),
        ["-b", "?f.yaml"]
    );
}

#[test]
fn rejected_object_stays_as_it_was_and_its_neighbours_follow() {
    let (mut folder, _) = Folder::new(&[("f.yaml", &(service("a", 1) + &service("b", 2)))]);
    let events = folder.written("f.yaml", &(service("a", 70_000) + &service("c", 3)));
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(events[..2], ["+c:3", "-b"]);
    assert!(
        events[2].starts_with("!f.yaml:9: spec.ports[0].port: "),
        "{events:?}"
    );
    assert_eq!(
        folder.written("f.yaml", &service("a", 5)),
        ["+a:5", "-c", "?f.yaml"]
    );
}

#[test]
fn duplicate_is_rejected_in_its_second_place() {
    let (mut folder, events) = Folder::new(&[("a.yaml", &(service("a", 1) + &service("a", 2)))]);
    let error = "metadata.name: duplicate, the object is given in a.yaml";
    assert_eq!(
        events,
        ["+a:1".to_owned(), format!("!a.yaml:11: {error}:2 already")]
    );
    // Told again although it is the same: what was said of its duplicate is over.
    assert_eq!(folder.written("a.yaml", &service("a", 1)), ["+a:1"]);
    // The file that had it first keeps it, whatever the names of the files.
    assert_eq!(folder.written("a.yaml", &service("a", 1)), [""; 0]);
    assert_eq!(
        folder.written("0.yaml", &service("a", 3)),
        [format!("!0.yaml:2: {error}:2 already")]
    );
    assert_eq!(folder.written("a.yaml", ""), ["+a:3"]);
}

#[test]
fn object_that_moves_between_files_is_not_told() {
    let (mut folder, _) = Folder::new(&[("f.yaml", &service("a", 1))]);
    fs::rename(folder.path("f.yaml"), folder.path("g.yaml")).unwrap();
    let moved = BTreeSet::from([folder.path("g.yaml")]);
    let refreshed = folder.manifests.refresh(&moved, folder.now);
    assert_eq!(refreshed.events, []);
    assert!(refreshed.again_at.is_some());
    assert_eq!(folder.refresh_after(SETTLE), (Vec::new(), None));
}

#[test]
fn file_that_is_away_for_a_moment_is_not_missed() {
    let (mut folder, _) = Folder::new(&[("f.yaml", &service("a", 1))]);
    fs::remove_file(folder.path("f.yaml")).unwrap();
    let (events, again_at) = folder.refresh_after(Duration::ZERO);
    assert_eq!((events, again_at), (Vec::new(), Some(folder.now + SETTLE)));
    assert_eq!(folder.written("f.yaml", &service("a", 2)), ["+a:2"]);
    fs::remove_file(folder.path("f.yaml")).unwrap();
    folder.refresh_after(Duration::ZERO);
    assert_eq!(folder.refresh_after(SETTLE), (vec!["-a".to_owned()], None));
}

#[test]
fn file_that_is_being_written_waits_until_it_settles() {
    let (mut folder, _) = Folder::new(&[("f.yaml", &service("a", 1))]);
    folder.write("f.yaml", "");
    let (events, again_at) = folder.refresh_after(Duration::ZERO);
    assert_eq!(events, [""; 0]);
    assert!(again_at.is_some());
}

#[test]
fn unreadable_file_keeps_what_was_known_and_is_named() {
    let (mut folder, _) = Folder::new(&[("f.yaml", &service("a", 1))]);
    fs::write(folder.path("f.yaml"), b"\xff\xfe").unwrap();
    let written = BTreeSet::from([folder.path("f.yaml")]);
    let refreshed = folder.manifests.refresh(&written, folder.now);
    let events = folder.texts(&refreshed.events);
    assert!(
        events.len() == 1 && events[0].starts_with("!f.yaml: cannot be read"),
        "{events:?}"
    );
}

#[test]
fn labels_hide_and_show() {
    rules(&["S-002", "S-004"]);
    let slice = |labels: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s, labels: {{{labels}}}}}\naddressType: IPv4\nendpoints: []\n"
        )
    };
    let labelled = |label: &str| {
        service("a", 1).replace("name: a", &format!("name: a\n  labels: {{{label}}}"))
    };
    let files = [("a.yaml", service("a", 1)), ("s.yaml", slice(""))];
    let (mut folder, events) = Folder::new(&[("a.yaml", &files[0].1), ("s.yaml", &files[1].1)]);
    assert_eq!(events, ["+a:1", "+s"]);
    let hides = "service.kubernetes.io/service-proxy-name: \"\"";
    assert_eq!(folder.written("a.yaml", &labelled(hides)), ["-a"]);
    assert_eq!(folder.written("a.yaml", &labelled("")), ["+a:1"]);
    let hides = "service.kubernetes.io/headless: \"\"";
    assert_eq!(folder.written("s.yaml", &slice(hides)), ["-s"]);
    assert_eq!(folder.written("s.yaml", &slice("")), ["+s"]);
    assert_eq!(
        folder.written("a.yaml", &service("a", 1).replace("10.96.0.1", "None")),
        ["-a"]
    );
}

#[test]
fn other_nodes_are_not_seen() {
    rules(&["S-001"]);
    let node =
        |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let (_folder, events) = Folder::new(&[("n.yaml", &(node("n1") + &node("n2")))]);
    assert_eq!(events, ["+n1"]);
}

#[test]
fn own_proxy_name_selects_its_services() {
    rules(&["S-003"]);
    let dir = TempDir::new().unwrap();
    let labels = "name: a\n  labels: {service.kubernetes.io/service-proxy-name: edge}";
    let text = service("a", 1).replace("name: a", labels) + &service("b", 2);
    fs::write(dir.path().join("f.yaml"), text).unwrap();
    let selection = Selection {
        node_name: String::new(),
        proxy_name: Some("edge".to_owned()),
    };
    let events = Manifests::new(vec![dir.path().to_owned()], selection).list();
    let applied: Vec<_> = events
        .iter()
        .map(short)
        .filter(|it| it.starts_with('+'))
        .collect();
    assert_eq!(applied, ["+a:1"]);
}

/// A followed folder; events come from a thread as the agent would get them.
struct Followed {
    dir: TempDir,
    events: Receiver<String>,
}

impl Followed {
    fn new(prepare: impl FnOnce(&Path) -> PathBuf) -> Self {
        let dir = TempDir::new().unwrap();
        let root = prepare(dir.path());
        let (sender, mut received) = tokio::sync::mpsc::channel(64);
        follow::spawn(vec![root], Selection::default(), sender).unwrap();
        let (texts, events) = channel();
        std::thread::spawn(move || {
            while let Some(event) = received.blocking_recv() {
                if texts.send(short(&event)).is_err() {
                    return;
                }
            }
        });
        Self { dir, events }
    }

    /// Skips what comes before `expected`.
    #[track_caller]
    fn wait_for(&self, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.events.recv_timeout(deadline - Instant::now()) {
                Ok(event) if event == expected => return,
                Ok(event) => seen.push(event),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{expected} never came, but {seen:?}")
                }
            }
        }
    }
}

#[test]
fn edits_of_a_folder_are_followed() {
    let followed = Followed::new(|dir| {
        fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
        dir.to_owned()
    });
    followed.wait_for("+a:1");
    followed.wait_for("listed EndpointSlice");
    let path = |name: &str| followed.dir.path().join(name);
    fs::write(path("a.yaml"), service("a", 2)).unwrap();
    followed.wait_for("+a:2");
    // As careful editors and kubectl's tools do it.
    fs::write(path("a.yaml.tmp"), service("a", 3)).unwrap();
    fs::rename(path("a.yaml.tmp"), path("a.yaml")).unwrap();
    followed.wait_for("+a:3");
    fs::create_dir_all(path("x/y")).unwrap();
    fs::write(path("x/y/b.yaml"), service("b", 1)).unwrap();
    followed.wait_for("+b:1");
    fs::write(path("x/y/b.yaml"), service("b", 2)).unwrap();
    followed.wait_for("+b:2");
    fs::remove_dir_all(path("x")).unwrap();
    followed.wait_for("-b");
    fs::remove_file(path("a.yaml")).unwrap();
    followed.wait_for("-a");
}

#[test]
fn mounted_config_map_is_followed() {
    let version = |dir: &Path, name: &str, port| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("a.yaml"), service("a", port)).unwrap();
        symlink(name, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let followed = Followed::new(|dir| {
        version(dir, "..1", 1);
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        dir.to_owned()
    });
    followed.wait_for("+a:1");
    version(followed.dir.path(), "..2", 2);
    followed.wait_for("+a:2");
}

#[test]
fn single_file_and_replaced_folder_are_followed() {
    let file = Followed::new(|dir| {
        fs::write(dir.join("one"), service("a", 1)).unwrap();
        dir.join("one")
    });
    file.wait_for("+a:1");
    fs::write(file.dir.path().join("one"), service("a", 2)).unwrap();
    file.wait_for("+a:2");

    let folder = Followed::new(|dir| {
        fs::create_dir(dir.join("m")).unwrap();
        dir.join("m")
    });
    folder.wait_for("listed EndpointSlice");
    let path = folder.dir.path().join("m");
    fs::remove_dir(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", 1)).unwrap();
    folder.wait_for("+a:1");
    fs::write(path.join("a.yaml"), service("a", 2)).unwrap();
    folder.wait_for("+a:2");
}

#[test]
fn path_that_does_not_exist_is_an_error() {
    let (sender, _receiver) = tokio::sync::mpsc::channel(1);
    let missing = vec!["/nonexistent/manifests".into()];
    let error = follow::spawn(missing, Selection::default(), sender).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/manifests"),
        "{error}"
    );
}
