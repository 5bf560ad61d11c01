//! Owns: `create`: the .torrent file's place, progress on a terminal, what is printed.
//! Never: reads content itself; `crate::create` does.
//! Flow: arguments -> scan -> make -> written beside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use seedring_proto::magnet::Magnet;

use super::{print, run::tracker_url};
use crate::config::model::ByteSize;
use crate::create::{self, Content, LeftOut, Made, Options};

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The folder or file. Several: a .torrent file for each.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The .torrent file, or a folder for it. Left out: NAME.torrent here.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// The torrent's name. Left out: the folder's or file's.
    #[arg(long)]
    name: Option<String>,
    /// A power of two from 16KiB to 64MiB. Left out: chosen from the size.
    #[arg(long, value_name = "SIZE")]
    piece_length: Option<ByteSize>,
    /// Peers come from the trackers alone (BEP 27).
    #[arg(long)]
    private: bool,
    /// The source tag, which some private trackers ask for.
    #[arg(long)]
    source: Option<String>,
    #[arg(long)]
    comment: Option<String>,
    /// A tracker; several allowed, each a tier of its own. A comma joins those of one tier.
    #[arg(long, value_name = "URL[,URL]")]
    tracker: Vec<String>,
    /// A URL of the same content over HTTP (BEP 19); several allowed.
    #[arg(long, value_name = "URL")]
    web_seed: Vec<String>,
    /// Leave the creation date out, so that the same content gives the same file.
    #[arg(long)]
    no_date: bool,
    /// Write over an existing file.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: CreateArgs) -> ExitCode {
    if args.paths.len() > 1 && args.name.is_some() {
        return print::failed(&"--name goes with one path");
    }
    let into_one = args.output.as_deref().is_some_and(|output| !output.is_dir());
    if args.paths.len() > 1 && into_one {
        return print::failed(&"-o has to be an existing folder where several torrents are made");
    }
    let options = match options(&args) {
        Ok(options) => options,
        Err(reason) => return print::failed(&reason),
    };
    for path in &args.paths {
        if let Err(reason) = one(path, &args, &options) {
            return print::failed(&reason);
        }
    }
    ExitCode::SUCCESS
}

fn options(args: &CreateArgs) -> Result<Options, String> {
    let mut trackers = Vec::new();
    for tier in &args.tracker {
        trackers.push(tier.split(',').map(tracker_url).collect::<Result<Vec<_>, _>>()?);
    }
    let piece_bytes = args.piece_length.map(|length| {
        u32::try_from(length.0).map_err(|_| format!("a piece length of {length} is too large"))
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let now = now.and_then(|now| i64::try_from(now.as_secs()).ok());
    Ok(Options {
        name: args.name.clone(),
        piece_bytes: piece_bytes.transpose()?,
        private: args.private,
        source: args.source.clone(),
        comment: args.comment.clone(),
        trackers,
        web_seeds: args.web_seed.clone(),
        creation_date: now.filter(|_| !args.no_date),
        threads: 0,
    })
}

fn one(path: &Path, args: &CreateArgs, options: &Options) -> Result<(), String> {
    let content = create::scan(path).map_err(|error| error.to_string())?;
    let name = options.name.clone().or_else(|| content.name.clone());
    let name = name.ok_or_else(|| format!("{}: give a --name", path.display()))?;
    let file_name = format!("{}.torrent", name.replace('/', "_"));
    let output = match &args.output {
        Some(output) if output.is_dir() => output.join(file_name),
        Some(output) => output.clone(),
        None => PathBuf::from(file_name),
    };
    // Before the hashing, which may take hours; the rename at the end looks again.
    if output.exists() && !args.force {
        return Err(format!("{}: exists; --force writes over it", output.display()));
    }
    note_left_out(&content);
    let made = make(&content, options).map_err(|error| error.to_string())?;
    write(&output, &made.torrent, args.force)
        .map_err(|error| format!("{}: {error}", output.display()))?;
    print::text(&summary(&output, &made));
    Ok(())
}

fn note_left_out(content: &Content) {
    for (path, why) in &content.left_out {
        let why = match why {
            LeftOut::SymbolicLink => "a symbolic link; content is opened without following them",
            LeftOut::Special => "neither a file nor a folder",
            LeftOut::Litter => "written by desktops, not content",
        };
        print::note(&format!("left out: {}: {why}", path.display()));
    }
}

fn make(content: &Content, options: &Options) -> Result<Made, create::Error> {
    if !io::stderr().is_terminal() {
        return create::make(content, options, &|_| true);
    }
    let bar = ProgressBar::new(content.total_bytes);
    let style = "{bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let made = create::make(content, options, &|hashed| {
        // Threads report out of order; the bar never goes back.
        if hashed > bar.position() {
            bar.set_position(hashed);
        }
        true
    });
    bar.finish_and_clear();
    made
}

/// Whole or not at all: written beside, synced, then put in place.
fn write(output: &Path, torrent: &[u8], force: bool) -> io::Result<()> {
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = folder.join(name);
    let result = (|| {
        let mut file = File::create_new(&part)?;
        file.write_all(torrent)?;
        file.sync_all()?;
        if force {
            fs::rename(&part, output)?;
        } else {
            // A link fails where the name was taken meanwhile; a rename would write over it.
            match fs::hard_link(&part, output) {
                Ok(()) => fs::remove_file(&part)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // File systems without links.
                Err(_) => fs::rename(&part, output)?,
            }
        }
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&part);
    }
    result
}

fn summary(output: &Path, made: &Made) -> String {
    let metainfo = &made.metainfo;
    let layout = &metainfo.info.layout;
    let mut magnet = Magnet::new(metainfo.info_hash);
    magnet.name = Some(metainfo.info.name.clone());
    magnet.trackers = metainfo.announce.iter().flatten().cloned().collect();
    magnet.web_seeds.clone_from(&metainfo.web_seeds);
    format!(
        "torrent    {}\ncontent    {} files, {}\npieces     {} of {}\ninfo-hash  {}\n\
         magnet     {magnet}\n",
        output.display(),
        layout.files.len(),
        print::size(layout.total_bytes),
        layout.piece_count(),
        print::size(u64::from(layout.piece_bytes)),
        metainfo.info_hash,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.torrent");
        write(&path, b"one", false).unwrap();
        let error = write(&path, b"two", false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"two", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
