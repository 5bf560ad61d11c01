//! Owns: what a run's services are, as the Engine API wants them told: controller, agents, and the
//! comparison itself beside its targets.
//! Never: speaks to an engine. Flow: a `Plan` -> three `ServiceSpec`s -> `made.rs`.
//!
//! Tasks are jobs where the engine cleans up after them, and otherwise those of services that are
//! never restarted: both end when their program does.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum,
    EndpointSpec, Mount, MountType, MountVolumeOptions, NetworkAttachmentConfig, ResourcesUlimits,
    ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated, ServiceSpecModeReplicatedJob,
    TaskSpec, TaskSpecContainerSpec, TaskSpecContainerSpecConfigs, TaskSpecContainerSpecFile,
    TaskSpecContainerSpecFile1, TaskSpecContainerSpecPrivileges,
    TaskSpecContainerSpecPrivilegesSeccomp, TaskSpecContainerSpecPrivilegesSeccompModeEnum,
    TaskSpecContainerSpecSecrets, TaskSpecPlacement, TaskSpecRestartPolicy,
    TaskSpecRestartPolicyConditionEnum,
};

use super::nodes::Choice;

/// On all that a run makes; its value is the run's name.
pub const LABEL: &str = "io.seedring.bench.run";
/// The port that the controller listens at in its container.
pub const CONTROLLER_PORT: u16 = 6970;
/// Of this repository: for programs that start no others.
const PROFILE: &str = include_str!("../../../docker/seccomp.json");
const PROGRAM: &str = "/seedring-bench";
const TOKEN: &str = "/run/secrets/token";
const SECOND: i64 = 1_000_000_000;

/// Where the load goes, and with it everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Each node's own.
    Host,
    /// An overlay network of the Swarm, by name.
    Overlay(String),
}

/// How the controller's port is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// On every node, by the routing mesh; between nodes it goes over the ingress overlay.
    Mesh,
    /// On the controller's node alone.
    Node,
}

/// A run, decided upon.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name: part of every other one.
    pub run: String,
    pub choice: Choice,
    pub network: Network,
    pub agents: usize,
    /// One agent on each of the agents' nodes, whatever their number.
    pub per_node: bool,
    pub jobs: bool,
    /// Of controller and agents.
    pub image: String,
    /// Of the comparison: it has the targets.
    pub target_image: String,
    /// The scenario's file name.
    pub scenario: String,
    /// Where targets listen on host networking, and agents find them.
    pub target_address: String,
    pub target_port: u16,
    /// Further arguments of the comparison.
    pub more: Vec<String>,
    /// Cores of the agents, where they share the target's node.
    pub agent_cores: Option<String>,
    /// A volume of the user's for the content; left out, one that goes with the container.
    pub content: Option<String>,
    /// Whether the API takes seccomp profiles of services.
    pub seccomp: bool,
    /// Agents start iperf3, which our profile would refuse.
    pub has_iperf3: bool,
    pub nofile: i64,
    pub memlock: i64,
    pub published_port: Option<u16>,
    pub revision: String,
}

/// What was made for it, by ID and name.
#[derive(Clone, Debug)]
pub struct Held {
    pub id: String,
    pub name: String,
}

/// Which system calls a container may make, where the API can say it.
#[derive(Clone, Copy)]
enum Filter {
    /// Ours: for what starts no other program.
    Ours,
    /// Docker's own.
    Usual,
    /// The engine wants io_uring, other clients whatever they want.
    None,
}

/// What containers are started with.
struct Container {
    image: String,
    args: Vec<String>,
    env: Vec<String>,
    read_only: bool,
    filter: Filter,
    /// Capabilities.
    keeps: &'static [&'static str],
    grace_seconds: i64,
}

impl Plan {
    pub fn name_of(&self, part: &str) -> String {
        format!("seedring-bench-{}-{part}", self.run)
    }

    pub fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(LABEL.to_owned(), self.run.clone())])
    }

    /// Where agents and comparison reach the controller, whose port is published as this.
    pub fn controller_at(&self, publish: Publish, port: u16) -> String {
        match (&self.network, publish) {
            // The name of its tasks, not the service's: a virtual address needs IPVS in the kernel.
            (Network::Overlay(_), _) => {
                format!("tasks.{}:{CONTROLLER_PORT}", self.name_of("controller"))
            }
            (Network::Host, Publish::Mesh) => format!("127.0.0.1:{port}"),
            (Network::Host, Publish::Node) => with_port(&self.choice.controller.address, port),
        }
    }

    pub fn controller(&self, publish: Publish, secret: &Held) -> ServiceSpec {
        let args = [
            "controller".into(),
            format!("--listen=0.0.0.0:{CONTROLLER_PORT}"),
            format!("--agents={}", self.agents),
            format!("--token-file={TOKEN}"),
        ];
        let container = Container {
            image: self.image.clone(),
            args: args.into(),
            env: Vec::new(),
            read_only: true,
            filter: Filter::Ours,
            keeps: &[],
            grace_seconds: 10,
        };
        let port = EndpointPortConfig {
            name: Some("controller".into()),
            protocol: Some(EndpointPortConfigProtocolEnum::TCP),
            target_port: Some(CONTROLLER_PORT.into()),
            published_port: self.published_port.map(i64::from),
            publish_mode: Some(match publish {
                Publish::Mesh => EndpointPortConfigPublishModeEnum::INGRESS,
                Publish::Node => EndpointPortConfigPublishModeEnum::HOST,
            }),
        };
        // Its own mode is a service in any case: published ports of jobs are not in the API.
        let one = ServiceSpecMode {
            replicated: Some(ServiceSpecModeReplicated { replicas: Some(1) }),
            ..ServiceSpecMode::default()
        };
        let on = vec![format!("node.id=={}", self.choice.controller.id)];
        let mut spec = self.service("controller", one, on, container, secret, None);
        spec.endpoint_spec = Some(EndpointSpec { mode: None, ports: Some(vec![port]) });
        if self.network == Network::Host
            && let Some(task) = &mut spec.task_template
        {
            // A published port needs a network of the container's own.
            task.networks = None;
        }
        spec
    }

    pub fn agents(&self, controller: &str, secret: &Held) -> ServiceSpec {
        let mut args = vec!["agent".into(), controller.to_owned(), format!("--token-file={TOKEN}")];
        args.extend(self.agent_cores.as_ref().map(|cores| format!("--cores={cores}")));
        let name = if self.per_node { "{{.Node.Hostname}}" } else { "agent-{{.Task.Slot}}" };
        let container = Container {
            image: self.image.clone(),
            args,
            env: vec![
                format!("SEEDRING_BENCH_NAME={name}"),
                "SEEDRING_BENCH_NODE={{.Node.Hostname}}".into(),
                format!("SEEDRING_REVISION={}", self.revision),
            ],
            read_only: true,
            filter: if self.has_iperf3 { Filter::Usual } else { Filter::Ours },
            keeps: &["CAP_SYS_NICE"],
            grace_seconds: 5,
        };
        let target = &self.choice.target.id;
        let is = if self.choice.is_one_node() { "==" } else { "!=" };
        let on = vec!["node.platform.os==linux".into(), format!("node.id{is}{target}")];
        let mode = if self.per_node { self.on_each_node() } else { self.times(self.agents) };
        let mut spec = self.service("agents", mode, on, container, secret, None);
        if let Some(container) =
            spec.task_template.as_mut().and_then(|task| task.container_spec.as_mut())
        {
            // iperf3 keeps its stream in a file there, and the root is read-only.
            container.mounts = Some(vec![Mount {
                target: Some("/tmp".into()),
                typ: Some(MountType::TMPFS),
                ..Mount::default()
            }]);
        }
        spec
    }

    pub fn comparison(&self, controller: &str, secret: &Held, config: &Held) -> ServiceSpec {
        let mut args = vec![
            "run".into(),
            format!("/{}", self.scenario),
            format!("--controller={controller}"),
            format!("--token-file={TOKEN}"),
            "--in-place".into(),
            "--seedring=/seedring".into(),
            "--work=/work".into(),
            "--out=/work/report".into(),
        ];
        if self.network == Network::Host {
            let address = with_port(&self.target_address, self.target_port);
            args.push(format!("--address={address}"));
        }
        args.extend(self.more.iter().cloned());
        let container = Container {
            image: self.target_image.clone(),
            args,
            // Other clients write beside their state; a terminal is expected by some.
            env: vec![
                "HOME=/tmp".into(),
                "TERM=xterm".into(),
                format!("SEEDRING_REVISION={}", self.revision),
            ],
            read_only: false,
            filter: Filter::None,
            keeps: &["CAP_SYS_NICE", "CAP_IPC_LOCK"],
            // The report of what was measured so far is sent before it ends.
            grace_seconds: 60,
        };
        let on = vec![format!("node.id=={}", self.choice.target.id)];
        let mut spec =
            self.service("comparison", self.times(1), on, container, secret, Some(config));
        if let Some(container) =
            spec.task_template.as_mut().and_then(|task| task.container_spec.as_mut())
        {
            container.mounts = Some(vec![self.content_mount()]);
        }
        spec
    }

    fn content_mount(&self) -> Mount {
        Mount {
            target: Some("/work".into()),
            // Without a name it goes with its container, on whichever node that is.
            source: self.content.clone(),
            typ: Some(MountType::VOLUME),
            volume_options: self.content.is_none().then(|| MountVolumeOptions {
                labels: Some(self.labels()),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        }
    }

    fn times(&self, count: usize) -> ServiceSpecMode {
        let count = Some(i64::try_from(count).unwrap_or(i64::MAX));
        if self.jobs {
            let job =
                ServiceSpecModeReplicatedJob { max_concurrent: count, total_completions: count };
            return ServiceSpecMode { replicated_job: Some(job), ..ServiceSpecMode::default() };
        }
        let replicated = Some(ServiceSpecModeReplicated { replicas: count });
        ServiceSpecMode { replicated, ..ServiceSpecMode::default() }
    }

    fn on_each_node(&self) -> ServiceSpecMode {
        let all = Some(HashMap::new());
        if self.jobs {
            ServiceSpecMode { global_job: all, ..ServiceSpecMode::default() }
        } else {
            ServiceSpecMode { global: all, ..ServiceSpecMode::default() }
        }
    }

    fn service(
        &self,
        part: &str,
        mode: ServiceSpecMode,
        constraints: Vec<String>,
        container: Container,
        secret: &Held,
        config: Option<&Held>,
    ) -> ServiceSpec {
        let network = match &self.network {
            Network::Host => "host",
            Network::Overlay(name) => name,
        };
        let attached =
            NetworkAttachmentConfig { target: Some(network.into()), ..Default::default() };
        ServiceSpec {
            name: Some(self.name_of(part)),
            labels: Some(self.labels()),
            task_template: Some(TaskSpec {
                container_spec: Some(self.container(container, secret, config)),
                restart_policy: Some(TaskSpecRestartPolicy {
                    condition: Some(TaskSpecRestartPolicyConditionEnum::NONE),
                    ..TaskSpecRestartPolicy::default()
                }),
                placement: Some(TaskSpecPlacement {
                    constraints: Some(constraints),
                    ..TaskSpecPlacement::default()
                }),
                networks: Some(vec![attached]),
                ..TaskSpec::default()
            }),
            mode: Some(mode),
            ..ServiceSpec::default()
        }
    }

    fn container(
        &self,
        container: Container,
        secret: &Held,
        config: Option<&Held>,
    ) -> TaskSpecContainerSpec {
        let readable = Some(0o444);
        let secret = TaskSpecContainerSpecSecrets {
            file: Some(TaskSpecContainerSpecFile {
                name: Some("token".into()),
                uid: Some("0".into()),
                gid: Some("0".into()),
                mode: readable,
            }),
            secret_id: Some(secret.id.clone()),
            secret_name: Some(secret.name.clone()),
        };
        let configs = config.map(|config| {
            vec![TaskSpecContainerSpecConfigs {
                file: Some(TaskSpecContainerSpecFile1 {
                    name: Some(format!("/{}", self.scenario)),
                    uid: Some("0".into()),
                    gid: Some("0".into()),
                    mode: readable,
                }),
                config_id: Some(config.id.clone()),
                config_name: Some(config.name.clone()),
                ..TaskSpecContainerSpecConfigs::default()
            }]
        });
        let limits = [("nofile", self.nofile), ("memlock", self.memlock)];
        let limits = limits.into_iter().filter(|(_, limit)| *limit != 0);
        TaskSpecContainerSpec {
            image: Some(container.image),
            command: Some(vec![PROGRAM.into()]),
            args: Some(container.args),
            env: Some(container.env),
            labels: Some(self.labels()),
            // Root without a capability but these: priorities, and the engine's registered cache.
            user: Some("0:0".into()),
            capability_drop: Some(vec!["ALL".into()]),
            capability_add: Some(container.keeps.iter().map(|&it| it.to_owned()).collect()),
            read_only: Some(container.read_only),
            privileges: self.seccomp.then(|| privileges(container.filter)),
            stop_grace_period: Some(container.grace_seconds * SECOND),
            secrets: Some(vec![secret]),
            configs,
            ulimits: Some(
                limits
                    .map(|(name, limit)| ResourcesUlimits {
                        name: Some(name.into()),
                        soft: Some(limit),
                        hard: Some(limit),
                    })
                    .collect(),
            ),
            ..TaskSpecContainerSpec::default()
        }
    }
}

fn privileges(filter: Filter) -> TaskSpecContainerSpecPrivileges {
    use TaskSpecContainerSpecPrivilegesSeccompModeEnum::{CUSTOM, DEFAULT, UNCONFINED};
    let (mode, profile) = match filter {
        // Bytes in the API, whatever its description says of an object.
        Filter::Ours => (CUSTOM, Some(STANDARD.encode(PROFILE))),
        Filter::Usual => (DEFAULT, None),
        Filter::None => (UNCONFINED, None),
    };
    TaskSpecContainerSpecPrivileges {
        seccomp: Some(TaskSpecContainerSpecPrivilegesSeccomp { mode: Some(mode), profile }),
        no_new_privileges: Some(true),
        ..TaskSpecContainerSpecPrivileges::default()
    }
}

pub fn with_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

pub fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::nodes::Place, *};

    fn place(id: &str) -> Place {
        let (name, address) = (format!("node-{id}"), format!("10.0.0.{id}"));
        Place { id: id.into(), name, address, cores: 2 }
    }

    pub fn plan(agents: &[&str]) -> Plan {
        let choice = Choice {
            target: place("1"),
            controller: place("1"),
            agents: agents.iter().map(|id| place(id)).collect(),
        };
        Plan {
            run: "0a1b2c".into(),
            choice,
            network: Network::Host,
            agents: 4,
            per_node: false,
            jobs: false,
            image: "sha256:aa".into(),
            target_image: "sha256:bb".into(),
            scenario: "quick.yaml".into(),
            target_address: "10.0.0.1".into(),
            target_port: 6881,
            more: vec!["--repeats=1".into()],
            agent_cores: Some("1".into()),
            content: None,
            seccomp: true,
            has_iperf3: false,
            nofile: 1000,
            memlock: 0,
            published_port: None,
            revision: "cafe".into(),
        }
    }

    fn held(what: &str) -> Held {
        Held { id: format!("id-of-{what}"), name: what.into() }
    }

    fn as_json(spec: &ServiceSpec) -> Value {
        serde_json::to_value(spec).expect("JSON")
    }

    #[test]
    fn agents_are_jobs_where_jobs_are_cleaned_up_and_never_restarted_elsewhere() {
        let mut plan = plan(&["2", "3"]);
        let mode = |plan: &Plan| as_json(&plan.agents("c:1", &held("token")))["Mode"].clone();
        assert_eq!(mode(&plan), json!({"Replicated": {"Replicas": 4}}));
        plan.per_node = true;
        assert_eq!(mode(&plan), json!({"Global": {}}));
        plan.jobs = true;
        assert_eq!(mode(&plan), json!({"GlobalJob": {}}));
        plan.per_node = false;
        let job = json!({"ReplicatedJob": {"MaxConcurrent": 4, "TotalCompletions": 4}});
        assert_eq!(mode(&plan), job);
        let spec = as_json(&plan.agents("c:1", &held("token")));
        assert_eq!(spec["TaskTemplate"]["RestartPolicy"], json!({"Condition": "none"}));
        let on = &spec["TaskTemplate"]["Placement"]["Constraints"];
        assert_eq!(on, &json!(["node.platform.os==linux", "node.id!=1"]));
        let alone = as_json(&super::tests::plan(&["1"]).agents("c:1", &held("token")));
        assert_eq!(alone["TaskTemplate"]["Placement"]["Constraints"][1], "node.id==1");
    }

    #[test]
    fn all_that_is_made_has_the_label_and_the_token_is_in_no_argument() {
        let plan = plan(&["2"]);
        let secret = held("secret-name");
        let specs = [
            plan.controller(Publish::Mesh, &secret),
            plan.agents("c:1", &secret),
            plan.comparison("c:1", &secret, &held("scenario")),
        ];
        for spec in &specs {
            let json = as_json(spec);
            let container = &json["TaskTemplate"]["ContainerSpec"];
            assert_eq!(json["Labels"][LABEL], "0a1b2c");
            assert_eq!(container["Labels"][LABEL], "0a1b2c");
            assert_eq!(container["Secrets"][0]["SecretID"], "id-of-secret-name");
            assert_eq!(container["CapabilityDrop"], json!(["ALL"]));
            let limits = json!([{"Name": "nofile", "Soft": 1000, "Hard": 1000}]);
            assert_eq!(container["Ulimits"], limits, "a limit of 0 is left alone");
        }
        let comparison = as_json(&specs[2]);
        let container = &comparison["TaskTemplate"]["ContainerSpec"];
        let args = container["Args"].to_string();
        assert!(args.contains("--address=10.0.0.1:6881") && args.contains("--repeats=1"), "{args}");
        assert_eq!(container["Configs"][0]["File"]["Name"], "/quick.yaml");
        assert_eq!(container["Mounts"][0]["Source"], Value::Null, "it goes with the container");
    }

    #[test]
    fn each_service_has_the_filter_that_its_programs_need() {
        let mut plan = plan(&["2"]);
        let secret = held("token");
        let of = |spec: &ServiceSpec| {
            as_json(spec)["TaskTemplate"]["ContainerSpec"]["Privileges"]["Seccomp"].clone()
        };
        let ours = of(&plan.agents("c:1", &secret));
        assert_eq!(ours["Mode"], "custom");
        let profile = STANDARD.decode(ours["Profile"].as_str().expect("text")).expect("base64");
        assert!(String::from_utf8(profile).expect("text").contains("SCMP_ACT_ERRNO"));
        plan.has_iperf3 = true;
        assert_eq!(of(&plan.agents("c:1", &secret)), json!({"Mode": "default"}));
        let comparison = of(&plan.comparison("c:1", &secret, &held("scenario")));
        assert_eq!(comparison, json!({"Mode": "unconfined"}));
        // An older engine would refuse a field that it does not know, or ignore it.
        plan.seccomp = false;
        assert_eq!(of(&plan.controller(Publish::Node, &secret)), Value::Null);
    }

    #[test]
    fn the_controller_is_reached_by_the_way_that_its_port_is_published() {
        let mut plan = plan(&["2"]);
        assert_eq!(plan.controller_at(Publish::Mesh, 30001), "127.0.0.1:30001");
        assert_eq!(plan.controller_at(Publish::Node, 30001), "10.0.0.1:30001");
        let port = |plan: &Plan, publish| {
            let spec = as_json(&plan.controller(publish, &held("token")));
            (spec["EndpointSpec"]["Ports"][0].clone(), spec["TaskTemplate"]["Networks"].clone())
        };
        let (mesh, networks) = port(&plan, Publish::Mesh);
        assert_eq!((&mesh["PublishMode"], networks), (&json!("ingress"), Value::Null));
        assert_eq!(mesh["PublishedPort"], Value::Null, "Swarm finds one that is free");
        plan.published_port = Some(7000);
        assert_eq!(port(&plan, Publish::Node).0["PublishedPort"], 7000);
        plan.network = Network::Overlay("load".into());
        let at = plan.controller_at(Publish::Node, 7000);
        assert_eq!(at, "tasks.seedring-bench-0a1b2c-controller:6970");
        let (port, networks) = port(&plan, Publish::Node);
        assert_eq!((&port["PublishMode"], networks), (&json!("host"), json!([{"Target": "load"}])));
        let args = as_json(&plan.comparison("c:1", &held("token"), &held("scenario")));
        assert!(!args.to_string().contains("--address"), "it is the one towards the controller");
    }
}
