//! Owns: what becomes of a run's tasks: who is where, who failed and what to do about it.
//! Never: ends or removes one. Flow: the engine's list, twice a second -> `Follow::look` ->
//! changes -> lines, or the end of the run.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bollard::{
    Docker,
    container::LogOutput,
    models::{Task, TaskState},
    query_parameters::{ListTasksOptions, LogsOptions},
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::made::is_gone;

/// A node that does not answer keeps its logs.
const LOGS_MAX: Duration = Duration::from_secs(5);
const LOG_LINES: &str = "15";
/// Scheduling takes a moment; what has found no node by then finds none.
const SCHEDULING_MAX: Duration = Duration::from_secs(8);

/// One task, as people speak of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `agents.2 on node3`.
    pub who: String,
    pub state: TaskState,
    /// It ran at some time.
    pub has_run: bool,
    /// Why it is not going on, with the remedy.
    pub failed: Option<String>,
}

/// The tasks of one service.
pub struct Follow {
    service: String,
    part: &'static str,
    nodes: HashMap<String, String>,
    image: String,
    since: Instant,
    seen: BTreeMap<String, Seen>,
}

impl Follow {
    /// `nodes`: names by ID. `image`: as the user calls it, for remedies.
    pub fn new(
        service: String,
        part: &'static str,
        nodes: HashMap<String, String>,
        image: &str,
    ) -> Follow {
        let (image, since) = (image.to_owned(), Instant::now());
        Follow { service, part, nodes, image, since, seen: BTreeMap::new() }
    }

    pub fn is_running(&self) -> bool {
        self.seen.values().any(|seen| seen.state == TaskState::RUNNING)
    }

    /// There were tasks, and none goes on.
    pub fn has_ended(&self) -> bool {
        let goes_on = |seen: &Seen| seen.failed.is_none() && seen.state != TaskState::COMPLETE;
        !self.seen.is_empty() && !self.seen.values().any(goes_on)
    }

    /// What changed since the last look.
    pub async fn look(&mut self, docker: &Docker) -> Result<Vec<Seen>> {
        let mut changes = Vec::new();
        for task in tasks_of(docker, &self.service).await? {
            let id = task.id.clone().unwrap_or_default();
            let was = self.seen.get(&id);
            let now = self.see(&task, was.is_some_and(|seen| seen.has_run));
            if was != Some(&now) {
                changes.push(now.clone());
                self.seen.insert(id, now);
            }
        }
        Ok(changes)
    }

    fn see(&self, task: &Task, has_run: bool) -> Seen {
        let status = task.status.clone().unwrap_or_default();
        let state = status.state.unwrap_or(TaskState::NEW);
        let node = task.node_id.as_ref().filter(|id| !id.is_empty());
        let node = node.map(|id| self.nodes.get(id).unwrap_or(id).as_str());
        let slot = task.slot.filter(|slot| *slot > 0);
        let slot = slot.map_or(String::new(), |slot| format!(".{slot}"));
        let place = node.map_or(String::new(), |node| format!(" on {node}"));
        let failed = match state {
            TaskState::FAILED | TaskState::REJECTED | TaskState::ORPHANED => {
                let why = status.err.or(status.message).unwrap_or_default();
                Some(explained(&why, &self.image, node.unwrap_or("that node")))
            }
            TaskState::SHUTDOWN | TaskState::REMOVE => Some("it was ended from outside".into()),
            // An error here is that of scheduling: nobody takes it.
            TaskState::PENDING | TaskState::NEW | TaskState::ALLOCATED => {
                let why = status.err.filter(|why| !why.is_empty());
                let is_late = self.since.elapsed() > SCHEDULING_MAX;
                why.filter(|_| is_late).map(|why| explained(&why, &self.image, "that node"))
            }
            _ => None,
        };
        Seen {
            who: format!("{}{slot}{place}", self.part),
            state,
            has_run: has_run || matches!(state, TaskState::RUNNING | TaskState::COMPLETE),
            failed,
        }
    }

    /// The last lines of what its tasks printed.
    pub async fn last_words(&self, docker: &Docker) -> String {
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            tail: LOG_LINES.into(),
            ..LogsOptions::default()
        };
        let lines = docker
            .service_logs(&self.service, Some(options))
            .map_ok(|line: LogOutput| line.to_string().trim_end().to_owned())
            .filter_map(|line| std::future::ready(line.ok()))
            .collect::<Vec<String>>();
        let lines = tokio::time::timeout(LOGS_MAX, lines).await.unwrap_or_default();
        lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// The port that its node published, once it runs.
    pub async fn port_of_node(&self, docker: &Docker) -> Result<Option<u16>> {
        let tasks = tasks_of(docker, &self.service).await?;
        let ports = tasks.into_iter().filter_map(|task| task.status?.port_status?.ports).flatten();
        let mut published = ports.filter_map(|port| u16::try_from(port.published_port?).ok());
        Ok(published.find(|port| *port > 0))
    }
}

async fn tasks_of(docker: &Docker, service: &str) -> Result<Vec<Task>> {
    let filters = HashMap::from([("service".to_owned(), vec![service.to_owned()])]);
    let options = ListTasksOptions { filters: Some(filters) };
    match docker.list_tasks(Some(options)).await {
        // The service was removed, its tasks are ending: what they say comes another way.
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        tasks => tasks.context("docker service ps"),
    }
}

/// The port that the routing mesh has for a service.
pub async fn port_of_mesh(docker: &Docker, service: &str) -> Result<Option<u16>> {
    let service = docker.inspect_service(service, None).await.context("docker service inspect")?;
    let ports = service.endpoint.and_then(|endpoint| endpoint.ports).unwrap_or_default();
    let mut published = ports.iter().filter_map(|port| u16::try_from(port.published_port?).ok());
    Ok(published.find(|port| *port > 0))
}

/// An engine's complaint, with what to do about it.
fn explained(why: &str, image: &str, node: &str) -> String {
    let why = why.trim();
    let has = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let remedy = if has(&["No such image", "manifest unknown", "pull access denied"]) {
        format!(
            "the node has not this image: `docker save {image} | ssh {node} docker load`, or push \
             it to a registry that all nodes reach and name it there with --image"
        )
    } else if has(&["port is already allocated", "address already in use", "port already in use"]) {
        "the port is taken on that node: another --control-port (or --port, for targets), or end \
         what has it"
            .into()
    } else if has(&["insufficient resources", "Cannot allocate memory", "OOM"]) {
        format!("{node} has not enough memory free: a smaller `size`, or another --target-node")
    } else if has(&["no space left"]) {
        format!("{node}'s disk is full: a smaller `size`, or `docker system prune` there")
    } else if has(&["rlimit", "ulimit"]) {
        "that node's daemon may not raise limits: lower ones with --nofile and --memlock, 0 leaves \
         them alone"
            .into()
    } else if has(&["no such file or directory", "executable file not found"]) && has(&["exec"]) {
        format!("{image} has no /seedring-bench: take one that docker/build made")
    } else if has(&["host-mode port already in use"]) {
        "another service publishes this port there: another --control-port".into()
    } else if has(&["scheduling constraints not satisfied", "no suitable node"]) {
        "no node takes it: `docker node ls` says which are ready and active".into()
    } else if has(&["vxlan", "network sandbox join failed", "subnet sandbox"]) {
        format!("{node} can't join the overlay network: does its kernel have vxlan?")
    } else if has(&["non-zero exit (137)"]) {
        "it was killed: the kernel does that where memory runs out (`dmesg` on that node)".into()
    } else {
        return if why.is_empty() { "no reason is given".into() } else { why.to_owned() };
    };
    format!("{why}: {remedy}")
}

#[cfg(test)]
mod tests {
    use bollard::models::TaskStatus;

    use super::*;

    fn follow() -> Follow {
        let nodes = HashMap::from([("n1".to_owned(), "east".to_owned())]);
        Follow::new("id".into(), "agents", nodes, "bench:1")
    }

    fn task(state: TaskState, error: Option<&str>) -> Task {
        Task {
            slot: Some(2),
            node_id: Some("n1".into()),
            status: Some(TaskStatus {
                state: Some(state),
                err: error.map(str::to_owned),
                ..TaskStatus::default()
            }),
            ..Task::default()
        }
    }

    #[test]
    fn a_failure_names_the_task_its_node_and_the_remedy() {
        let missing = "No such image: sha256:aa";
        let seen = follow().see(&task(TaskState::REJECTED, Some(missing)), false);
        let why = seen.failed.expect("failed");
        assert_eq!((seen.who.as_str(), seen.has_run), ("agents.2 on east", false));
        assert!(
            why.starts_with(missing) && why.contains("docker save bench:1 | ssh east"),
            "{why}"
        );
        for (said, remedy) in [
            ("Bind for 0.0.0.0:7 failed: port is already allocated", "--control-port"),
            ("no suitable node (insufficient resources on 3 nodes)", "memory"),
            ("OCI runtime create failed: error setting rlimit type 7", "--nofile"),
            ("no suitable node (scheduling constraints not satisfied on 1 node)", "docker node ls"),
            ("starting container failed: mkdir /var/x: no space left on device", "disk is full"),
            ("task: non-zero exit (137)", "memory runs out"),
        ] {
            let why = explained(said, "i", "n");
            assert!(why.starts_with(said) && why.contains(remedy), "{why}");
        }
        assert_eq!(explained("task: non-zero exit (1)", "i", "n"), "task: non-zero exit (1)");
    }

    #[test]
    fn what_runs_or_is_on_its_way_has_not_failed() {
        for state in [TaskState::PREPARING, TaskState::STARTING, TaskState::RUNNING] {
            assert_eq!(follow().see(&task(state, None), false).failed, None);
        }
        // Scheduling has its time.
        let wait = Some("no suitable node (insufficient resources)");
        assert_eq!(follow().see(&task(TaskState::PENDING, wait), false).failed, None);
        let mut late = follow();
        late.since = Instant::now().checked_sub(2 * SCHEDULING_MAX).expect("up for so long");
        assert!(late.see(&task(TaskState::PENDING, wait), false).failed.is_some());
        assert_eq!(late.see(&task(TaskState::PENDING, None), false).failed, None);
    }
}
