//! Owns: what controller, agents, runner and watchers say to one another: a JSON value a line, with
//! the protocol's version and its bounds.
//! Never: decides anything; trusts a length. Flow: socket -> `Lines` -> a message of the speaker's
//! role -> whoever reads.
//!
//! Times are nanoseconds of the clock of the process that is spoken to (`clock.rs`).

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    seeds::{self, Seeded},
    watch::Event,
};
use crate::{
    leech,
    pull::{self, Pulled},
};

/// Of what is said here; another one is refused.
pub const VERSION: u32 = 2;
const HELLO: &str = "seedring-bench";
/// A line of one who has not said the token.
pub const HELLO_BYTES_MAX: usize = 4 << 10;
/// Any other line: the largest has the outcomes of all agents, with their histograms.
pub const LINE_BYTES_MAX: usize = 32 << 20;
/// Parts that torrents and a report's files are sent in.
pub const CHUNK_BYTES: usize = 256 << 10;
pub const TOKEN_BYTES_MAX: usize = 256;
pub const NAME_BYTES_MAX: usize = 64;
/// Who is silent for so long is lost; everyone is asked each second.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A socket that takes nothing for so long is closed.
pub const WRITE_MAX: Duration = Duration::from_secs(10);

/// The first line, from whoever connects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    hello: String,
    version: u32,
    token: String,
    pub role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Agent(Box<AgentInfo>),
    Runner(Place),
    Watcher,
}

/// An agent, as it introduces itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    pub name: String,
    /// The machine it runs on, as the user calls it.
    pub node: String,
    pub place: Place,
    pub cores: usize,
    pub kernel: String,
    #[serde(default)]
    pub cpu: String,
    #[serde(default)]
    pub governor: String,
    #[serde(default)]
    pub mitigations: String,
    /// The interface towards the controller.
    #[serde(default)]
    pub nic: String,
    /// Of the program.
    pub revision: String,
    /// What `iperf3 --version` says, or why it can't be run.
    pub iperf3: Result<String, String>,
    /// Addresses to connect from were given to it, in place of the node's own.
    pub has_sources: bool,
}

/// Where a process is: two of one place reach each other's loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub boot: String,
    pub network: String,
}

/// What one agent, or all of them, are to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// The load, each agent with its part of one crowd.
    Leech {
        options: Box<leech::Options>,
        /// Which of the runner's sets of torrents.
        content: String,
    },
    /// Files over HTTP, connections split.
    Pull(Box<pull::Options>),
    /// Seeders, or mixed peers, each agent with its share of them, until they are told to stop.
    Seed {
        ask: seeds::Ask,
        /// Which of the runner's sets of torrents: one torrent.
        content: String,
    },
    /// One stream, by one agent.
    Iperf3 { target: SocketAddr, seconds: f64, warm_up: f64 },
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fruit {
    Leech(Box<leech::Found>),
    Pull(Pulled),
    /// Of an agent, or of all.
    Seeds(Vec<Seeded>),
    /// What the client says it received.
    Iperf3 {
        mib_per_s: f64,
    },
    /// There was no part for this agent: fewer connections than agents.
    Nothing,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum FromAgent {
    Pong {
        number: u64,
        nanos: u64,
    },
    /// Its connections are there, as far as they can be had.
    Ready {
        task: u64,
        served: usize,
        of: usize,
        /// Where it seeds.
        #[serde(default)]
        addresses: Vec<SocketAddr>,
    },
    Interval {
        task: u64,
        progress: Box<leech::Progress>,
    },
    Done {
        task: u64,
        fruit: Fruit,
    },
    Failed {
        task: u64,
        why: String,
    },
    /// It ends, because it was told to from outside.
    Leaving {
        why: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum ToAgent {
    Welcome,
    Refused {
        why: String,
    },
    Ping {
        number: u64,
    },
    /// Some of a set's torrents, in their order.
    Torrents {
        content: String,
        torrents: Vec<String>,
        is_last: bool,
    },
    Task {
        task: u64,
        part: leech::Part,
        work: Work,
    },
    /// When the window begins, by the agent's clock.
    Window {
        task: u64,
        at: u64,
    },
    /// What was found until now is wanted.
    Stop {
        task: u64,
        why: String,
    },
    End {
        why: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum FromRunner {
    Pong {
        number: u64,
        nanos: u64,
    },
    /// Are all agents there?
    Gather,
    Torrents {
        content: String,
        torrents: Vec<String>,
        is_last: bool,
    },
    /// `label`: target and round, in words.
    Task {
        task: u64,
        label: String,
        work: Work,
    },
    Stop {
        task: u64,
        why: String,
    },
    /// What it says while it runs.
    Line {
        text: String,
    },
    /// What a load came to, with the target's cost; `partial`: and what was wrong.
    Figures {
        label: String,
        text: String,
        partial: Option<String>,
    },
    /// A part of one of the report's files.
    File {
        name: String,
        part: String,
        is_last: bool,
    },
    /// It is over; `why`: and was not as it should be.
    Bye {
        why: Option<String>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum ToRunner {
    Welcome,
    Refused {
        why: String,
    },
    Ping {
        number: u64,
    },
    Gathered {
        agents: Vec<AgentInfo>,
    },
    NotGathered {
        why: String,
    },
    /// `addresses`: of those who seed.
    Window {
        task: u64,
        at: u64,
        addresses: Vec<SocketAddr>,
    },
    Harvest {
        task: u64,
        harvest: Box<Harvest>,
    },
    Failed {
        task: u64,
        why: String,
    },
    /// `task`: the one that it had a part in.
    AgentLost {
        text: String,
        task: Option<u64>,
    },
}

/// What all agents found, and each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Harvest {
    pub fruit: Fruit,
    /// Agents that were lost on the way, and why.
    pub lost: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum ToWatcher {
    Welcome,
    Refused { why: String },
    Ping { number: u64 },
    Happened { event: Event },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum FromWatcher {
    Pong { number: u64, nanos: u64 },
}

impl Hello {
    pub fn new(token: &str, role: Role) -> Hello {
        Hello { hello: HELLO.into(), version: VERSION, token: token.to_owned(), role }
    }

    /// Whoever it is: a line that is one of ours, of this version, with this token. The reasons are
    /// for the one who is refused: they do not say the token.
    pub fn read(line: &[u8], token: &str) -> Result<Hello> {
        #[derive(Deserialize)]
        struct Outline {
            hello: String,
            version: u32,
        }
        let outline: Outline = serde_json::from_slice(line)
            .ok()
            .filter(|outline: &Outline| outline.hello == HELLO)
            .context("this is a controller of seedring-bench: the first line is its hello")?;
        ensure!(
            outline.version == VERSION,
            "protocol version {} met a controller of version {VERSION}: use the same \
             seedring-bench everywhere",
            outline.version
        );
        let hello: Hello = serde_json::from_slice(line).context("the hello")?;
        ensure!(
            is_equal(hello.token.as_bytes(), token.as_bytes()),
            "wrong token: it is the controller's --token"
        );
        if let Role::Agent(agent) = &hello.role {
            check_name("an agent's name", &agent.name)?;
            check_name("an agent's node", &agent.node)?;
        }
        Ok(hello)
    }
}

/// Names stand in tables and on terminals.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-:@/".contains(letter);
    ensure!(
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits),
        "{what} is 1 to {NAME_BYTES_MAX} of letters, digits and . _ - : @ /, not {name:?}"
    );
    Ok(())
}

/// In a time that does not depend on where they differ.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let differ = one.iter().zip(other).fold(0, |all, (one, other)| all | (one ^ other));
    one.len() == other.len() && differ == 0
}

/// Lines of a socket, each with a bound.
pub struct Lines<R> {
    source: R,
    bytes: Vec<u8>,
    /// Up to here there is no end of a line.
    looked: usize,
    pub most: usize,
}

impl<R: Read> Lines<R> {
    pub fn new(source: R, most: usize) -> Self {
        Lines { source, bytes: Vec::new(), looked: 0, most }
    }

    /// The next one without its end. `None`: the other side closed between two lines.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes[self.looked..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=self.looked + end).collect();
                line.pop();
                self.looked = 0;
                ensure!(line.len() <= self.most, "a line of more than {} bytes", self.most);
                return Ok(Some(line));
            }
            self.looked = self.bytes.len();
            ensure!(self.bytes.len() <= self.most, "a line of more than {} bytes", self.most);
            let mut more = [0; 64 << 10];
            match self.source.read(&mut more) {
                Ok(0) if self.bytes.is_empty() => return Ok(None),
                Ok(0) => bail!("the connection ended within a line"),
                Ok(count) => self.bytes.extend_from_slice(&more[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading"),
            }
        }
    }

    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(line) = self.next_line()? else { return Ok(None) };
        parse(&line).map(Some)
    }
}

pub fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    serde_json::from_slice(line).with_context(|| {
        let start = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        format!("not a message of this protocol: {start:?}")
    })
}

pub fn line_of<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).context("a message as JSON")?;
    ensure!(line.len() <= LINE_BYTES_MAX, "a message of {} bytes is too long", line.len());
    line.push(b'\n');
    Ok(line)
}

pub fn send<T: Serialize>(stream: &TcpStream, message: &T) -> Result<()> {
    let mut stream = stream;
    stream.write_all(&line_of(message)?).context("writing")
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes();
    ensure!(digits.len().is_multiple_of(2), "hexadecimal digits come in pairs");
    let value = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs
        .map(|[high, low]| Some(value(*high)? << 4 | value(*low)?))
        .collect::<Option<Vec<u8>>>()
        .context("no hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in small pieces.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(room.len());
            room[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        for piece in [1, 2, 3, 7, 100] {
            let mut lines = Lines::new(Slow(b"one\n\ntwo three\nend", piece), 16);
            let mut next = || lines.next_line();
            assert_eq!(next().expect("whole"), Some(b"one".to_vec()));
            assert_eq!(next().expect("empty"), Some(Vec::new()));
            assert_eq!(next().expect("whole"), Some(b"two three".to_vec()));
            let cut = next().expect_err("no end");
            assert!(cut.to_string().contains("within a line"), "{cut}");
        }
        assert_eq!(Lines::new(&b""[..], 16).next_line().expect("closed"), None);
    }

    #[test]
    fn a_line_has_a_bound_whether_it_ends_or_not() {
        for text in [&[b'x'; 17][..], b"xxxxxxxxxxxxxxxxx\n"] {
            for piece in [1, 5, 100] {
                let wrong = Lines::new(Slow(text, piece), 16).next_line().expect_err("too long");
                assert!(wrong.to_string().contains("more than 16 bytes"), "{wrong}");
            }
        }
        let endless = Lines::new(io::repeat(b'['), HELLO_BYTES_MAX).next_line();
        assert!(endless.is_err(), "it stops by itself");
    }

    #[test]
    fn a_hello_is_refused_with_its_reason() {
        let good = line_of(&Hello::new("abcdefgh", Role::Watcher)).expect("a line");
        assert!(Hello::read(&good, "abcdefgh").is_ok());
        let refused = |line: &[u8]| format!("{:#}", Hello::read(line, "abcdefgh").expect_err("no"));
        let text = String::from_utf8(good).expect("text");
        let token = refused(text.replace("abcdefgh", "abcdefgi").as_bytes());
        assert!(token.contains("wrong token") && !token.contains("abcdefgh"), "{token}");
        assert!(refused(text.replace("abcdefgh", "abc").as_bytes()).contains("wrong token"));
        let own = format!("\"version\":{VERSION}");
        let version = refused(text.replace(&own, "\"version\":7").as_bytes());
        assert!(version.contains("version 7") && version.contains("same seedring-bench"));
        // Another version may have another form: it is still told which it is.
        let other = refused(br#"{"hello":"seedring-bench","version":8,"more":[]}"#);
        assert!(other.contains("version 8"), "{other}");
        for line in ["", "GET / HTTP/1.1", "{}", "[[[[", "{\"hello\":\"x\",\"version\":1}", "\0"] {
            assert!(refused(line.as_bytes()).contains("its hello"), "{line}");
        }
        let deep = "[".repeat(4000);
        assert!(refused(deep.as_bytes()).contains("its hello"));
        let mut agent = AgentInfo {
            name: "a|b".into(),
            node: "n".into(),
            place: Place::default(),
            cores: 1,
            kernel: String::new(),
            cpu: String::new(),
            governor: String::new(),
            mitigations: String::new(),
            nic: String::new(),
            revision: String::new(),
            iperf3: Err("no".into()),
            has_sources: false,
        };
        let line =
            line_of(&Hello::new("abcdefgh", Role::Agent(Box::new(agent.clone())))).expect("a line");
        assert!(refused(&line).contains("an agent's name"));
        agent.name = "a.b-1".into();
        let line = line_of(&Hello::new("abcdefgh", Role::Agent(Box::new(agent)))).expect("a line");
        assert!(Hello::read(&line, "abcdefgh").is_ok());
    }

    #[test]
    fn hostile_messages_are_errors() {
        for line in [
            &b""[..],
            b"{\"is\":\"pong\"}",
            b"{\"is\":\"pong\",\"number\":-1,\"nanos\":0}",
            b"{\"is\":\"pong\",\"number\":1e99,\"nanos\":0}",
            b"{\"is\":\"rm\"}",
            b"{\"is\":\"failed\",\"task\":1,\"why\":\"\xff\"}",
            b"null",
            b"{\"is\":\"interval\",\"task\":1,\"progress\":{}}",
        ] {
            let wrong = parse::<FromAgent>(line).expect_err("not ours");
            assert!(wrong.to_string().contains("not a message"), "{wrong}");
        }
        assert!(parse::<FromRunner>("[".repeat(100_000).as_bytes()).is_err(), "no deep recursion");
    }

    #[test]
    fn hexadecimal_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)).expect("ours"), bytes);
        for text in ["a", "0g", "\u{e9}", "  "] {
            assert!(from_hex(text).is_err(), "{text}");
        }
    }
}
