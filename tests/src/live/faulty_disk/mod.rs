//! Owns: a file system of our own over a folder, which does as a test says: fails reads, writes or
//! syncs, dies, kills the engine in the middle of an operation, and loses what was not synced.
//! Never: stays: it is unmounted with its owner, and those of killed tests by the next one.
//! Flow: mounted over an empty folder before the engine starts; a thread serves it, one request
//! after the other. What it holds lies in the backing folder, where a test reads it past all of
//! this.

pub mod backing;
pub mod fuse;

use super::engine::kill;
use super::small_disk::{mount_source, sweep_leftovers, unmount};
use crate::interop::wait_until;
use crate::sim::Rng;
use anyhow::{Context, Result};
use backing::{Backing, Unsynced};
use fuse::{Answerer, Device, Request};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a request does to a file, where it matters to a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Read,
    Write,
    Sync,
    Create,
    Delete,
}

impl Step {
    fn of(request: &Request<'_>) -> Option<Self> {
        match request.opcode {
            fuse::READ => Some(Step::Read),
            fuse::WRITE => Some(Step::Write),
            fuse::FSYNC => Some(Step::Sync),
            fuse::CREATE | fuse::MKDIR | fuse::MKNOD => Some(Step::Create),
            fuse::UNLINK | fuse::RMDIR | fuse::RENAME | fuse::RENAME2 => Some(Step::Delete),
            _ => None,
        }
    }
}

/// How far the operation has come when the engine is killed in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    /// Half of the bytes of a write are there.
    Torn,
    /// Done; nobody has heard so.
    After,
}

/// Kills a process in the middle of its `nth` step, from 1, on a file whose name contains `name`.
#[derive(Debug, Clone)]
pub struct Trap {
    pub pid: u32,
    pub step: Step,
    pub name: String,
    pub nth: u32,
    pub moment: Moment,
}

#[derive(Debug, Default)]
struct Plan {
    failing: Vec<Step>,
    /// Syncs of files whose name contains this are answered and not done.
    lies: Option<String>,
    trap: Option<Trap>,
    counts: Vec<(Step, PathBuf)>,
    sprung: bool,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    unsynced: Unsynced,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Mount {
    dead: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
pub struct FaultyDisk {
    point: PathBuf,
    backing: PathBuf,
    shared: Arc<Shared>,
    mount: Option<Mount>,
}

impl FaultyDisk {
    /// Mounts what lies in `backing` at `point`; both are made.
    pub fn mount(point: &Path, backing: &Path) -> Result<Self> {
        sweep_leftovers();
        std::fs::create_dir_all(point)?;
        std::fs::create_dir_all(backing)?;
        let (point, backing) = (point.to_path_buf(), backing.to_path_buf());
        let mut disk = Self { point, backing, shared: Arc::default(), mount: None };
        disk.mount_again()?;
        Ok(disk)
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Where its files lie in truth.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// From now on these steps fail with EIO; none: all is well again.
    pub fn fail(&self, steps: &[Step]) {
        self.shared.plan().failing = steps.to_vec();
    }

    /// From now on syncs of files whose name contains `name` say that they are done, and nothing is
    /// on the device: what a test that looks for lost writes has to notice.
    pub fn lie_about_syncs(&self, name: &str) {
        self.shared.plan().lies = Some(name.to_owned());
    }

    /// Sets a trap; the one before it is gone.
    pub fn set_trap(&self, trap: Trap) {
        let mut plan = self.shared.plan();
        (plan.trap, plan.sprung) = (Some(trap), false);
    }

    /// Whether the trap has killed; it is taken away.
    pub fn take_trap(&self) -> bool {
        let mut plan = self.shared.plan();
        plan.trap = None;
        std::mem::take(&mut plan.sprung)
    }

    /// Takes the list of steps since the last call, failed ones included.
    pub fn take_steps(&self) -> Vec<(Step, PathBuf)> {
        std::mem::take(&mut self.shared.plan().counts)
    }

    /// The power fails, with the engine dead: unsynced writes are lost, each with this chance in
    /// per mille; how many were.
    pub fn lose_unsynced(&self, rng: &mut Rng, chance: u16) -> Result<u64> {
        Ok(self.shared.unsynced.lose(rng, chance)?)
    }

    /// From now on everything fails with EIO, also on what is open, as when a cable is pulled. A
    /// new mount does not bring the old one back.
    pub fn pull(&self) {
        if let Some(mount) = &self.mount {
            mount.dead.store(true, Ordering::Relaxed);
        }
    }

    /// Fails while somebody has a file open.
    pub fn unmount(&mut self) -> Result<()> {
        let point = self.point.clone();
        wait_until("the disk to be unmounted", Duration::from_secs(10), || {
            let output = Command::new("umount").arg(&point).output()?;
            Ok(output.status.success().then_some(()))
        })?;
        let server = self.mount.take().context("mounted")?.server;
        server.join().ok().context("the disk's thread panicked")
    }

    /// Takes it away from under those who have files open.
    pub fn unmount_lazily(&mut self) {
        unmount(&self.point);
        self.mount = None;
    }

    pub fn mount_again(&mut self) -> Result<()> {
        let (device, mounting) = Device::mount(&self.point, &mount_source())?;
        let answerer = device.answerer()?;
        let (dead, shared) = (Arc::new(AtomicBool::new(false)), self.shared.clone());
        let backing = Backing::new(&self.backing);
        let theirs = dead.clone();
        let server =
            std::thread::spawn(move || serve(device, &answerer, backing, &shared, &theirs));
        mounting.wait()?;
        self.mount = Some(Mount { dead, server });
        Ok(())
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        if self.mount.is_some() {
            // Who still waits for an answer hears that it failed, and lets go.
            self.pull();
            unmount(&self.point);
        }
    }
}

fn serve(
    mut device: Device,
    answerer: &Answerer,
    mut backing: Backing,
    shared: &Shared,
    dead: &AtomicBool,
) {
    while let Some(request) = device.receive() {
        let is_dead = dead.load(Ordering::Relaxed) && request.opcode != fuse::RELEASE;
        let answer = match is_dead && request.opcode != fuse::INIT {
            true => Err(Errno::IO),
            false => answer(&request, &mut backing, shared),
        };
        if request.is_answered() {
            answerer.reply(&request, answer);
        }
    }
}

fn answer(request: &Request<'_>, backing: &mut Backing, shared: &Shared) -> Result<Vec<u8>, Errno> {
    let unsynced = &shared.unsynced;
    let Some(step) = Step::of(request) else { return backing.serve(request, unsynced) };
    let path = backing.path(request);
    let (trap, lies) = {
        let mut plan = shared.plan();
        plan.counts.push((step, path.clone()));
        if plan.failing.contains(&step) {
            return Err(Errno::IO);
        }
        let lies = step == Step::Sync && plan.lies.as_ref().is_some_and(|it| is_named(&path, it));
        (plan.springs(step, &path), lies)
    };
    if lies {
        trap.iter().for_each(|trap| kill(trap.pid));
        return Ok(Vec::new());
    }
    let Some(trap) = trap else { return backing.serve(request, unsynced) };
    let data = request.rest(40);
    match (trap.moment, step) {
        (Moment::Before, _) => kill(trap.pid),
        (Moment::Torn, Step::Write) => {
            kill(trap.pid);
            backing.write(request, &data[..data.len() / 2], unsynced)?;
        }
        _ => {
            backing.serve(request, unsynced)?;
            kill(trap.pid);
        }
    }
    Err(Errno::IO) // nobody is left to hear it
}

fn is_named(path: &Path, part: &str) -> bool {
    path.file_name().unwrap_or_default().to_string_lossy().contains(part)
}

impl Plan {
    /// The trap, where this step is the one that it waits for.
    fn springs(&mut self, step: Step, path: &Path) -> Option<Trap> {
        let trap = self.trap.as_mut().filter(|_| !self.sprung)?;
        if trap.step != step || !is_named(path, &trap.name) {
            return None;
        }
        trap.nth = trap.nth.saturating_sub(1);
        if trap.nth > 0 {
            return None;
        }
        self.sprung = true;
        self.trap.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn disk() -> (tempfile::TempDir, FaultyDisk) {
        let folder = tempfile::tempdir().expect("a folder");
        let (point, backing) = (folder.path().join("point"), folder.path().join("backing"));
        let disk = FaultyDisk::mount(&point, &backing).expect("mounted");
        (folder, disk)
    }

    #[test]
    fn it_is_a_file_system() -> Result<()> {
        let (_folder, mut disk) = disk();
        let below = disk.point().join("a/b");
        std::fs::create_dir_all(&below)?;
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(below.join("x"), &bytes)?;
        std::fs::rename(below.join("x"), disk.point().join("y"))?;
        let names = std::fs::read_dir(disk.point())?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<Result<Vec<_>>>()?;
        anyhow::ensure!(names == ["a", "y"], "{names:?}");
        anyhow::ensure!(std::fs::read(disk.point().join("y"))? == bytes);
        anyhow::ensure!(std::fs::read(below.join("x")).is_err());
        std::fs::remove_dir_all(disk.point().join("a"))?;
        disk.unmount()?;
        anyhow::ensure!(std::fs::read_dir(disk.point())?.count() == 0, "unmounted");
        disk.mount_again()?;
        anyhow::ensure!(std::fs::read(disk.point().join("y"))? == bytes);
        Ok(())
    }

    #[test]
    fn what_was_not_synced_is_lost_and_what_was_is_not() -> Result<()> {
        let (_folder, mut disk) = disk();
        let path = disk.point().join("x");
        let mut file = std::fs::File::create(&path)?;
        file.write_all(b"synced")?;
        file.sync_data()?;
        file.write_all(b" and lost")?;
        drop(file);
        disk.unmount()?;
        anyhow::ensure!(disk.lose_unsynced(&mut Rng::new(1), 1000)? == 1);
        disk.mount_again()?;
        anyhow::ensure!(std::fs::read(&path)? == b"synced");
        Ok(())
    }

    #[test]
    fn steps_fail_as_told_and_a_pulled_disk_fails_for_good() -> Result<()> {
        let (_folder, mut disk) = disk();
        let path = disk.point().join("x");
        std::fs::write(&path, "abc")?;
        disk.fail(&[Step::Write, Step::Create]);
        anyhow::ensure!(std::fs::write(&path, "def").is_err());
        anyhow::ensure!(std::fs::write(disk.point().join("z"), "def").is_err());
        disk.fail(&[]);
        std::fs::write(&path, "abc")?;
        disk.pull();
        anyhow::ensure!(std::fs::read(&path).is_err());
        disk.unmount_lazily();
        disk.mount_again()?;
        anyhow::ensure!(std::fs::read(&path)? == b"abc");
        Ok(())
    }

    #[test]
    fn a_trap_kills_in_the_middle_of_a_write() -> Result<()> {
        let (_folder, disk) = disk();
        let script = "sleep 0.2; exec dd if=/dev/zero of=x bs=1000 count=10 status=none";
        let mut child =
            Command::new("sh").args(["-c", script]).current_dir(disk.point()).spawn()?;
        let (pid, name) = (child.id(), String::from("x"));
        let moment = Moment::Torn;
        disk.set_trap(Trap { pid, step: Step::Write, name, nth: 3, moment });
        anyhow::ensure!(!child.wait()?.success(), "killed");
        anyhow::ensure!(disk.take_trap());
        let length = std::fs::metadata(disk.backing().join("x"))?.len();
        anyhow::ensure!(length == 2_500, "{length}");
        Ok(())
    }
}
