//! Owns: `seedring-bench swarm`: a scenario whose target and agents are spread over a Docker Swarm.
//! Never: measures (the comparison does, in a container of its own), leaves anything behind.
//! Flow: scenario checked -> engine, nodes, images looked at -> a plan -> `run.rs`.
//!
//! The only part of this program that is asynchronous: the Engine API's client is.

mod engine;
mod made;
mod nodes;
mod run;
mod show;
mod spec;
mod tasks;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::ListNodesOptions;

use crate::{environment::git_revision, scenario};
use engine::{Engine, Seccomp};
use made::Whose;
use run::{Ended, Told};
use spec::{Network, Plan, Publish};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Run a scenario: its targets on one node, its load from agents on the others.
    Run(Box<Options>),
    /// Remove what runs left behind that were killed. Runs that still go on end with it.
    Clean(Clean),
}

#[derive(clap::Args)]
pub struct Options {
    /// The scenario, a YAML file such as bench/scenarios/quick.yaml.
    scenario: PathBuf,
    #[command(flatten)]
    daemon: Daemon,
    /// Of controller and agents: made by `docker/build bench`, or `rivals` for one with iperf3.
    #[arg(long, default_value = "seedring-bench:latest")]
    image: String,
    /// Of the comparison, with the targets in it; by default the same.
    #[arg(long)]
    target_image: Option<String>,
    /// So many agents, spread over the nodes that are not the target's; over that one where it is
    /// alone.
    #[arg(long, default_value_t = 4)]
    agents: usize,
    /// One agent on each of these nodes.
    #[arg(long, conflicts_with = "agents")]
    agents_per_node: bool,
    /// Where the targets run, by name or ID; this manager unless it takes no tasks.
    #[arg(long)]
    target_node: Option<String>,
    /// What the load goes over: `host`, the nodes' own network; `overlay`, one that is made
    /// for this run; or an overlay network's name.
    #[arg(long, default_value = "host")]
    network: String,
    /// Where agents reach the target's node on its own network, if not at the address that Swarm
    /// knows.
    #[arg(long)]
    target_address: Option<String>,
    /// The port that targets listen at there.
    #[arg(long, default_value_t = 6881)]
    port: u16,
    /// How agents reach the controller: over the routing mesh, or at its node's address; by default
    /// the mesh where it works.
    #[arg(long, value_enum, default_value = "auto")]
    control: Control,
    /// The controller's published port; by default one that Swarm finds.
    #[arg(long)]
    control_port: Option<u16>,
    /// Cores of agents beside the target, such as 1 or 2-3; by default all but the first.
    #[arg(long)]
    agent_cores: Option<String>,
    /// A volume on the target's node that keeps the content for the next run; by default it is made
    /// anew, and goes with the run.
    #[arg(long)]
    content_volume: Option<String>,
    /// Open files of each container; 0 leaves the engine's limit.
    #[arg(long, default_value_t = 131_072)]
    nofile: i64,
    /// Locked memory of each container, in bytes; -1: any amount, 0 leaves the engine's limit.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    memlock: i64,
    /// Repeats, in place of the scenario's.
    #[arg(long)]
    repeats: Option<usize>,
    /// Where the report goes.
    #[arg(long, default_value = "var/bench")]
    out: PathBuf,
    /// Only look at scenario, engine, nodes and images, and say what would be done.
    #[arg(long)]
    check: bool,
}

#[derive(clap::Args)]
pub struct Clean {
    #[command(flatten)]
    daemon: Daemon,
    /// Only what this run made, by the name that it printed.
    #[arg(long)]
    run: Option<String>,
    /// Only say whose there is something.
    #[arg(long)]
    list: bool,
}

#[derive(clap::Args)]
struct Daemon {
    /// A Swarm manager's Docker, as unix://PATH or tcp://HOST:PORT; by default DOCKER_HOST, then
    /// the usual socket.
    #[arg(long)]
    host: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Control {
    Auto,
    Mesh,
    Node,
}

pub fn run(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Run(options) => run_scenario(&options).await,
            Command::Clean(options) => clean(&options).await,
        }
    });
    // A thread may sit in a read of the controller's: it ends with the process.
    runtime.shutdown_background();
    code
}

async fn run_scenario(options: &Options) -> Result<ExitCode> {
    ensure!((1..=1000).contains(&options.agents), "--agents is a number from 1 to 1000");
    let scenario = scenario::checked(&options.scenario)?;
    let engine = Engine::connect(options.daemon.host.as_deref()).await?;
    let nodes = engine.docker.list_nodes(None::<ListNodesOptions>).await;
    let nodes = nodes.context("docker node ls")?;
    let choice = nodes::choose(&nodes, &engine.node_id, options.target_node.as_deref())?;
    let plan = plan(options, &engine, &scenario, choice).await?;
    say(options, &engine, &plan);
    if options.check {
        return Ok(ExitCode::SUCCESS);
    }
    let told = Told {
        scenario: scenario.text,
        token: random_hex(16)?,
        out: options.out.clone(),
        ways: match options.control {
            Control::Auto => vec![Publish::Mesh, Publish::Node],
            Control::Mesh => vec![Publish::Mesh],
            Control::Node => vec![Publish::Node],
        },
        image: options.image.clone(),
        target_image: target_image(options).to_owned(),
        makes_network: options.network == "overlay",
    };
    let ended = run::run(&engine, &plan, &told, nodes::names(&nodes)).await?;
    Ok(report(&ended))
}

fn target_image(options: &Options) -> &str {
    options.target_image.as_deref().unwrap_or(&options.image)
}

async fn plan(
    options: &Options,
    engine: &Engine,
    scenario: &scenario::Checked,
    mut choice: nodes::Choice,
) -> Result<Plan> {
    if choice.controller.id == engine.node_id && !engine.node_address.is_empty() {
        choice.controller.address = engine.node_address.clone();
    }
    let run = random_hex(4)?;
    let network = match options.network.as_str() {
        "host" => Network::Host,
        "overlay" => Network::Overlay(format!("seedring-bench-{run}-load")),
        name => Network::Overlay(engine.overlay(name).await?),
    };
    let alone = choice.is_one_node();
    let target = &choice.target;
    let target_address = match &options.target_address {
        Some(address) => address.clone(),
        None if alone => "127.0.0.1".into(),
        None if target.id == engine.node_id => engine.node_address.clone(),
        None => target.address.clone(),
    };
    ensure!(
        network != Network::Host || target_address.parse::<std::net::IpAddr>().is_ok(),
        "the target's node has no address that others reach ({target_address:?}): give one with \
         --target-address"
    );
    let cores = target.cores;
    let others = (alone && cores > 1).then(|| match cores {
        2 => "1".to_owned(),
        _ => format!("1-{}", cores - 1),
    });
    let agents = if options.agents_per_node { choice.agents.len() } else { options.agents };
    Ok(Plan {
        run,
        network,
        agents,
        per_node: options.agents_per_node,
        jobs: engine.has_reliable_jobs(),
        image: engine.pinned_image(&options.image).await?,
        target_image: engine.pinned_image(target_image(options)).await?,
        scenario: file_name(&options.scenario)?,
        target_address,
        target_port: options.port,
        more: options.repeats.map(|repeats| format!("--repeats={repeats}")).into_iter().collect(),
        agent_cores: options.agent_cores.clone().or(others),
        content: options.content_volume.clone(),
        seccomp: engine.seccomp() == Seccomp::Service,
        has_iperf3: scenario.has_iperf3,
        nofile: options.nofile,
        memlock: options.memlock,
        published_port: options.control_port,
        revision: git_revision(),
        choice,
    })
}

/// It names the report.
fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    let fits = |name: &&str| {
        name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
    };
    let name = name.filter(fits).with_context(|| {
        format!("{}: a scenario's file has a name of letters, digits, . _ and -", path.display())
    })?;
    Ok(name.to_owned())
}

/// What will be, before it is.
fn say(options: &Options, engine: &Engine, plan: &Plan) {
    let nodes: Vec<&str> = plan.choice.agents.iter().map(|place| place.name.as_str()).collect();
    let network = match &plan.network {
        Network::Host => format!("{}, port {}", plan.target_address, plan.target_port),
        Network::Overlay(name) => format!("the network {name}"),
    };
    eprintln!(
        "run {}: targets on {} ({network}), {} agents on {}; Engine API {}, {}",
        plan.run,
        plan.choice.target.name,
        plan.agents,
        nodes.join(", "),
        engine.api,
        if plan.jobs { "jobs" } else { "services that are not restarted" },
    );
    match engine.seccomp() {
        Seccomp::Service => eprintln!(
            "seccomp: the controller{} our profile, the comparison none",
            if plan.has_iperf3 { " has" } else { " and the agents have" }
        ),
        Seccomp::Node(words) => eprintln!("seccomp: {words}"),
    }
    if plan.choice.is_one_node() && !options.check {
        eprintln!(
            "one node alone: the load takes its cores {}",
            match &plan.agent_cores {
                Some(cores) => cores,
                None => "beside the target",
            }
        );
    }
}

fn report(ended: &Ended) -> ExitCode {
    if let Some(text) = &ended.text {
        print!("{text}");
    }
    for path in &ended.files {
        eprintln!("wrote {}", path.display());
    }
    if let Some(why) = &ended.failed {
        eprintln!("seedring-bench: {why}");
    }
    if ended.interrupted {
        // What shells say of a program that Ctrl-C ended.
        return ExitCode::from(130);
    }
    if ended.failed.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn clean(options: &Clean) -> Result<ExitCode> {
    let engine = Engine::connect(options.daemon.host.as_deref()).await?;
    let runs = made::runs(&engine.docker).await?;
    let whose = match &options.run {
        Some(run) => Whose::Run(run.clone()),
        None => Whose::Everyone,
    };
    let meant = runs.iter().filter(|run| options.run.as_ref().is_none_or(|name| name == *run));
    let meant: Vec<&str> = meant.map(String::as_str).collect();
    if meant.is_empty() {
        println!("nothing is left of {}", options.run.as_deref().unwrap_or("any run"));
        return Ok(ExitCode::SUCCESS);
    }
    if options.list {
        meant.iter().for_each(|run| println!("{run}"));
        return Ok(ExitCode::SUCCESS);
    }
    made::remove(&engine.docker, &whose).await?;
    println!("removed what was left of {}", meant.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random));
    read.context("/dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
