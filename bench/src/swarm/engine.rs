//! Owns: the connection to Docker's Engine API, and what that engine can do: its version,
//! whether it manages a Swarm, which seccomp profile services can have, which image is meant.
//! Never: makes anything. Flow: `Engine::connect` -> the run's plan -> `made.rs` makes it.

use anyhow::{Context, Result, bail, ensure};
use bollard::{
    ClientVersion, Docker,
    errors::Error,
    models::{ImageInspect, LocalNodeState, SystemInfo},
};

use super::made::in_words;

/// Where Docker listens unless DOCKER_HOST or --host says otherwise.
const SOCKET: &str = "unix:///var/run/docker.sock";
/// The first version that takes a seccomp profile in a service's Privileges (Docker 25).
const SECCOMP_SINCE: ClientVersion = ClientVersion { major_version: 1, minor_version: 44 };
/// Docker 24. Older ones leave the tasks of jobs behind when the service is removed, containers and
/// volumes with them (moby issue 42789, mended by swarmkit 3112; seen with 20.10.24).
const JOBS_SINCE: ClientVersion = ClientVersion { major_version: 1, minor_version: 43 };
/// Services have capabilities and limits of open files (Docker 20.10).
const OLDEST: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

/// A Swarm manager that answers.
pub struct Engine {
    pub docker: Docker,
    pub api: ClientVersion,
    /// This node's.
    pub node_id: String,
    pub node_address: String,
    info: SystemInfo,
    host: String,
}

/// Which filter the tasks run under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// Ours, in the service's own Privileges.
    Service,
    /// The one of each node, as the API can't say: in words, which it is here.
    Node(String),
}

impl Engine {
    /// `host`: as DOCKER_HOST writes it; left out, that variable, or the usual socket.
    pub async fn connect(host: Option<&str>) -> Result<Engine> {
        let host = host.map(str::to_owned).or_else(|| std::env::var("DOCKER_HOST").ok());
        let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| SOCKET.into());
        let docker = Docker::connect_with_host(&host).map_err(|error| no_answer(&host, &error))?;
        let docker = docker.negotiate_version().await.map_err(|error| no_answer(&host, &error))?;
        let api = docker.client_version();
        ensure!(
            api >= OLDEST,
            "the engine at {host} speaks version {api} of its API; services with limits and \
             capabilities need {OLDEST}: update to Docker 20.10 or newer"
        );
        let info = docker.info().await.context("docker info")?;
        let swarm = info.swarm.clone().unwrap_or_default();
        let manages = swarm.control_available == Some(true);
        let name = info.name.clone().unwrap_or_else(|| host.clone());
        if !manages {
            bail!("{}", no_manager(&name, swarm.local_node_state));
        }
        Ok(Engine {
            docker,
            api,
            node_id: swarm.node_id.unwrap_or_default(),
            node_address: swarm.node_addr.unwrap_or_default(),
            info,
            host,
        })
    }

    pub fn has_reliable_jobs(&self) -> bool {
        self.api >= JOBS_SINCE
    }

    pub fn seccomp(&self) -> Seccomp {
        let version = self.info.server_version.as_deref().unwrap_or("unknown");
        let options = self.info.security_options.as_deref().unwrap_or_default();
        seccomp_of(self.api, version, options)
    }

    /// Where ports that this engine publishes are reached from here.
    pub fn publishes_at(&self) -> String {
        let remote = self.host.strip_prefix("tcp://").or_else(|| self.host.strip_prefix("http://"));
        let host = remote.and_then(|rest| rest.rsplit_once(':')).map(|(host, _)| host);
        host.unwrap_or("127.0.0.1").to_owned()
    }

    /// Whether the engine runs on this machine, as far as can be told.
    pub fn is_local(&self) -> bool {
        self.host.starts_with("unix://")
    }

    /// An overlay network of the user's that services can join; its name.
    pub async fn overlay(&self, name: &str) -> Result<String> {
        let remedy = "`docker network create --driver overlay NAME` makes one";
        let network = match self.docker.inspect_network(name, None).await {
            Ok(network) => network,
            Err(error) => bail!("--network {name}: {}: {remedy}", in_words(&error)),
        };
        let scope = network.scope.unwrap_or_default();
        ensure!(
            scope == "swarm",
            "--network {name}: it is a network of this node alone (scope {scope}): {remedy}, and \
             `host` is the nodes' own"
        );
        Ok(name.to_owned())
    }

    /// What all nodes are told to run: one and the same image, so that all speak one protocol.
    pub async fn pinned_image(&self, name: &str) -> Result<String> {
        match self.docker.inspect_image(name).await {
            Ok(image) => pinned(name, &image),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => bail!(
                "this manager has no image {name}: `docker/build bench` makes \
                 seedring-bench:latest \
                 and `docker/build rivals` seedring-rivals:latest, which has the other clients and \
                 iperf3; --image names another one"
            ),
            Err(error) => Err(error).with_context(|| format!("the image {name}")),
        }
    }
}

fn no_answer(host: &str, error: &Error) -> anyhow::Error {
    let why = match error {
        Error::SocketNotFoundError(path) => format!("{path} is not there"),
        Error::UnsupportedURISchemeError { .. } => "only unix:// and tcp:// are known (for ssh: \
             ssh -NL /tmp/docker.sock:/var/run/docker.sock HOST, then unix:///tmp/docker.sock)"
            .into(),
        other => innermost(other),
    };
    anyhow::anyhow!(
        "Docker does not answer at {host}: {why}; start it, or name it with --host or DOCKER_HOST"
    )
}

/// What went wrong at the bottom: hyper's own words say no more than that something did.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn no_manager(name: &str, state: Option<LocalNodeState>) -> String {
    match state {
        Some(LocalNodeState::ACTIVE) => format!(
            "{name} is a worker of its Swarm: run this on a manager, or name one with --host \
             (`docker node promote {name}` on a manager makes it one)"
        ),
        Some(LocalNodeState::PENDING) => {
            format!("{name} is just joining a Swarm: try again in some seconds")
        }
        Some(LocalNodeState::LOCKED) => {
            format!("{name}'s Swarm is locked: `docker swarm unlock` first")
        }
        Some(LocalNodeState::ERROR) => {
            format!("{name}'s Swarm is in error: `docker info` says why")
        }
        _ => format!(
            "{name} is in no Swarm: `docker swarm init` makes it one of a single node, and prints \
             what other machines join it with"
        ),
    }
}

/// `options`: `SecurityOptions` of the engine, such as `name=seccomp,profile=default`.
fn seccomp_of(api: ClientVersion, version: &str, options: &[String]) -> Seccomp {
    if api >= SECCOMP_SINCE {
        return Seccomp::Service;
    }
    let profile = options.iter().find_map(|option| option.strip_prefix("name=seccomp"));
    let profile = profile.map(|rest| rest.trim_start_matches(",profile=").to_owned());
    let which = match profile.as_deref() {
        None => "and this one has no filter: io_uring is allowed".to_owned(),
        Some("" | "default" | "builtin") => {
            "and this one has Docker's own, which allows io_uring up to Docker 24".to_owned()
        }
        Some("unconfined") => "and this one filters nothing: io_uring is allowed".to_owned(),
        Some(path) => format!(
            "and this one has {path}: whether that allows io_uring is seen when the engine starts"
        ),
    };
    Seccomp::Node(format!(
        "services can't name a seccomp profile before API {SECCOMP_SINCE} (Docker 25), this is \
         {api} (Docker {version}): each node's own holds, {which}"
    ))
}

/// A registry's digest where there is one, the image's own ID otherwise: a node that has it
/// does not ask a registry that does not know it.
fn pinned(name: &str, image: &ImageInspect) -> Result<String> {
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    let digests = image.repo_digests.as_deref().unwrap_or_default();
    let of_registry = digests
        .iter()
        .find(|digest| digest.split_once('@').is_some_and(|(of, _)| of == repository));
    let pinned = of_registry.or(image.id.as_ref()).cloned();
    pinned.with_context(|| format!("the image {name} has neither a digest nor an ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(minor_version: usize) -> ClientVersion {
        ClientVersion { major_version: 1, minor_version }
    }

    #[test]
    fn each_case_of_seccomp_says_which_it_is() {
        let of = |minor, options: &[&str]| {
            let options: Vec<String> = options.iter().map(|it| (*it).to_owned()).collect();
            seccomp_of(version(minor), "20.10.24", &options)
        };
        assert_eq!(of(44, &[]), Seccomp::Service);
        assert_eq!(of(53, &["name=seccomp,profile=builtin"]), Seccomp::Service);
        let words = |seccomp| match seccomp {
            Seccomp::Node(words) => words,
            Seccomp::Service => panic!("API 1.41 has no profile of services"),
        };
        let usual = words(of(41, &["name=apparmor", "name=seccomp,profile=default"]));
        assert!(usual.contains("1.44") && usual.contains("1.41") && usual.contains("20.10.24"));
        assert!(usual.contains("allows io_uring up to Docker 24"), "{usual}");
        let own = words(of(43, &["name=seccomp,profile=/etc/docker/strict.json"]));
        assert!(own.contains("/etc/docker/strict.json"), "{own}");
        assert!(words(of(41, &["name=apparmor"])).contains("no filter"));
    }

    #[test]
    fn an_image_is_pinned_by_its_registry_or_by_itself() {
        let id = Some("sha256:aa".to_owned());
        let of = |name: &str, digests: &[&str]| {
            let digests = digests.iter().map(|it| (*it).to_owned()).collect();
            let image = ImageInspect {
                id: id.clone(),
                repo_digests: Some(digests),
                ..ImageInspect::default()
            };
            pinned(name, &image).expect("pinned")
        };
        assert_eq!(of("seedring-bench:latest", &[]), "sha256:aa");
        let digest = "reg.example:5000/bench@sha256:bb";
        assert_eq!(of("reg.example:5000/bench:1", &["other@sha256:cc", digest]), digest);
        assert_eq!(of("reg.example:5000/bench", &[digest]), digest);
        assert_eq!(of("mine:1", &[digest]), "sha256:aa");
        assert!(pinned("none", &ImageInspect::default()).is_err());
    }

    #[test]
    fn who_is_no_manager_is_told_what_to_do() {
        let inactive = no_manager("n", Some(LocalNodeState::INACTIVE));
        assert!(inactive.contains("docker swarm init"), "{inactive}");
        let worker = no_manager("n", Some(LocalNodeState::ACTIVE));
        assert!(worker.contains("on a manager") && worker.contains("promote n"), "{worker}");
    }
}
