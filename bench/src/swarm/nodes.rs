//! Owns: which of a Swarm's nodes the target and the agents run on.
//! Never: asks the engine. Flow: its list of nodes -> `choose` -> constraints of services.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use bollard::models::{Node, NodeSpecAvailabilityEnum, NodeState};

/// A node that takes tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub id: String,
    pub name: String,
    /// Where other nodes reach it.
    pub address: String,
    pub cores: usize,
}

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub target: Place,
    /// The controller: this manager, or the target's node where this one takes no tasks.
    pub controller: Place,
    /// Those that agents are spread over.
    pub agents: Vec<Place>,
}

impl Choice {
    /// Nothing leaves the machine: loopback is the network.
    pub fn is_one_node(&self) -> bool {
        self.agents.iter().all(|place| place.id == self.target.id)
    }
}

/// `wanted`: the target's node by name or ID; left out, the manager that is asked (`here`), or the
/// first that takes tasks.
pub fn choose(nodes: &[Node], here: &str, wanted: Option<&str>) -> Result<Choice> {
    let mut places = Vec::new();
    let mut others = Vec::new();
    for node in nodes {
        match usable(node) {
            Ok(place) => places.push(place),
            Err(why) => others.push(why),
        }
    }
    let aside = || {
        if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) }
    };
    places.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    let of_id = |id: &str| places.iter().find(|place| place.id == id);
    let target = match wanted {
        Some(wanted) => named(&places, wanted).with_context(|| {
            let there: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
            format!(
                "--target-node {wanted}: nodes that take tasks are {}{}",
                there.join(", "),
                aside()
            )
        })?,
        None => of_id(here).or(places.first()).with_context(|| {
            format!("no node takes tasks{}: `docker node update --availability active`", aside())
        })?,
    };
    let controller = of_id(here).unwrap_or(target);
    let mut agents: Vec<Place> =
        places.iter().filter(|place| place.id != target.id).cloned().collect();
    if agents.is_empty() {
        agents.push(target.clone());
    }
    Ok(Choice { target: target.clone(), controller: controller.clone(), agents })
}

/// By ID, the start of one, or a name that no other node has.
fn named<'a>(places: &'a [Place], wanted: &str) -> Result<&'a Place> {
    ensure!(!wanted.is_empty(), "an empty name");
    let is_meant = |place: &&Place| place.name == wanted || place.id.starts_with(wanted);
    let found: Vec<&Place> = places.iter().filter(is_meant).collect();
    match found[..] {
        [] => bail!("there is none of that name"),
        [one] => Ok(one),
        _ => bail!("{} nodes are called so: name one by its ID (`docker node ls`)", found.len()),
    }
}

/// Or why it takes no tasks.
fn usable(node: &Node) -> Result<Place, String> {
    let description = node.description.as_ref();
    let id = node.id.clone().unwrap_or_default();
    let name = description.and_then(|it| it.hostname.clone()).unwrap_or_else(|| id.clone());
    let status = node.status.as_ref();
    let state = status.and_then(|status| status.state);
    if state != Some(NodeState::READY) {
        let state = state.map_or("unknown".to_owned(), |state| state.to_string());
        return Err(format!("{name} is {state}"));
    }
    let availability = node.spec.as_ref().and_then(|spec| spec.availability);
    match availability {
        Some(NodeSpecAvailabilityEnum::ACTIVE) | None => {}
        Some(other) => return Err(format!("{name}'s availability is {other}")),
    }
    let platform = description.and_then(|it| it.platform.as_ref());
    let system = platform.and_then(|platform| platform.os.as_deref()).unwrap_or("linux");
    if system != "linux" {
        return Err(format!("{name} runs {system}"));
    }
    let nano_cpus = description
        .and_then(|it| it.resources.as_ref())
        .and_then(|resources| resources.nano_cpus)
        .unwrap_or(0);
    Ok(Place {
        id,
        name,
        address: address(node),
        cores: usize::try_from(nano_cpus / 1_000_000_000).unwrap_or(0),
    })
}

/// A manager's own entry may hold no address that others can use: then the one it manages at.
fn address(node: &Node) -> String {
    let own = node.status.as_ref().and_then(|status| status.addr.clone()).unwrap_or_default();
    if !own.is_empty() && own != "0.0.0.0" {
        return own;
    }
    let manager = node.manager_status.as_ref().and_then(|status| status.addr.as_deref());
    let host = manager.and_then(|addr| addr.rsplit_once(':')).map(|(host, _)| host);
    host.map(|host| host.trim_matches(['[', ']']).to_owned()).unwrap_or(own)
}

/// Names by ID, of all nodes.
pub fn names(nodes: &[Node]) -> HashMap<String, String> {
    let named = nodes
        .iter()
        .filter_map(|node| Some((node.id.clone()?, node.description.as_ref()?.hostname.clone()?)));
    named.collect()
}

#[cfg(test)]
mod tests {
    use bollard::models::{ManagerStatus, NodeDescription, NodeSpec, NodeStatus, ResourceObject};

    use super::*;

    fn node(id: &str, name: &str, state: NodeState, takes: NodeSpecAvailabilityEnum) -> Node {
        Node {
            id: Some(id.into()),
            spec: Some(NodeSpec { availability: Some(takes), ..NodeSpec::default() }),
            description: Some(NodeDescription {
                hostname: Some(name.into()),
                resources: Some(ResourceObject {
                    nano_cpus: Some(2_000_000_000),
                    ..ResourceObject::default()
                }),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus {
                state: Some(state),
                addr: Some(format!("10.0.0.{id}")),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    fn three() -> Vec<Node> {
        use NodeSpecAvailabilityEnum::ACTIVE;
        ["1", "2", "3"].map(|id| node(id, &format!("node{id}"), NodeState::READY, ACTIVE)).to_vec()
    }

    fn names_of(places: &[Place]) -> Vec<&str> {
        places.iter().map(|place| place.name.as_str()).collect()
    }

    #[test]
    fn the_target_is_here_and_agents_are_elsewhere() {
        let choice = choose(&three(), "2", None).expect("chosen");
        assert_eq!((choice.target.name.as_str(), choice.target.cores), ("node2", 2));
        assert_eq!(names_of(&choice.agents), ["node1", "node3"]);
        assert!(!choice.is_one_node());
        let other = choose(&three(), "2", Some("node3")).expect("chosen");
        assert_eq!((other.target.id.as_str(), other.controller.id.as_str()), ("3", "2"));
        let alone = choose(&three()[..1], "1", None).expect("chosen");
        assert!(alone.is_one_node());
        assert_eq!(names_of(&alone.agents), ["node1"]);
    }

    #[test]
    fn who_takes_no_tasks_is_left_out_and_named() {
        let mut nodes = three();
        nodes[0] = node("1", "node1", NodeState::DOWN, NodeSpecAvailabilityEnum::ACTIVE);
        nodes[1] = node("2", "node2", NodeState::READY, NodeSpecAvailabilityEnum::DRAIN);
        let choice = choose(&nodes, "2", None).expect("the third is left");
        assert_eq!((choice.target.id.as_str(), choice.controller.id.as_str()), ("3", "3"));
        let wrong = format!("{:#}", choose(&nodes, "2", Some("node1")).expect_err("down"));
        assert!(wrong.contains("node1 is down") && wrong.contains("are node3"), "{wrong}");
        let none = format!("{:#}", choose(&nodes[..2], "2", None).expect_err("nobody"));
        assert!(none.contains("availability is drain") && none.contains("docker node"), "{none}");
    }

    #[test]
    fn a_name_of_two_nodes_is_no_name() {
        use NodeSpecAvailabilityEnum::ACTIVE;
        let nodes = ["15", "25"].map(|id| node(id, "same", NodeState::READY, ACTIVE));
        let wrong = format!("{:#}", choose(&nodes, "15", Some("same")).expect_err("which?"));
        assert!(wrong.contains("by its ID"), "{wrong}");
        assert_eq!(choose(&nodes, "15", Some("2")).expect("the start of an ID").target.id, "25");
    }

    #[test]
    fn a_manager_may_have_its_address_elsewhere() {
        let mut manager = three().remove(0);
        if let Some(status) = &mut manager.status {
            status.addr = Some("0.0.0.0".into());
        }
        manager.manager_status =
            Some(ManagerStatus { addr: Some("[fd00::7]:2377".into()), ..ManagerStatus::default() });
        assert_eq!(address(&manager), "fd00::7");
    }
}
