//! Owns: what a configuration takes from outside of its file: `${VAR}`, `${file:PATH}`, and the
//! environment's word on the control socket.
//! Never: quotes what it read from there: it may be a secret.
//! Flow: `tree` hands in each scalar that holds `${` -> its text.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A secret is a passkey, a URL or a few of them.
const SECRET_BYTES_MAX: u64 = 64 << 10;
const CONTROL_SOCKET: &str = "SEEDRING_CONTROL_SOCKET";

/// Where the control socket is unless something else is said. It is how an image has its health
/// check, its commands and its engine agree, whatever the configuration is.
pub(crate) fn control_socket(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    environment(CONTROL_SOCKET).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The text with everything replaced; `$${` stands for `${`.
pub(super) fn replaced(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let end = from
            .find('}')
            .ok_or("\"${\" without \"}\"; write $${ for the characters themselves")?;
        let inner = &from[2..end];
        out.push_str(&match inner.strip_prefix("file:") {
            Some(path) => secret(Path::new(path))?,
            None => variable(inner, lookup)?,
        });
        rest = &from[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(inner: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("\"{name}\" is not the name of an environment variable"));
    }
    // As in a shell: with `:-`, an empty variable counts as unset.
    match (lookup(name).filter(|value| default.is_none() || !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_string()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set; set it, or give a default: \
             ${{{name}:-value}}"
        )),
    }
}

/// What a file holds, without the line end that editors and `echo` leave.
fn secret(path: &Path) -> Result<String, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("${{file:{}}}: {why}", path.display());
    if !path.is_absolute() {
        return Err(cannot(&"expected an absolute path, such as /run/secrets/passkey"));
    }
    let file = File::open(path).map_err(|error| cannot(&error))?;
    let mut text = String::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| cannot(&error))?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(cannot(&"larger than 64 KiB, which no secret is"));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let lookup = |name: &str| match name {
            "HOME" => Some("/home/me".to_string()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("${HOME}/x", "/home/me/x"),
            ("${NONE:-def}${HOME}", "def/home/me"),
            ("${NONE:-}", ""),
            ("${EMPTY:-def}", "def"),
            ("${EMPTY}", ""),
            ("$${HOME}", "${HOME}"),
            ("$HOME", "$HOME"),
        ] {
            assert_eq!(replaced(text, &lookup).as_deref(), Ok(expected), "{text}");
        }
        for text in ["${NONE}", "${HOME", "${}", "${A B}", "${1}"] {
            assert!(replaced(text, &lookup).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_stay_out_of_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("{}/{name}", dir.path().display());
        for (content, expected) in
            [("pass\n", "pass"), ("pass\r\n", "pass"), ("pass", "pass"), ("a\nb\n", "a\nb")]
        {
            std::fs::write(path("secret"), content).unwrap();
            let text = format!("http://t/${{file:{}}}/announce", path("secret"));
            let expected = format!("http://t/{expected}/announce");
            assert_eq!(replaced(&text, &|_| None), Ok(expected));
        }
        std::fs::write(path("huge"), vec![b'x'; 65_537]).unwrap();
        std::fs::write(path("bytes"), [0xff, 0xfe]).unwrap();
        let wrong = [path("gone"), path("huge"), path("bytes"), "secret".into(), String::new()];
        for path in wrong {
            let error = replaced(&format!("${{file:{path}}}"), &|_| None).unwrap_err();
            assert!(error.contains(&path) && !error.contains("xx"), "{error}");
        }
    }

    #[test]
    fn the_control_socket_has_an_absolute_path() {
        let say = |value: &'static str| {
            move |name: &str| (name == CONTROL_SOCKET).then(|| value.to_string())
        };
        assert_eq!(control_socket(&say("/config/x.sock")), Some("/config/x.sock".into()));
        assert_eq!(control_socket(&say("x.sock")), None);
        assert_eq!(control_socket(&|_| None), None);
    }
}
