//! Owns: which comparisons a scenario's key belongs to, and a scenario with all defaults filled in.
//! Never: reads a file, or starts anything but to ask a target for its version.

use std::path::Path;

use serde_json::json;

use crate::compare::{Options, Preset, Preset::*, bytes_in_words};

const COME_AND_GO: &[Preset] = &[Churn, SeedMany];
/// Those with a load of leeches over a time.
const WINDOWS: &[Preset] =
    &[Seeding, Spread, Beside, Connections, SlowReaders, Churn, SeedMany, Restart];
/// Those whose targets may run with their own defaults.
const SETTINGS: &[Preset] = &[Seeding, Connections, SlowReaders, Churn, SeedMany, StartUp, Restart];
/// All but those that each comparison has: `title`, `compare`, `targets`, `repeats`.
const KEYS: [(&str, &[Preset]); 21] = [
    ("settings", SETTINGS),
    (
        "size",
        &[
            Seeding,
            Cold,
            Spread,
            Download,
            Recheck,
            Beside,
            Connections,
            SlowReaders,
            Churn,
            Restart,
            Mixed,
        ],
    ),
    ("seconds", WINDOWS),
    ("warm_up_seconds", WINDOWS),
    ("connections", &[Seeding, Connections, SlowReaders, Restart]),
    ("pattern", WINDOWS),
    ("outstanding", WINDOWS),
    ("block", WINDOWS),
    ("open_loop", &[Seeding]),
    ("shards", &[Spread]),
    ("torrents", &[Many, SeedMany, StartUp]),
    ("seeders", &[Download]),
    ("seeders_have_percent", &[Download]),
    ("mixed_peers", &[Download]),
    ("zipf", &[SeedMany]),
    ("arrivals_per_second", COME_AND_GO),
    ("stay_seconds", COME_AND_GO),
    ("members", &[Mixed]),
    ("seed_mib_per_s", &[Mixed]),
    ("slow", &[SlowReaders]),
    ("slow_rate", &[SlowReaders]),
];

/// The comparisons in which a key has an effect.
pub fn belongs_to(key: &str) -> &'static [Preset] {
    KEYS.iter().find(|(known, _)| *known == key).map_or(&[], |(_, of)| of)
}

/// As a scenario file that says everything, with what is absent here, and where the report goes.
pub fn written_out(path: &Path, title: &str, options: &Options) -> String {
    let mut lines = vec![
        format!("# {}", path.display()),
        format!("title: {}", json!(title)),
        format!("compare: {}", plain(&json!(options.preset))),
        format!("targets: {}", plain(&json!(options.targets()))),
        format!("repeats: {}", options.rounds),
    ];
    for (key, of) in KEYS {
        if of.contains(&options.preset) {
            lines.push(format!("{key}: {}", value(key, options)));
        }
    }
    for kind in options.targets() {
        if let Err(error) = kind.version(options) {
            lines.push(format!("# absent: {kind}: {error:#}"));
        }
    }
    let out = options.site.out.as_ref().unwrap_or(&options.site.work);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    lines.push(format!("# report: {}.md, .html, .json", out.join(&*name).display()));
    lines.join("\n")
}

fn value(key: &str, options: &Options) -> String {
    match key {
        "settings" => plain(&json!(options.settings)),
        "size" => bytes(options.size_bytes()),
        "seconds" => options.seconds.to_string(),
        "warm_up_seconds" => options.warm_up.to_string(),
        "connections" => plain(&json!(options.connections())),
        "pattern" => plain(&json!(options.pattern)),
        "outstanding" => options.outstanding.to_string(),
        "block" => bytes(options.block),
        "open_loop" => (!options.no_open_loop).to_string(),
        "shards" => plain(&json!(options.shards)),
        "torrents" => options.torrents.to_string(),
        "seeders" => plain(&json!(options.peers)),
        "seeders_have_percent" => options.seeders_have_percent.to_string(),
        "mixed_peers" => options.mixed_peers.to_string(),
        "zipf" => options.zipf.to_string(),
        "arrivals_per_second" => options.arrivals.to_string(),
        "stay_seconds" => options.stay.to_string(),
        "members" => options.members.to_string(),
        "seed_mib_per_s" => options.seed_mib_per_s.to_string(),
        "slow" => options.slow.to_string(),
        "slow_rate" => bytes(options.slow_rate),
        _ => unreachable!("{key} is none of the keys"),
    }
}

/// A flow sequence or a word, without JSON's quotes: names here have no letters that YAML minds.
fn plain(value: &serde_json::Value) -> String {
    value.to_string().replace('"', "").replace(',', ", ")
}

/// As a scenario has it: `16KiB`.
fn bytes(count: u64) -> String {
    bytes_in_words(count).replace(" bytes", "").replace(' ', "")
}
