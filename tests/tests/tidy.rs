//! Owns: the style rules that a machine can check, each as a test over the whole tree.
//! Never: exempts a file for good: a ratchet names today's size, and only ever goes down.
//! Flow: each rule is a function from text to complaints; its test runs it over the tree, and
//! `rules_find_what_is_planted` over a violation made up for it.

use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 600;

/// Files over their limit, with the size that they may not exceed. Take lines away, never add.
const RATCHETS: &[(&str, usize)] = &[];

/// Where all flows cross: limits of their own, so that these never become the monster. The goal is
/// 200 for each; shard.rs is not there yet.
const CROSSINGS: &[(&str, usize)] =
    &[("engine/shard/src/shard.rs", 260), ("engine/shard/src/dispatch.rs", 200)];

/// What may stand at the top of the repository.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "engine",
    "bench",
    "docker",
    "config",
    "tests",
    "docs",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "deny.toml",
    "clippy.toml",
    "rustfmt.toml",
];

/// The arrows between crates: who may depend on whom. `control -> platform` is there for
/// `doctor`'s probe and for hashing content when a torrent is made.
const ARROWS: &[(&str, &[&str])] = &[
    ("engine/proto", &[]),
    ("engine/platform", &[]),
    ("engine/shard", &["seedring-proto", "seedring-platform"]),
    ("engine/control", &["seedring-shard", "seedring-proto", "seedring-platform"]),
    ("bench", &["seedring-proto", "seedring-platform"]),
];

/// Crates that only the control plane may know, and of the bench the parts that speak with Docker's
/// engine or wait for signals.
const ASYNC_RUNTIMES: &[&str] =
    &["tokio", "hyper", "hyper-util", "axum", "async-std", "smol", "futures", "reqwest"];

/// Parts of the bench.
const MAY_BE_ASYNC: &[&str] = &["bench/src/swarm", "bench/src/cut.rs"];

/// Crates whose sources forbid unsafe code.
const SAFE_CRATES: &[&str] = &["engine/proto", "engine/shard", "engine/control"];

/// Crates that are given the time and may not ask for it.
const CLOCKLESS: &[&str] = &["engine/proto/src", "engine/shard/src"];

/// From a file's path and text to complaints.
type Rule = fn(&str, &str) -> Vec<String>;

struct Source {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    seedring_tests::interop::repository_root()
}

/// The files that git tracks or would track, with this ending, under these folders.
fn sources(folders: &[&str], ending: &str) -> Vec<Source> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"])
        .args(folders)
        .current_dir(root())
        .output()
        .expect("git");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("file names in UTF-8");
    let mut found = Vec::new();
    for path in list.split('\0').filter(|path| path.ends_with(ending)) {
        // A file that was removed but not yet committed is still listed.
        let Ok(text) = std::fs::read_to_string(root().join(path)) else { continue };
        found.push(Source { path: path.to_owned(), text });
    }
    assert!(!found.is_empty(), "no {ending} files under {folders:?}");
    found
}

fn rust_sources() -> Vec<Source> {
    sources(&["engine", "bench", "tests"], ".rs")
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Runs one rule over the files and fails with all that it found.
fn check(files: &[Source], rule: impl Fn(&str, &str) -> Vec<String>) {
    let complaints: Vec<String> =
        files.iter().flat_map(|file| rule(&file.path, &file.text)).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The lines with their numbers, comments and the contents of string literals taken out.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut block_comment = false;
    for (number, line) in (1..).zip(text.lines()) {
        let mut code = String::new();
        let mut characters = line.chars().peekable();
        let mut string = false;
        while let Some(character) = characters.next() {
            let next = characters.peek().copied();
            match character {
                _ if block_comment => {
                    if character == '*' && next == Some('/') {
                        characters.next();
                        block_comment = false;
                    }
                }
                '\\' if string => drop(characters.next()),
                '"' => {
                    string = !string;
                    code.push('"');
                }
                // The character literals that would look like a string or an escape.
                '\'' if !string && matches!(next, Some('"' | '\\')) => {
                    characters.next();
                    while characters.next().is_some_and(|end| end != '\'') {}
                }
                _ if string => {}
                '/' if next == Some('/') => break,
                '/' if next == Some('*') => block_comment = true,
                _ => code.push(character),
            }
        }
        lines.push((number, code));
    }
    lines
}

/// Whether `word` stands alone in `code`.
fn has_word(code: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part_of_name)
            && !code[at + word.len()..].chars().next().is_some_and(part_of_name)
    })
}

fn columns(path: &str, text: &str) -> Vec<String> {
    let long = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    long.map(|(number, line)| {
        format!("{path}:{number}: {} columns, at most {COLUMNS_MAX}", line.chars().count())
    })
    .collect()
}

fn size(path: &str, text: &str) -> Vec<String> {
    let listed = RATCHETS.iter().chain(CROSSINGS).find(|(name, _)| *name == path);
    let limit = listed.map_or(LINES_MAX, |(_, limit)| *limit);
    let lines = text.lines().count();
    if lines > limit {
        return vec![format!("{path}: {lines} lines, at most {limit}: split it")];
    }
    Vec::new()
}

fn clock(path: &str, text: &str) -> Vec<String> {
    // A test may measure how long something takes.
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    if is_test(path) {
        return Vec::new();
    }
    complain_of_words(path, text, &["Instant::now", "SystemTime", "UNIX_EPOCH"], |word| {
        format!("{word} where time is an argument")
    })
}

fn runtime(path: &str, text: &str) -> Vec<String> {
    let words = ["tokio", "hyper", "axum", "async fn", ".await"];
    complain_of_words(path, text, &words, |word| format!("{word} outside engine/control"))
}

fn unsafe_code(path: &str, text: &str) -> Vec<String> {
    complain_of_words(path, text, &["unsafe"], |_| "unsafe outside engine/platform".to_owned())
}

fn leftovers(path: &str, text: &str) -> Vec<String> {
    let words = ["dbg!", "todo!", "unimplemented!"];
    let mut found = complain_of_words(path, text, &words, |word| format!("{word} left behind"));
    // Split here so that this file does not complain of itself.
    let marks = [concat!("FIX", "ME"), concat!("XX", "X:")];
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
            found.push(format!("{path}:{number}: {mark} left behind"));
        }
    }
    found
}

fn complain_of_words(
    path: &str,
    text: &str,
    words: &[&str],
    complaint: impl Fn(&str) -> String,
) -> Vec<String> {
    let mut found = Vec::new();
    for (number, code) in code_lines(text) {
        for word in words.iter().filter(|word| has_word(&code, word.trim_end_matches('!'))) {
            if code.contains(*word) {
                found.push(format!("{path}:{number}: {}", complaint(word)));
            }
        }
    }
    found
}

/// Each `unsafe {`, `unsafe impl` and `unsafe extern` has a SAFETY comment right above it (over
/// attributes and the start of its own statement), each `unsafe fn` a section in its doc.
fn safety_comments(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, code) in code_lines(text) {
        if !has_word(&code, "unsafe") || code.contains("unsafe_") {
            continue;
        }
        // A type such as `unsafe fn(u32)` or a trait's method signature is no operation.
        let wanted = if code.contains("unsafe fn") { "# Safety" } else { "SAFETY:" };
        let above = lines[..number].iter().rev().take(16);
        let explained = above
            .take_while(|line| !line.trim().is_empty())
            .any(|line| line.contains(wanted) || line.contains("SAFETY:"));
        if !explained {
            found.push(format!("{path}:{number}: unsafe without a `{wanted}` comment above it"));
        }
    }
    found
}

fn module_head(path: &str, text: &str) -> Vec<String> {
    let mut above = text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with('#') || line.starts_with("//!"));
    if !above.any(|line| line.starts_with("//!")) {
        return vec![format!("{path}: no module head: `//! Owns: ...`, `Never:`, `Flow:`")];
    }
    Vec::new()
}

fn forbids_unsafe(path: &str, text: &str) -> Vec<String> {
    if text.contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![format!("{path}: no #![forbid(unsafe_code)]")]
}

/// The dependencies of a manifest that `allowed` does not name, of the project's own crates.
fn arrows(path: &str, manifest: &str, allowed: &[&str]) -> Vec<String> {
    let own = dependencies(manifest).into_iter().filter(|name| name.starts_with("seedring"));
    own.filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| format!("{path}: no arrow leads to {name} (docs/ARCHITECTURE.md)"))
        .collect()
}

/// Names under `[dependencies]` and its target-specific forms; dev-dependencies are free.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && !line.ends_with("dev-dependencies]");
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            names.push(name.trim_matches('"').to_owned());
        }
    }
    names
}

/// Relative links of a Markdown file that lead nowhere; `exists` is asked from its folder.
fn dead_links(path: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            let target = target.split_whitespace().next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !exists(&folder.join(file)) {
                found.push(format!("{path}:{number}: {target} leads nowhere"));
            }
        }
    }
    found
}

fn top_level(names: &[String]) -> Vec<String> {
    let visible = names.iter().filter(|name| !name.starts_with('.'));
    visible
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
        .map(|name| format!("{name}: the top level is fixed (docs/ARCHITECTURE.md)"))
        .collect()
}

#[test]
fn no_line_is_over_100_columns() {
    check(&rust_sources(), columns);
}

#[test]
fn no_file_is_over_its_limit() {
    check(&rust_sources(), size);
}

#[test]
fn ratchets_are_still_needed() {
    for (path, limit) in RATCHETS {
        let text = std::fs::read_to_string(root().join(path)).expect(path);
        let lines = text.lines().count();
        assert!(lines > LINES_MAX, "{path}: {lines} lines: take it off the list");
        assert!(lines + 50 > *limit, "{path}: {lines} lines: lower its ratchet from {limit}");
    }
}

#[test]
fn no_clock_in_proto_and_shard() {
    check(&sources(CLOCKLESS, ".rs"), clock);
}

#[test]
fn no_async_runtime_outside_control() {
    let folders = ["engine/proto/src", "engine/shard/src", "engine/platform/src", "bench/src"];
    let mut files = sources(&folders, ".rs");
    files.retain(|file| !MAY_BE_ASYNC.iter().any(|part| file.path.starts_with(part)));
    check(&files, runtime);
    let all_sync = |folder: &str| !["engine/control", "bench"].contains(&folder);
    for (folder, _) in ARROWS.iter().filter(|(folder, _)| all_sync(folder)) {
        let manifest =
            std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect(folder);
        for name in dependencies(&manifest) {
            assert!(!ASYNC_RUNTIMES.contains(&name.as_str()), "{folder} depends on {name}");
        }
    }
}

#[test]
fn no_unsafe_outside_platform() {
    let mut files = rust_sources();
    files.retain(|file| {
        // The baselines and rivals are programs of their own, outside the workspace.
        !["engine/platform/", "bench/baselines/", "bench/rivals/"]
            .iter()
            .any(|folder| file.path.starts_with(folder))
    });
    check(&files, unsafe_code);
}

#[test]
fn every_unsafe_says_why_it_is_sound() {
    let files = sources(&["engine/platform", "bench"], ".rs");
    check(&files, safety_comments);
}

#[test]
fn safe_crates_forbid_unsafe() {
    for folder in SAFE_CRATES {
        let lib = format!("{folder}/src/lib.rs");
        let text = std::fs::read_to_string(root().join(&lib)).expect(&lib);
        check(&[Source { path: lib, text }], forbids_unsafe);
    }
}

#[test]
fn crates_depend_along_the_arrows() {
    for (folder, allowed) in ARROWS {
        let path = format!("{folder}/Cargo.toml");
        let manifest = std::fs::read_to_string(root().join(&path)).expect(&path);
        let complaints = arrows(&path, &manifest, allowed);
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

#[test]
fn every_engine_module_has_a_head() {
    check(&sources(&["engine"], ".rs"), |path, text| {
        // A sub-folder of tests and a list of test vectors belong to the module beside them.
        if is_test(path) { Vec::new() } else { module_head(path, text) }
    });
}

#[test]
fn nothing_is_left_behind() {
    check(&rust_sources(), leftovers);
}

#[test]
fn links_in_the_docs_are_alive() {
    check(&sources(&["docs", "README.md", "tests", "docker", "bench"], ".md"), |path, text| {
        dead_links(path, text, |target| root().join(target).exists())
    });
}

#[test]
fn the_top_level_is_as_it_was_agreed() {
    let output = std::process::Command::new("git")
        .args(["ls-tree", "--name-only", "HEAD"])
        .current_dir(root())
        .output()
        .expect("git");
    let names = String::from_utf8(output.stdout).expect("names in UTF-8");
    let complaints = top_level(&names.lines().map(str::to_owned).collect::<Vec<_>>());
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Each rule finds what is planted, and does not cry where nothing is.
#[test]
fn rules_find_what_is_planted() {
    let path = "engine/proto/src/planted.rs";
    let rules: &[(Rule, &str, &str)] = &[
        (
            columns,
            "let long = 1; // xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "",
        ),
        (clock, "let now = std::time::Instant::now();", "// Instant::now is not asked here"),
        (clock, "use std::time::{Duration, SystemTime};", "let text = \"SystemTime\";"),
        (runtime, "use tokio::net::TcpStream;", "/* tokio */ let tokio_free = 1;"),
        (runtime, "async fn serve() {}", "fn asynchronous() {}"),
        (unsafe_code, "unsafe { close(3) }", "#![forbid(unsafe_code)] // unsafe"),
        (leftovers, "dbg!(count);", "let dbg = 1;"),
        (leftovers, "todo!()", "/// what to do"),
        (leftovers, concat!("// FIX", "ME later"), "// fixed"),
        (safety_comments, "\nunsafe { close(3) }", "\n// SAFETY: ours\nunsafe { close(3) }"),
        (module_head, "use std::io;", "//! Owns: nothing"),
        (forbids_unsafe, "//! Head", "#![forbid(unsafe_code)]"),
    ];
    for (index, (rule, planted, innocent)) in rules.iter().enumerate() {
        let planted = planted.replace("xxxx", "xxxxxxxx");
        assert!(!rule(path, &planted).is_empty(), "rule {index} missed {planted:?}");
        assert!(rule(path, innocent).is_empty(), "rule {index} cried over {innocent:?}");
    }
    assert!(!size(path, &"\n".repeat(601)).is_empty());
    assert!(size(path, &"\n".repeat(600)).is_empty());
    assert!(!size("engine/shard/src/shard.rs", &"\n".repeat(261)).is_empty());
    let manifest = "[dependencies]\nseedring-shard.workspace = true\nthiserror = \"2\"\n\
                    [dev-dependencies]\nseedring = { path = \"x\" }\n";
    assert_eq!(arrows("x", manifest, &["seedring-proto"]).len(), 1);
    assert!(arrows("x", manifest, &["seedring-shard"]).is_empty());
    let text = "[a](gone.md) [b](https://example.org/x) [c](#here)\n```\n[d](code)\n```\n";
    assert_eq!(dead_links("docs/README.md", text, |_| false).len(), 1);
    assert!(
        dead_links("docs/README.md", text, |target| target == Path::new("docs/gone.md")).is_empty()
    );
    assert_eq!(top_level(&["scripts".to_owned(), ".gitignore".to_owned()]).len(), 1);
}
