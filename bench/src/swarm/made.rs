//! Owns: what a run makes in a Swarm, by its label, and that all of it goes again.
//! Never: decides what is made (`spec.rs`). Flow: `Made::new` -> secret, config, network,
//! services -> `remove`, from whatever the label is on: an answer that was lost hides nothing.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use anyhow::{Context, Result};
use bollard::{
    Docker,
    errors::Error,
    models::{ConfigSpec, NetworkCreateRequest, SecretSpec, ServiceSpec, Task, TaskState},
    query_parameters::{
        ListConfigsOptions, ListContainersOptions, ListNetworksOptions, ListSecretsOptions,
        ListServicesOptions, ListTasksOptions, ListVolumesOptions, RemoveContainerOptions,
        RemoveVolumeOptions,
    },
};

use super::spec::{Held, LABEL, encoded};

/// Until containers of removed services have to be gone: the longest grace of a task, and some.
const GONE_MAX: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(300);
/// In which the engine itself removes the containers of tasks that are gone.
const ROUNDS_OF_ENGINE: usize = 10;

/// Of one run, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    Run(String),
    Everyone,
}

impl Whose {
    fn filters(&self) -> HashMap<String, Vec<String>> {
        let label = match self {
            Whose::Run(run) => format!("{LABEL}={run}"),
            Whose::Everyone => LABEL.to_owned(),
        };
        HashMap::from([("label".to_owned(), vec![label])])
    }

    fn is_of(&self, labels: Option<&HashMap<String, String>>) -> bool {
        let run = labels.and_then(|labels| labels.get(LABEL));
        match self {
            Whose::Run(name) => run == Some(name),
            Whose::Everyone => run.is_some(),
        }
    }
}

pub async fn secret(
    docker: &Docker,
    name: String,
    labels: HashMap<String, String>,
    text: &str,
) -> Result<Held> {
    let spec = SecretSpec {
        name: Some(name.clone()),
        labels: Some(labels),
        data: Some(encoded(text)),
        ..SecretSpec::default()
    };
    let made = docker.create_secret(spec).await.context("the token as a secret")?;
    Ok(Held { id: made.id, name })
}

pub async fn config(
    docker: &Docker,
    name: String,
    labels: HashMap<String, String>,
    text: &str,
) -> Result<Held> {
    let spec = ConfigSpec {
        name: Some(name.clone()),
        labels: Some(labels),
        data: Some(encoded(text)),
        ..ConfigSpec::default()
    };
    let made = docker.create_config(spec).await.context("the scenario as a config")?;
    Ok(Held { id: made.id, name })
}

pub async fn network(docker: &Docker, name: &str, labels: HashMap<String, String>) -> Result<()> {
    let wanted = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("overlay".into()),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    };
    docker.create_network(wanted).await.with_context(|| {
        format!("an overlay network {name}: does `docker network create -d overlay x` work?")
    })?;
    Ok(())
}

/// Its ID.
pub async fn service(docker: &Docker, spec: ServiceSpec) -> Result<String> {
    let name = spec.name.clone().unwrap_or_default();
    let made = docker.create_service(spec, None).await;
    let made = made.map_err(|error| anyhow::anyhow!("{}", in_words(&error)));
    let made = made.with_context(|| format!("the service {name} can't be made"))?;
    for warning in made.warnings.iter().flatten() {
        eprintln!("{name}: {warning}");
    }
    made.id.with_context(|| format!("the service {name} has no ID"))
}

/// Ends a service's tasks, each with its grace; what they say on the way is still heard.
pub async fn remove_service(docker: &Docker, id: &str) -> Result<()> {
    match docker.delete_service(id).await {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error).context("docker service rm"),
    }
}

/// What the engine itself says, without the client's "responded with status code".
pub fn in_words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// There is none of that name (any more).
pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// Runs that something is left of.
pub async fn runs(docker: &Docker) -> Result<BTreeSet<String>> {
    let all = Whose::Everyone;
    let mut runs = BTreeSet::new();
    let mut note = |labels: Option<&HashMap<String, String>>| {
        runs.extend(labels.and_then(|labels| labels.get(LABEL)).cloned());
    };
    let left = left(docker, &all).await?;
    left.labels.iter().for_each(|labels| note(Some(labels)));
    Ok(runs)
}

/// What is there, by kind.
#[derive(Debug, Default)]
struct Left {
    services: Vec<String>,
    tasks: Vec<String>,
    networks: Vec<String>,
    secrets: Vec<String>,
    configs: Vec<String>,
    volumes: Vec<String>,
    containers: Vec<String>,
    labels: Vec<HashMap<String, String>>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.named().is_empty()
    }

    /// As arguments of `docker`, to be removed by hand.
    fn named(&self) -> Vec<String> {
        let kinds = [
            ("service", &self.services),
            ("task", &self.tasks),
            ("network", &self.networks),
            ("secret", &self.secrets),
            ("config", &self.configs),
            ("container", &self.containers),
            ("volume", &self.volumes),
        ];
        let all =
            kinds.iter().flat_map(|(kind, ids)| ids.iter().map(move |id| format!("{kind} {id}")));
        all.collect()
    }
}

async fn left(docker: &Docker, whose: &Whose) -> Result<Left> {
    let filters = Some(whose.filters());
    let mut left = Left::default();
    let options = ListServicesOptions { filters: filters.clone(), ..Default::default() };
    for service in docker.list_services(Some(options)).await.context("docker service ls")? {
        left.services.extend(service.id);
        left.labels.extend(service.spec.and_then(|spec| spec.labels));
    }
    for task in docker.list_tasks(None::<ListTasksOptions>).await.context("docker task ls")? {
        let is_there = is_there(&task);
        let spec = task.spec.and_then(|spec| spec.container_spec);
        let labels = spec.and_then(|spec| spec.labels);
        if is_there && whose.is_of(labels.as_ref()) {
            left.tasks.extend(task.id);
            left.labels.extend(labels);
        }
    }
    let options = ListNetworksOptions { filters: filters.clone() };
    for network in docker.list_networks(Some(options)).await.context("docker network ls")? {
        left.networks.extend(network.id);
        left.labels.extend(network.labels);
    }
    let options = ListSecretsOptions { filters: filters.clone() };
    for secret in docker.list_secrets(Some(options)).await.context("docker secret ls")? {
        left.secrets.extend(secret.id);
        left.labels.extend(secret.spec.and_then(|spec| spec.labels));
    }
    let options = ListConfigsOptions { filters: filters.clone() };
    for config in docker.list_configs(Some(options)).await.context("docker config ls")? {
        left.configs.extend(config.id);
        left.labels.extend(config.spec.and_then(|spec| spec.labels));
    }
    let options =
        ListContainersOptions { all: true, filters: filters.clone(), ..Default::default() };
    for container in docker.list_containers(Some(options)).await.context("docker ps")? {
        left.containers.extend(container.id);
        left.labels.extend(container.labels);
    }
    let options = ListVolumesOptions { filters };
    let volumes = docker.list_volumes(Some(options)).await.context("docker volume ls")?;
    for volume in volumes.volumes.unwrap_or_default() {
        left.volumes.push(volume.name);
        left.labels.push(volume.labels);
    }
    Ok(left)
}

/// All of it, and waits until it is gone. Says what can't be removed.
pub async fn remove(docker: &Docker, whose: &Whose) -> Result<()> {
    let gone = tokio::time::timeout(GONE_MAX, remove_until_gone(docker, whose)).await;
    let Err(_) = gone else { return gone.unwrap_or(Ok(())) };
    let left = left(docker, whose).await?;
    if left.is_nothing() {
        return Ok(());
    }
    anyhow::bail!(
        "still there after {} s: {}; `seedring-bench swarm clean` tries again",
        GONE_MAX.as_secs(),
        left.named().join(", ")
    )
}

/// Services first, which all others are held by; then again and again what is no longer in use.
async fn remove_until_gone(docker: &Docker, whose: &Whose) -> Result<()> {
    let mut rounds_without_tasks = 0;
    loop {
        let left = left(docker, whose).await?;
        if left.is_nothing() {
            return Ok(());
        }
        for id in &left.services {
            remove_service(docker, id).await?;
        }
        // In use until their tasks are gone: an error says no more than that.
        for id in &left.secrets {
            let _ = docker.delete_secret(id).await;
        }
        for id in &left.configs {
            let _ = docker.delete_config(id).await;
        }
        for id in &left.networks {
            let _ = docker.remove_network(id).await;
        }
        if left.tasks.is_empty() {
            rounds_without_tasks += 1;
        }
        if rounds_without_tasks > ROUNDS_OF_ENGINE {
            remove_here(docker, &left).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// It runs or will, or the engine is about to remove it. What only stands in the list of the past
/// holds nothing.
fn is_there(task: &Task) -> bool {
    use TaskState::{COMPLETE, FAILED, ORPHANED, REJECTED, REMOVE, SHUTDOWN};
    let ended = [COMPLETE, FAILED, ORPHANED, REJECTED, REMOVE, SHUTDOWN];
    let state = task.status.as_ref().and_then(|status| status.state);
    task.desired_state == Some(REMOVE) || !state.is_some_and(|state| ended.contains(&state))
}

/// Of this node: others' are not in its reach.
async fn remove_here(docker: &Docker, left: &Left) {
    for id in &left.containers {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let _ = docker.remove_container(id, Some(options)).await;
    }
    for name in &left.volumes {
        let _ = docker.remove_volume(name, None::<RemoveVolumeOptions>).await;
    }
}
