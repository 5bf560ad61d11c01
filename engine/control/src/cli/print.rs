//! Owns: how the commands print: output that may be piped away, errors, sizes for people.
//! Never: decides what is printed.
//! Flow: every command's last step.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints to stdout. A reader that went away (`| head`) is no failure.
pub(super) fn bytes(output: &[u8]) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(output).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => failed(&error),
        _ => ExitCode::SUCCESS,
    }
}

pub(super) fn text(output: &str) -> ExitCode {
    bytes(output.as_bytes())
}

/// Prints JSON, indented, with a line end.
pub(super) fn json(value: &serde_json::Value) -> ExitCode {
    text(&format!("{value:#}\n"))
}

/// Says why, on stderr; exit code 1.
pub(super) fn failed(reason: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "seedring: {reason}");
    ExitCode::FAILURE
}

pub(super) fn note(line: &dyn Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// `1.4 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Text of a torrent on a terminal: no control characters, which could move the cursor.
pub(super) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(super::size(bytes), text);
        }
        assert_eq!(super::safe("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
