//! What the agent's loop answers when it is asked.

use proxy_common::{Addr4, Addr6, Counter};
use proxy_ebpf::environment::range_len;

use super::Agent;
use super::socket::{Question, Request};
use super::status::{AgentState, ProblemView, RejectedView, Status};
use super::view::{self, FrontendView};
use crate::doctor::Severity;
use crate::family::protocol_name;
use crate::health::node::{self, NodeState};
use crate::health::services;
use crate::maps::Maps as _;
use crate::pipeline::apply::Obstacle;

impl Agent {
    pub(super) fn answer(&self, request: Request) {
        let text = match request.question {
            Question::Status => serde_json::to_string(&self.status()),
            Question::Services => serde_json::to_string(&self.frontends()),
            Question::Metrics => Ok(self.metrics()),
        };
        // Neither can fail: both are plain data. The asker may have left.
        let _ = request.answer.send(text.unwrap_or_default());
    }

    fn metrics(&self) -> String {
        for (family, policy, count) in self.reconciler.no_local_endpoints() {
            let metrics = self.health.metrics();
            metrics.set_no_local_endpoints(family, policy, count);
        }
        for (family, count) in self.reconciler.held_up() {
            self.health.metrics().set_held_up(family, count as i64);
        }
        // Those that are 0 too: a rate needs a series that was there before.
        let all = Counter::ALL.iter();
        let counters = all.map(|&it| (it.name().to_owned(), self.maps.counter(it as u32)));
        let text = self.health.metrics().text(&counters.collect());
        let services = services::text(&self.frontends(), self.health.series);
        text + &self.node_metrics() + &services + &node::process_text()
    }

    fn node_metrics(&self) -> String {
        let problems = self.problems();
        let problem = |it: &&ProblemView| it.severity == Severity::Problem;
        let count = problems.iter().filter(problem).count();
        node::text(&NodeState {
            is_synced: self.ready_at.is_some(),
            source: &self.sources.view(),
            objects: &self.reconciler.summary(),
            interfaces: &self.datapath.interface_status(),
            rejected: self.reconciler.rejections().count(),
            troubles: [problems.len() - count, count],
            writes: [self.maps.writes_done(), self.health.failed_writes],
            snat_ports: self
                .maps
                .config()
                .map_or(0, |config| config.snat_ports.iter().map(range_len).sum()),
        })
    }

    fn status(&self) -> Status {
        Status {
            agent: AgentState::Running,
            synced: self.ready_at.is_some(),
            synced_secs: self.ready_at.map(|at| at.elapsed().as_secs()),
            updated_secs: self.health.since_update().map(|age| age.as_secs()),
            source: Some(self.sources.view()),
            objects: Some(self.reconciler.summary()),
            node: self.node_name.clone(),
            tc: Some(self.datapath.mode().to_string()),
            socket_lb: self.has_socket_lb,
            interfaces: self.datapath.interface_status(),
            rejected: self.rejected(),
            problems: self.problems(),
            writes: self.maps.writes_done(),
            drift: self.lookout.drift,
            ..Status::of_maps(&self.maps, self.datapath.features().clone())
        }
    }

    fn rejected(&self) -> Vec<RejectedView> {
        let rejections = self.reconciler.rejections().map(|rejection| RejectedView {
            place: rejection.place.clone(),
            error: rejection.error.clone(),
        });
        rejections.collect()
    }

    /// Entries that were left out, service ports that found no room, and what a restart keeps.
    fn problems(&self) -> Vec<ProblemView> {
        let entries = self.reconciler.problems().iter();
        let mut all: Vec<_> = entries
            .flat_map(|(service, texts)| texts.iter().map(move |text| (service, text.clone())))
            .map(|(service, problem)| ProblemView {
                service: format!("{}/{}", service.namespace, service.name),
                problem,
                severity: Severity::Warning,
            })
            .collect();
        for port in self.reconciler.service_ports() {
            if let Some(obstacle) = port.obstacle {
                all.push(ProblemView {
                    service: port.name.to_string(),
                    problem: obstacle.to_string(),
                    severity: severity(&obstacle),
                });
            }
        }
        let missing = self.reconciler.missing_cluster_ips().into_iter();
        all.extend(missing.map(|(prefix, obstacle)| ProblemView {
            service: prefix,
            problem: obstacle.to_string(),
            severity: severity(&obstacle),
        }));
        all.extend(self.lookout.problems(&self.node_name));
        let kept = self.reconciler.kept_frontends();
        all.extend(kept.into_iter().map(|(addr, protocol)| ProblemView {
            service: format!("{addr}/{}", protocol_name(protocol)),
            problem: format!("no known Service; {}", Obstacle::Kept),
            severity: Severity::Warning,
        }));
        all
    }

    fn frontends(&self) -> Vec<FrontendView> {
        let owners = view::owners(&self.reconciler.service_ports());
        let mut all = view::frontends::<Addr4>(&self.maps, &owners);
        all.extend(view::frontends::<Addr6>(&self.maps, &owners));
        all.sort();
        all
    }
}

/// What is kept is served, as it was.
fn severity(obstacle: &Obstacle) -> Severity {
    match obstacle {
        Obstacle::Kept => Severity::Warning,
        Obstacle::Waits | Obstacle::Failed(_) | Obstacle::Full(_) => Severity::Problem,
    }
}
