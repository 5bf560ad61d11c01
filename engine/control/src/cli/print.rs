//! Owns: how the commands print: output that may be piped away, errors, sizes and times for people.
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

/// Seconds since 1970 as `2026-11-27 15:04:05 UTC`.
pub(super) fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // In years that begin in March a leap day is the last one, and months repeat every 153 days.
    let since_march_0 = days + 719_468;
    let (era, day_of_era) = (since_march_0.div_euclid(146_097), since_march_0.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (400 * era + year_of_era, month + 3),
        _ => (400 * era + year_of_era + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Text of a torrent on a terminal: no control characters, which could move the cursor.
pub(super) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(super::time(seconds), format!("{text} UTC"));
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(super::size(bytes), text);
        }
        assert_eq!(super::safe("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
