//! Owns: figures as text for people. Never: computes any. Flow: outcome -> lines on stdout.

use std::fmt::Write as _;

use crate::leech::Outcome;

/// One run of the load.
pub fn leech(outcome: &Outcome) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<26}{value}");
    };
    let served = outcome.connections_served;
    line("connections", format!("{} ({served} served)", outcome.connections));
    line(
        "window",
        format!(
            "{:.2} s, {:.2} GiB{}",
            outcome.seconds,
            gib(outcome.payload_bytes),
            if outcome.cut_short { " (cut short by --deadline)" } else { "" }
        ),
    );
    if let Some(idle) = outcome.idle_bytes_per_connection {
        line(
            "memory a connection",
            format!("{:.0} B private, {:.0} B RSS, {:.0} B PSS", idle.private, idle.rss, idle.pss),
        );
    } else {
        line("speed", format!("{:.0} MiB/s", outcome.mib_per_s));
        let ms = &outcome.latency_ms;
        line(
            "latency a block, ms",
            format!(
                "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}  ({} blocks)",
                ms.p50, ms.p90, ms.p99, ms.p99_9, ms.max, ms.blocks
            ),
        );
    }
    if let Some(cost) = outcome.target_cpu_seconds_per_gib {
        let user = outcome.target_user_seconds_per_gib.unwrap_or(0.0);
        line("target CPU", format!("{cost:.3} s/GiB ({user:.3} of it user)"));
    }
    if let Some(softirqd) = outcome.softirqd_seconds_per_gib.filter(|seconds| *seconds > 0.0) {
        line("ksoftirqd (any core)", format!("{softirqd:.3} s/GiB"));
    }
    if let Some(after) = &outcome.target_after {
        line(
            "target memory",
            format!(
                "{:.1} MiB RSS, {:.1} MiB private, {:.1} MiB PSS",
                mib(after.rss_bytes),
                mib(after.private_bytes),
                mib(after.pss_bytes)
            ),
        );
        line(
            "target disk reads",
            format!("{:.1} MiB", mib(outcome.target_read_bytes.unwrap_or(0))),
        );
    }
    for (name, text) in more_of(outcome) {
        line(name, text);
    }
    line(
        "load's own CPU",
        format!(
            "{:.3} s/GiB, busy {:.0} %",
            outcome.load_cpu_seconds_per_gib,
            100.0 * outcome.load_busy
        ),
    );
    for (name, count) in [
        ("rejected", outcome.rejects),
        ("choked", outcome.chokes),
        ("connections reopened", outcome.reopened),
        ("order broken", outcome.reordered),
        ("blocks not asked for", outcome.unrequested_blocks),
        ("never asked for (late)", outcome.overdue_dropped),
        ("pieces good", outcome.pieces_verified),
        ("pieces BAD", outcome.pieces_bad),
    ] {
        if count > 0 {
            line(name, count.to_string());
        }
    }
    let stalls = &outcome.stalls;
    if stalls.count > 0 {
        line(
            "nothing came at all",
            format!(
                "{} times for more than {:.0} ms, at the longest {:.0} ms, together {:.0} ms",
                stalls.count, stalls.over_ms, stalls.longest_ms, stalls.total_ms
            ),
        );
    }
    if let Some(words) = &outcome.load_was_limit {
        line("CAUTION", words.clone());
    }
    if let Some(why) = &outcome.partial {
        line("PARTIAL", format!("{why}; this is what came until then"));
    }
    if let Some(reason) = outcome.last_end.as_ref().filter(|_| outcome.reopened > 0) {
        line("last closed because", reason.clone());
    }
    out
}

/// What is there in some runs only.
fn more_of(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let first = &outcome.first_block_ms;
    if first.blocks > 0 {
        let text = format!("p50 {:.2}  p99 {:.2}  max {:.2}", first.p50, first.p99, first.max);
        lines.push(("first block, ms", text));
    }
    lines.extend(outcome.fairness.map(|index| ("fairness (Jain)", format!("{index:.3}"))));
    let beside = &outcome.beside;
    if beside.idle > 0 {
        lines.push(("idle beside", beside.idle.to_string()));
    }
    if beside.slow > 0 {
        lines.push(("slow beside", format!("{}, {:.0} KiB/s", beside.slow, beside.slow_kib_per_s)));
    }
    if beside.arrivals > 0 {
        let text = format!(
            "{} came, {} went, {} found no place",
            beside.arrivals, beside.departures, beside.turned_away
        );
        lines.push(("came and went", text));
    }
    let meters = &outcome.meters;
    for (name, value, digits) in [
        ("switches a GiB, voluntary", meters.voluntary_switches_per_gib, 0),
        ("switches a GiB, others", meters.involuntary_switches_per_gib, 0),
        ("system calls a GiB", meters.syscalls_per_gib, 0),
        ("softirq of the core", meters.core_softirq_seconds_per_gib, 3),
        ("joules a GiB", meters.joules_per_gib, 1),
    ] {
        lines.extend(value.map(|value| (name, format!("{value:.digits$}"))));
    }
    lines.extend(meters.not_measured.iter().map(|line| ("not measured", line.clone())));
    lines
}

/// The frame-taking device, a row for each number of blocks and way of sending.
pub fn zero_copy(rows: &[Vec<String>]) -> String {
    crate::compare::table(
        &[
            "blocks a send",
            "path",
            "CPU-s/GiB: median (min..max)",
            "of it acknowledging",
            "GiB/s",
            "copied after all",
            "KiB a frame",
        ],
        rows,
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / 1_073_741_824.0
}
