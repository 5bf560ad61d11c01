//! Owns: the command line: its commands and options, exit codes, how errors are printed.
//! Never: does the work; each command calls the library.
//! Flow: `main` -> `Cli` -> one module a command.
//!
//! Exit codes: 0 done (or usable, or all well); 1 failed, with the reason on stderr; 2 the command
//! line itself is wrong.

mod check;
mod create;
mod doctor;
mod download;
mod health;
mod inspect;
pub mod list;
mod print;
mod run;
pub mod show;
mod storage;
mod torrent;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Seeds torrents from a YAML file, or at once: `seedring seed PATH`.
#[derive(Debug, Parser)]
#[command(name = "seedring", version, about, long_about = None, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Seed what a configuration file lists, until stopped. SIGHUP reads the file again.
    Run(run::RunArgs),
    /// Seed folders, files and .torrent files without a configuration file.
    Seed(Box<run::SeedArgs>),
    /// Download a torrent without a configuration file; ends when all of it is there.
    Download(Box<download::DownloadArgs>),
    /// Make a .torrent file of a folder or a file.
    Create(create::CreateArgs),
    /// Say what a .torrent file or a magnet link holds, and whether it can be used.
    Inspect(inspect::InspectArgs),
    /// Check a configuration file and print all that is wrong with it.
    CheckConfig(check::CheckArgs),
    /// List the torrents of the running engine.
    List(list::ListArgs),
    /// Show one torrent of the running engine.
    Show(show::ShowArgs),
    /// Have the running engine download a torrent.
    Add(torrent::AddArgs),
    /// Have the running engine forget a torrent that was added.
    Remove(torrent::RemoveArgs),
    /// Close a torrent's connections and files until it is resumed.
    Pause(torrent::TorrentArgs),
    /// Let a paused torrent go on.
    Resume(torrent::TorrentArgs),
    /// Hash all of a torrent's content again, whatever is known of it.
    Recheck(torrent::TorrentArgs),
    /// List the files of a torrent of the running engine, or say which of them are wanted.
    Files(torrent::FilesArgs),
    /// Ask the running engine whether it works: for health checks of containers.
    Health(health::HealthArgs),
    /// Look at the machine and say what would keep the engine from its best.
    Doctor(doctor::DoctorArgs),
    /// Print the JSON schema of the configuration file.
    Schema,
    /// Print a configuration file with every key, its doc, range and default.
    Reference,
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Print the manual page.
    Man,
}

/// What `main` is.
pub fn main() -> ExitCode {
    // Before anything is opened: all commands of a container are the user that its engine is.
    if let Err(reason) = crate::identity::assume(&check::environment) {
        return print::failed(&reason);
    }
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Seed(args) => run::seed(*args),
        Command::Download(args) => download::run(*args),
        Command::Create(args) => create::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::CheckConfig(args) => check::run(args),
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Add(args) => torrent::add(args),
        Command::Remove(args) => torrent::remove(args),
        Command::Pause(args) => torrent::pause(args),
        Command::Resume(args) => torrent::resume(args),
        Command::Recheck(args) => torrent::recheck(args),
        Command::Files(args) => torrent::files(args),
        Command::Health(args) => health::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Schema => check::schema(),
        Command::Reference => print::text(&crate::config::reference::reference()),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "seedring", &mut out);
            print::bytes(&out)
        }
        Command::Man => {
            let mut out = Vec::new();
            match clap_mangen::Man::new(Cli::command()).render(&mut out) {
                Ok(()) => print::bytes(&out),
                Err(error) => print::failed(&error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_read_as_documented() {
        for line in [
            "seedring run config/quickstart.yaml",
            "seedring seed a b --listen 127.0.0.1:1 --tracker http://t/announce --verify full",
            "seedring create a -o a.torrent --piece-length 1MiB --private --web-seed http://w/",
            "seedring inspect magnet:?xt=urn:btih:0 --json",
            "seedring list --socket /run/x.sock",
            "seedring show abc --config x.yaml --json",
            "seedring doctor --config x.yaml",
            "seedring health",
            "seedring health --ready --state-dir x",
            "seedring download a.torrent --to /srv --sequential --only *.iso --seed",
            "seedring download a.torrent --limit 1MiB/s --incomplete-suffix .part",
            "seedring add a.torrent --to /srv --incomplete-folder /tmp --move-completed-to /done",
            "seedring add magnet:?xt=urn:btih:0 --to /srv --paused --label a --label b",
            "seedring remove abcd --delete-content --state-dir x",
            "seedring pause abcd",
            "seedring resume abcd",
            "seedring recheck abcd --socket /run/x.sock",
            "seedring files abcd --json",
            "seedring files abcd --priority 0 1 2 *.txt",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["seedring", "seed"]).is_err(), "a path is needed");
    }
}
