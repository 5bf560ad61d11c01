//! Owns: the sections that the file and the engine share as they are: doc, default and range of
//! each.
//! Never: paths and torrents, which need resolving; reading YAML.
//! Flow: `tree` deserialises them, the schema documents them, the engine reads them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units::{ByteSize, CountLimit, Period, Rate};

/// Memory that the engine may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Memory {
    /// The block cache: a size, or `auto` for half of the available memory (or of the cgroup's
    /// limit, where that is less). Taken at start, pinned, shared by all torrents. At least 16MiB.
    pub cache: CacheSize,
}

/// Limits of the whole engine. Each torrent's own limits hold within these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Payload sent to all peers together.
    pub upload: Rate,
    /// Payload asked of all peers together.
    pub download: Rate,
    /// Connections to peers, of all torrents together.
    #[schemars(range(min = 1, max = 1000000))]
    pub connections: u32,
    /// Connections of one torrent, unless that torrent says otherwise.
    #[schemars(range(min = 1, max = 1000000))]
    pub connections_per_torrent: u32,
    /// Connections of one torrent to one address, those that it opened included, or unlimited.
    /// Holds for addresses of the internet: behind one of a local network may be a router or a
    /// proxy, and with it everybody.
    pub connections_per_ip: CountLimit,
    /// Peers served at the same time, of all torrents together; the others wait their turn (choke).
    pub upload_slots: CountLimit,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            upload: Rate::UNLIMITED,
            download: Rate::UNLIMITED,
            connections: 2000,
            connections_per_torrent: 500,
            connections_per_ip: CountLimit(Some(10)),
            upload_slots: CountLimit(None),
        }
    }
}

/// When the engine stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Timeouts {
    /// From accept, or from the moment a dialled peer answers, to a complete handshake.
    #[schemars(extend("x-least" = "1s", "x-most" = "2m"))]
    pub handshake: Period,
    /// An open connection on which no message arrives; peers send a keep-alive each two minutes.
    #[schemars(extend("x-least" = "30s", "x-most" = "1h"))]
    pub idle: Period,
    /// Dialling a peer, until it answers.
    #[schemars(extend("x-least" = "1s", "x-most" = "2m"))]
    pub connect: Period,
    /// At a stop: telling trackers, finishing what is being sent.
    #[schemars(extend("x-least" = "0s", "x-most" = "5m"))]
    pub shutdown: Period,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            handshake: Period::from_secs(10),
            idle: Period::from_secs(180),
            connect: Period::from_secs(15),
            shutdown: Period::from_secs(10),
        }
    }
}

/// How trackers are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrackerClient {
    /// Peers asked for in an announce. 0: none, only be known. A seed needs few: leeches dial it.
    #[schemars(range(min = 0, max = 1000))]
    pub numwant: u32,
    /// Announces under way at one tracker host at the same time.
    #[schemars(range(min = 1, max = 256))]
    pub concurrent_per_host: u32,
    /// One announce, connecting and answer together.
    #[schemars(extend("x-least" = "1s", "x-most" = "5m"))]
    pub timeout: Period,
    /// What trackers see as the client, in the User-Agent header.
    pub user_agent: String,
}

impl Default for TrackerClient {
    fn default() -> TrackerClient {
        TrackerClient {
            numwant: 50,
            concurrent_per_host: 8,
            timeout: Period::from_secs(30),
            user_agent: concat!("seedring/", env!("CARGO_PKG_VERSION")).to_string(),
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// The least important lines still logged.
    pub level: LogLevel,
    /// Lines for people, or one JSON object a line.
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Which way to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoBackend {
    #[default]
    Auto,
    Uring,
    Epoll,
}

/// The engine's choice, or the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    #[default]
    Auto,
    On,
    Off,
}

/// What is hashed before it is uploaded.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Everything, when the torrent is added and whenever a file changed.
    Full,
    /// Sizes when it is added, then each piece before its first upload.
    #[default]
    Quick,
    /// Sizes only. Bytes that went bad are sent as they are.
    Trust,
}

/// What of a downloaded file's space is taken when the file is made.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Preallocate {
    /// None; the same as sparse.
    None,
    /// None: the file has its length, and takes space as bytes come.
    #[default]
    Sparse,
    /// All of it, so that a later write does not fail for lack of space.
    Full,
}

/// `auto`, or how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shards {
    /// One for each core that the process may run on.
    #[default]
    Auto,
    /// 1 to 254.
    Count(u16),
}

/// `auto`, or how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CacheSize {
    /// Half of what is available.
    #[default]
    Auto,
    /// At least [`CacheSize::MIN_BYTES`].
    Bytes(u64),
}

impl CacheSize {
    pub const MIN_BYTES: u64 = 16 << 20;
}

impl Shards {
    /// A piece that is downloaded names its shard in a byte.
    pub const MAX: u16 = 254;
}

impl Serialize for Shards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Shards::Auto => serializer.serialize_str("auto"),
            Shards::Count(count) => serializer.serialize_u16(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shards, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(Shards::Auto);
        }
        match text.parse::<u16>() {
            Ok(count) if (1..=Shards::MAX).contains(&count) => Ok(Shards::Count(count)),
            _ => Err(de::Error::custom(format!(
                "expected auto or a number of shards from 1 to {}, found \"{text}\"",
                Shards::MAX
            ))),
        }
    }
}

impl JsonSchema for Shards {
    fn schema_name() -> Cow<'static, str> {
        "Shards".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "auto" },
                { "type": "integer", "minimum": 1, "maximum": Shards::MAX }
            ]
        })
    }
}

impl Serialize for CacheSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            CacheSize::Auto => serializer.serialize_str("auto"),
            CacheSize::Bytes(bytes) => ByteSize(*bytes).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for CacheSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CacheSize, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "auto" {
            return Ok(CacheSize::Auto);
        }
        let ByteSize(bytes) = text.parse().map_err(de::Error::custom)?;
        if bytes < CacheSize::MIN_BYTES {
            return Err(de::Error::custom(format!(
                "a cache of {} is too small to work with; at least {}, or auto",
                ByteSize(bytes),
                ByteSize(CacheSize::MIN_BYTES)
            )));
        }
        Ok(CacheSize::Bytes(bytes))
    }
}

impl JsonSchema for CacheSize {
    fn schema_name() -> Cow<'static, str> {
        "CacheSize".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let size = generator.subschema_for::<ByteSize>();
        json_schema!({ "anyOf": [{ "const": "auto" }, size] })
    }
}
