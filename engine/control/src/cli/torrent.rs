//! Owns: the arguments of `add`, `remove`, `pause`, `resume`, `recheck` and `files`.
//! Never: does any of it; the running engine does.
//! Flow: arguments -> `Action` -> control socket -> the engine's reply, printed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::list::EngineArgs;
use super::print;
use super::storage::StorageArgs;
use crate::control_socket;
use crate::engine::commands::{Action, AddFrom, AddTorrent, FilesReport, Reply};

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// A .torrent file or a magnet link.
    torrent: String,
    /// The folder to download into; made if it is not there.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Do not begin before it is resumed.
    #[arg(long)]
    paused: bool,
    /// Fetch from the first piece to the last.
    #[arg(long)]
    sequential: bool,
    /// A pattern of the files that are wanted; several allowed.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// A label to list it by; several allowed.
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The torrent: its info-hash, the beginning of it, or its name.
    torrent: String,
    /// Delete the files that were downloaded for it. What was there before, or belongs to another
    /// torrent too, stays.
    #[arg(long)]
    delete_content: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(super) struct TorrentArgs {
    /// The torrent: its info-hash, the beginning of it, or its name.
    torrent: String,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, Args)]
pub(super) struct FilesArgs {
    /// The torrent: its info-hash, the beginning of it, or its name.
    torrent: String,
    /// Files to set the priority of: numbers as listed, or patterns.
    #[arg(requires = "priority")]
    files: Vec<String>,
    /// How much they are wanted: 0 not at all, 4 as usual, 7 first.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=7), requires = "files")]
    priority: Option<u8>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn add(args: AddArgs) -> ExitCode {
    let prepared = from(&args.torrent).and_then(|from| {
        let folder = std::path::absolute(&args.to);
        let folder = folder.map_err(|error| format!("{}: {error}", args.to.display()))?;
        Ok((from, folder, args.storage.choice()?))
    });
    let (from, folder, storage) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return print::failed(&why),
    };
    let add = AddTorrent {
        from,
        folder,
        paused: args.paused,
        sequential: args.sequential,
        only: args.only,
        labels: args.label,
        storage,
    };
    act(&args.engine, Action::Add(add), "added")
}

/// A magnet link, or the bytes of a file.
fn from(torrent: &str) -> Result<AddFrom, String> {
    if torrent.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
        return Ok(AddFrom::Magnet(torrent.to_owned()));
    }
    let path = Path::new(torrent);
    let most = seedring_proto::limits::TORRENT_BYTES_MAX as u64;
    let length = std::fs::metadata(path).map_err(|error| format!("{torrent}: {error}"))?.len();
    if length > most {
        return Err(format!("{torrent}: {length} bytes are no .torrent file"));
    }
    std::fs::read(path).map(AddFrom::Torrent).map_err(|error| format!("{torrent}: {error}"))
}

pub(super) fn remove(args: RemoveArgs) -> ExitCode {
    let RemoveArgs { torrent, delete_content, engine } = args;
    act(&engine, Action::Remove { torrent, delete_content }, "removed")
}

pub(super) fn pause(args: TorrentArgs) -> ExitCode {
    act(&args.engine, Action::Pause { torrent: args.torrent }, "paused")
}

pub(super) fn resume(args: TorrentArgs) -> ExitCode {
    act(&args.engine, Action::Resume { torrent: args.torrent }, "resumed")
}

pub(super) fn recheck(args: TorrentArgs) -> ExitCode {
    act(&args.engine, Action::Recheck { torrent: args.torrent }, "being hashed again")
}

fn act(engine: &EngineArgs, action: Action, what: &str) -> ExitCode {
    let socket = match engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match control_socket::act::<Reply>(&socket, action) {
        Ok(reply) => {
            let mut text = format!("{} {}: {what}\n", reply.info_hash, print::safe(&reply.name));
            for note in &reply.notes {
                let _ = writeln!(text, "  {}", print::safe(note));
            }
            print::text(&text)
        }
        Err(error) => print::failed(&error),
    }
}

pub(super) fn files(args: FilesArgs) -> ExitCode {
    let socket = match args.engine.socket_path() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    let FilesArgs { torrent, files, priority, json, .. } = args;
    let action = Action::Files { torrent, priority, files };
    if json {
        return match control_socket::act::<serde_json::Value>(&socket, action) {
            Ok(report) => print::json(&report),
            Err(error) => print::failed(&error),
        };
    }
    match control_socket::act::<FilesReport>(&socket, action) {
        Ok(report) => print::text(&table(&report)),
        Err(error) => print::failed(&error),
    }
}

fn table(report: &FilesReport) -> String {
    let mut out = format!("{:>5} {:>10} {:>7} {:>8}  PATH\n", "FILE", "SIZE", "HAD", "PRIORITY");
    for file in &report.files {
        let had = percent(file.had_bytes, file.length);
        let priority = match file.priority {
            None => String::from("-"),
            Some(0) => String::from("unwanted"),
            Some(priority) => priority.to_string(),
        };
        let _ = write!(
            out,
            "{:>5} {:>10} {had:>7} {priority:>8}  {}",
            file.index,
            print::size(file.length),
            print::safe(&file.path)
        );
        let lies = file.lies.as_ref().map(|lies| format!("  ({})", print::safe(lies)));
        let _ = writeln!(out, "{}", lies.unwrap_or_default());
    }
    out
}

/// `12.5 %`; never 100 before all of it is there.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let permille = (u128::from(part) * 1_000).checked_div(u128::from(whole)).unwrap_or(1_000);
    format!("{}.{} %", permille / 10, permille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::commands::FileReport;

    #[test]
    fn files_are_listed_with_what_is_had_and_wanted() {
        let file = |index, had_bytes, priority| FileReport {
            index,
            path: format!("a\x1b{index}"),
            length: 1000,
            had_bytes,
            lies: (index == 0).then(|| String::from("aside")),
            priority,
        };
        let files = vec![file(0, 999, Some(0)), file(1, 1000, Some(7)), file(2, 0, None)];
        let text = table(&FilesReport { files, ..FilesReport::default() });
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(lines[0].contains("99.9 % unwanted  a\u{fffd}0  (aside)"), "{text}");
        assert!(lines[1].contains("100.0 %        7"), "{text}");
        assert!(lines[2].contains("0.0 %        -"), "{text}");
        assert_eq!(percent(0, 0), "100.0 %", "an empty file is there");
    }
}
