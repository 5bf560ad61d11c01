//! Owns: `PUID`, `PGID` and `UMASK` of the environment: which user the process is.
//! Never: acts once a file is open or a thread runs; goes on as somebody else than was asked for.
//! Flow: `main`, before anything else -> all files, sockets and threads after it.
//!
//! For containers that are started as root so that the environment can say who the files belong
//! to. Where the container itself is told (`--user`), none of it is needed.

use rustix::fs::Mode;
use rustix::process::{getegid, geteuid, umask};
use rustix::thread::{Gid, Uid};

/// What the environment asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// User and group.
    owner: Option<(u32, u32)>,
    umask: Option<u32>,
}

/// Becomes the user that the environment names. The error says what to do.
pub fn assume(environment: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    let wanted = Wanted::read(environment)?;
    if let Some((user, group)) = wanted.owner {
        become_user(user, group)?;
    }
    if let Some(mask) = wanted.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    Ok(())
}

impl Wanted {
    fn read(environment: &dyn Fn(&str) -> Option<String>) -> Result<Wanted, String> {
        let said = |name: &str| environment(name).filter(|value| !value.is_empty());
        let number = |name: &str| match said(name) {
            None => Ok(None),
            // The highest stands for "none" in the kernel's calls.
            Some(text) => match text.parse::<u32>() {
                Ok(number) if number < u32::MAX => Ok(Some(number)),
                _ => Err(format!("{name}={text}: expected a number such as 1000 (`id` prints it)")),
            },
        };
        let owner = match (number("PUID")?, number("PGID")?) {
            (Some(user), group) => Some((user, group.unwrap_or(user))),
            (None, None) => None,
            (None, Some(_)) => return Err("PGID is set without PUID: set both, or none".into()),
        };
        let umask = match said("UMASK") {
            None => None,
            Some(text) => match u32::from_str_radix(&text, 8) {
                Ok(mask) if mask <= 0o777 => Some(mask),
                _ => return Err(format!("UMASK={text}: expected octal digits such as 022")),
            },
        };
        Ok(Wanted { owner, umask })
    }
}

/// The only thread changes: there is no other one yet.
fn become_user(user: u32, group: u32) -> Result<(), String> {
    let now = (geteuid().as_raw(), getegid().as_raw());
    if now == (user, group) {
        return Ok(());
    }
    if now.0 != 0 {
        return Err(format!(
            "PUID={user} PGID={group}: this process is user {} and cannot become another one; \
             start the container as that user (`--user {user}:{group}`, Compose: user: \
             \"{user}:{group}\") and leave PUID and PGID out, or start it as root (`--user 0`)",
            now.0
        ));
    }
    let refused = |error| {
        format!(
            "PUID={user} PGID={group}: {error}; root becomes another user with the capabilities \
             SETUID and SETGID alone (`--cap-add SETUID --cap-add SETGID`), or start the container \
             with `--user {user}:{group}`"
        )
    };
    // What `--group-add` gave stays, root's own group goes.
    let mut groups = rustix::process::getgroups().map_err(refused)?;
    groups.retain(|group| !group.is_root());
    rustix::thread::set_thread_groups(&groups).map_err(refused)?;
    let group = Gid::from_raw(group);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(refused)?;
    let user = Uid::from_raw(user);
    rustix::thread::set_thread_res_uid(user, user, user).map_err(refused)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Wanted, String> {
        let find = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string())
        };
        Wanted::read(&find)
    }

    #[test]
    fn what_the_environment_asks_for() {
        assert_eq!(read(&[]), Ok(Wanted::default()));
        assert_eq!(read(&[("PUID", ""), ("UMASK", "")]), Ok(Wanted::default()));
        let owner = |user, group| Ok(Wanted { owner: Some((user, group)), umask: None });
        assert_eq!(read(&[("PUID", "1000")]), owner(1000, 1000));
        assert_eq!(read(&[("PUID", "1000"), ("PGID", "100")]), owner(1000, 100));
        assert_eq!(read(&[("UMASK", "027")]).map(|wanted| wanted.umask), Ok(Some(0o27)));
        for wrong in [
            &[("PUID", "me")][..],
            &[("PUID", "-1")],
            &[("PUID", "4294967295")],
            &[("PGID", "100")],
            &[("UMASK", "8")],
            &[("UMASK", "1777")],
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(wrong[0].0), "{error}");
        }
    }

    #[test]
    fn who_is_it_already_stays() {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(become_user(user, group), Ok(()));
        if user != 0 {
            let error = become_user(user + 1, group).unwrap_err();
            assert!(error.contains("--user"), "{error}");
        }
    }
}
