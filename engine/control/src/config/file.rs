//! Owns: the shape of the configuration file: its keys, their docs and defaults.
//! Never: relations between keys, paths made absolute; that is `resolve`.
//! Flow: `read` fills it; the schema and the commented reference are made from its docs.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::diagnostic::did_you_mean;
use super::model::TrackerRef;
use super::sections::{
    IoBackend, Limits, Log, Memory, Preallocate, Shards, Switch, Timeouts, TrackerClient, Verify,
};
use super::units::{ByteSize, CountLimit, Period, Rate};

/// The configuration of seedring.
///
/// Values may hold `${VAR}` and `${VAR:-default}`, taken from the environment, and `${file:/PATH}`,
/// what a file holds (a secret); `$${` stands for `${`. Relative paths are resolved against the
/// working directory of the command, or `base_dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "seedring")]
pub struct ConfigFile {
    /// Where identity, totals and what was verified are kept. One engine at a time uses it.
    pub state_dir: String,
    /// What relative paths in this file start from, instead of the working directory.
    pub base_dir: Option<String>,
    /// The Unix socket that `seedring list` and the other commands speak to. Left out: what
    /// SEEDRING_CONTROL_SOCKET says in the environment, or control.sock in state_dir.
    pub control_socket: Option<String>,
    /// Where peers connect: addresses with ports, IPv4 and IPv6. Port 0 lets the kernel choose.
    pub listen: List<Listen>,
    /// What trackers and peers are told, where it differs from what they see (port forwarding).
    pub announce: AnnounceFile,
    /// Threads of the data plane: a number, or auto for one a core.
    pub shards: Shards,
    /// Whether each shard stays on its core. auto: where there is a core for each.
    pub pin: Switch,
    /// The way to the kernel. Where io_uring is forbidden, auto goes on with epoll, for more CPU,
    /// and uring ends the start.
    pub io: IoBackend,
    /// Sending without copying. auto: off on loopback, on elsewhere as long as the kernel keeps to
    /// it.
    pub zero_copy: Switch,
    /// Reading content past the page cache, into the engine's own. auto: where the file system can,
    /// but what lies in the page cache already is verified there. on: it is read from the device.
    pub direct_io: Switch,
    pub memory: Memory,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Whether peers of a torrent tell each other of peers (PEX, BEP 11). Those of private torrents
    /// never do.
    pub pex: bool,
    /// The embedded tracker. Leave it out for none.
    pub tracker: Option<TrackerFile>,
    pub tracker_client: TrackerClient,
    pub downloads: DownloadsFile,
    pub log: Log,
    /// What to seed: folders and files for which the engine makes the torrent, and .torrent files.
    pub torrents: Vec<TorrentEntry>,
}

impl Default for ConfigFile {
    fn default() -> ConfigFile {
        ConfigFile {
            state_dir: "var/seedring".to_string(),
            base_dir: None,
            control_socket: None,
            listen: List(vec![
                Listen(SocketAddr::from(([0; 4], 6881))),
                Listen(SocketAddr::from(([0; 16], 6881))),
            ]),
            announce: AnnounceFile::default(),
            shards: Shards::Auto,
            pin: Switch::Auto,
            io: IoBackend::Auto,
            zero_copy: Switch::Auto,
            direct_io: Switch::Auto,
            memory: Memory::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            pex: true,
            tracker: None,
            tracker_client: TrackerClient::default(),
            downloads: DownloadsFile::default(),
            log: Log::default(),
            torrents: Vec::new(),
        }
    }
}

/// What trackers are told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AnnounceFile {
    /// The public address, or one of each family. Left out: what the tracker sees.
    pub address: List<Address>,
    /// The public port. Left out: the one listened on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// The embedded tracker (HTTP, BEP 3, 7, 23 and 48).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrackerFile {
    /// Where it listens; such as 127.0.0.1:6969.
    pub listen: List<Listen>,
    /// How long clients wait between announces.
    #[schemars(extend("x-least" = "10s", "x-most" = "1d"))]
    pub interval: Period,
    /// The announce URL that goes into torrents. Left out: made from the first address of listen.
    pub url: Option<TrackerUrl>,
}

impl Default for TrackerFile {
    fn default() -> TrackerFile {
        TrackerFile { listen: List(Vec::new()), interval: Period::from_secs(120), url: None }
    }
}

/// How downloads are kept on disk. An entry may say it for its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DownloadsFile {
    /// What of a file's space is taken when it is made: none or sparse (as bytes come), or full
    /// (all of it at once).
    pub preallocate: Preallocate,
    /// Where downloads lie until they are complete. Left out: in their own folder.
    pub incomplete_folder: Option<String>,
    /// What the names of files end with until the torrent is complete; such as .part.
    pub incomplete_suffix: Option<String>,
    /// Where they lie from then on. Left out: in their own folder.
    pub move_completed_to: Option<String>,
}

/// One of `folder`, `files` and `magnet`, and what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TorrentEntry {
    /// A folder, or one file, for which the engine makes the torrent itself.
    pub folder: Option<String>,
    /// Existing .torrent files: a path, a glob, or a list of them. `**` goes down through folders.
    pub files: List<String>,
    /// A magnet link of a torrent to download.
    pub magnet: Option<String>,
    /// With files: the folder that holds their content. With magnet, or download: the folder to
    /// download into, which is made if it is not there.
    pub content: Option<String>,
    /// With files: content that is missing is downloaded into the content folder. Left out: it is
    /// only waited for. A magnet is downloaded always.
    pub download: Option<bool>,
    /// With download or magnet: from the first piece to the last. Left out: the rarest first.
    pub sequential: Option<bool>,
    /// With download or magnet: patterns of the files that are wanted. Left out: all.
    pub only: List<String>,
    /// With download or magnet: as in downloads, for this entry alone.
    pub preallocate: Option<Preallocate>,
    /// With download or magnet: as in downloads.
    pub incomplete_folder: Option<String>,
    /// With download or magnet: as in downloads.
    pub incomplete_suffix: Option<String>,
    /// With download or magnet: as in downloads.
    pub move_completed_to: Option<String>,
    /// With folder: the torrent's name. Left out: the folder's.
    pub name: Option<String>,
    /// keep (those in the file; for files the default), a list of URLs, each a tier of its own, or
    /// a list of tiers, each a list. `embedded` stands for the engine's own tracker, which is the
    /// default for folders where there is one.
    pub trackers: Option<TrackersField>,
    /// What is hashed before it is uploaded: full (all of it), quick (sizes, then each piece before
    /// its first upload) or trust. Left out: full for folders, whose pieces are hashed anyway,
    /// quick for files.
    pub verify: Option<Verify>,
    /// With folder: a power of two. Left out: chosen from the size.
    #[schemars(extend("x-least" = "16KiB", "x-most" = "64MiB"))]
    pub piece_length: Option<ByteSize>,
    /// With folder: peers come from its trackers alone (BEP 27).
    pub private: Option<bool>,
    /// With folder: the source tag, which some private trackers ask for.
    pub source: Option<String>,
    /// With folder: a comment.
    pub comment: Option<String>,
    /// With folder: URLs of the same content over HTTP (BEP 19).
    pub web_seeds: List<WebSeed>,
    /// Shows its pieces to peers one by one (BEP 16): for the first seed of a swarm, which sends
    /// each piece about once. It ends when another peer has everything.
    pub super_seeding: bool,
    /// Whether its peers tell each other of peers. Left out: as the engine does.
    pub pex: Option<bool>,
    /// Limits of this torrent, within those of the engine.
    pub limits: TorrentLimitsFile,
}

/// Limits of one torrent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TorrentLimitsFile {
    /// Payload sent to its peers.
    pub upload: Rate,
    /// Payload asked of its peers.
    pub download: Rate,
    /// Its connections. Left out: limits.connections_per_torrent.
    #[schemars(range(min = 1, max = 1000000))]
    pub connections: Option<u32>,
    /// Its peers served at the same time.
    pub upload_slots: CountLimit,
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> List<T> {
        List(Vec::new())
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T>, D::Error> {
        struct OneOrMany<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for OneOrMany<T> {
            type Value = List<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<List<T>, E> {
                T::deserialize(StrDeserializer::new(text)).map(|one| List(vec![one]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [item, { "type": "array", "items": item }] })
    }
}

/// A value that is a text to the user and has to parse.
macro_rules! parsed_text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr, $schema:tt) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(text.trim()).map($name).map_err(de::Error::custom)
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

parsed_text!(
    /// An address and a port to listen on.
    Listen(SocketAddr), parse_listen, { "type": "string" });
parsed_text!(
    /// An IPv4 or IPv6 address.
    Address(IpAddr), parse_address, { "type": "string" });
parsed_text!(
    /// The announce URL of a tracker.
    TrackerUrl(String), parse_tracker_url, { "type": "string", "format": "uri" });
parsed_text!(
    /// A URL under which content can be fetched.
    WebSeed(String), parse_web_seed, { "type": "string", "format": "uri" });

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!(
            "\"{text}\" has no address; write \"0.0.0.0:{text}\" for all of IPv4, \"[::]:{text}\" \
             for all of IPv6"
        ));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(format!(
            "\"{text}\" has no port; write \"{}\"",
            SocketAddr::new(address, 6881)
        ));
    }
    Err(format!(
        "\"{text}\" is not an address with a port; write such as \"0.0.0.0:6881\" or \"[::]:6881\" \
         (addresses of this machine, not names)"
    ))
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is not an IP address; write such as 203.0.113.7, without a port")
    })
}

pub(crate) fn parse_tracker_url(text: &str) -> Result<String, String> {
    check_url(text, &["http", "https", "udp"], "http://tracker.example/announce")
}

fn parse_web_seed(text: &str) -> Result<String, String> {
    check_url(text, &["http", "https"], "https://mirror.example/content/")
}

fn check_url(text: &str, schemes: &[&str], example: &str) -> Result<String, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("\"{text}\" is not a URL; write such as {example}"));
    };
    if !schemes.contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(format!(
            "\"{scheme}\" is not supported here; the URL starts with {}",
            schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" or ")
        ));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err(format!("\"{text}\" names no host; write such as {example}"));
    }
    let port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if scheme.eq_ignore_ascii_case("udp") && !port {
        return Err(format!("\"{text}\" names no port; write such as udp://tracker.example:6969"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("\"{}\" has a space in it; write %20", text.escape_debug()));
    }
    Ok(text.to_string())
}

/// `keep`, or tiers.
#[derive(Clone, Debug, PartialEq)]
pub enum TrackersField {
    Keep,
    Tiers(Vec<Vec<TrackerRef>>),
}

impl Serialize for TrackerRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            TrackerRef::Embedded => "embedded",
            TrackerRef::Url(url) => url,
        })
    }
}

impl<'de> Deserialize<'de> for TrackerRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TrackerRef, D::Error> {
        match String::deserialize(deserializer)?.trim() {
            "embedded" => Ok(TrackerRef::Embedded),
            url if url.contains("://") => {
                parse_tracker_url(url).map(TrackerRef::Url).map_err(de::Error::custom)
            }
            other => {
                let near = did_you_mean(other, &["embedded", "keep"]);
                let near = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                Err(de::Error::custom(format!(
                    "expected the URL of a tracker or embedded, found \"{other}\"{near}"
                )))
            }
        }
    }
}

impl Serialize for TrackersField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TrackersField::Keep => serializer.serialize_str("keep"),
            TrackersField::Tiers(tiers) => tiers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TrackersField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TrackersField, D::Error> {
        struct Field;
        impl<'de> de::Visitor<'de> for Field {
            type Value = TrackersField;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keep, a list of tracker URLs, or a list of tiers")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TrackersField, E> {
                if text == "keep" {
                    return Ok(TrackersField::Keep);
                }
                let one = TrackerRef::deserialize(StrDeserializer::<E>::new(text))?;
                Ok(TrackersField::Tiers(vec![vec![one]]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<TrackersField, A::Error> {
                let mut tiers = Vec::new();
                while let Some(List(tier)) = seq.next_element()? {
                    if !tier.is_empty() {
                        tiers.push(tier);
                    }
                }
                Ok(TrackersField::Tiers(tiers))
            }
        }
        deserializer.deserialize_any(Field)
    }
}

impl JsonSchema for TrackersField {
    fn schema_name() -> Cow<'static, str> {
        "Trackers".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "description": "keep, embedded, or one URL." },
                { "type": "array", "items": { "anyOf": [
                    { "type": "string" },
                    { "type": "array", "items": { "type": "string" } }
                ] } }
            ]
        })
    }
}
