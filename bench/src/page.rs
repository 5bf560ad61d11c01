//! Owns: a report as one HTML page that needs nothing else: text, tables, plots.
//! Never: figures of its own. Flow: the report's Markdown and its plots -> the page.
//!
//! The Markdown is what this program writes itself: headings, paragraphs, tables, lists, pictures,
//! `code`, [links](x.html).

use std::fmt::Write as _;

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; \
color: #1c1c1c; background: #ffffff }\n\
h1 { font-size: 1.6em } figure { margin: 1.5em 0 } svg { max-width: 950px; width: 100% }\n\
.table { overflow-x: auto } table { border-collapse: collapse; font-size: 0.9em }\n\
th, td { border: 1px solid #d8d8d8; padding: 0.3em 0.6em; text-align: left }\n\
th { background: #f3f3f3 } code { background: #f3f3f3; overflow-wrap: anywhere }\n";

/// `plots`: what each shows, and its SVG.
pub fn html(markdown: &str, plots: &[(String, String)]) -> String {
    let mut out = begun(markdown);
    let mut head = true;
    for block in blocks(markdown) {
        // Plots come after the first paragraph, which says what was run and where.
        put_block(&mut out, block);
        if head && !block.starts_with('#') {
            head = false;
            for (_, svg) in plots {
                let _ = writeln!(out, "<figure>\n{svg}</figure>");
            }
        }
    }
    out.push_str("</html>\n");
    out
}

/// The same with each picture where it stands; `picture` gives the SVG of a file, if it is there.
pub fn html_with(markdown: &str, picture: impl Fn(&str) -> Option<String>) -> String {
    let mut out = begun(markdown);
    for block in blocks(markdown) {
        let file = block.strip_prefix("![").and_then(|rest| rest.strip_suffix(')'));
        let file = file.and_then(|rest| Some(rest.split_once("](")?.1));
        match file.and_then(&picture) {
            Some(svg) => {
                let _ = writeln!(out, "<figure>\n{svg}</figure>");
            }
            None => put_block(&mut out, block),
        }
    }
    out.push_str("</html>\n");
    out
}

fn begun(markdown: &str) -> String {
    let title = markdown.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("Report");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n",
        escaped(title)
    )
}

fn blocks(markdown: &str) -> impl Iterator<Item = &str> {
    let blocks = markdown.split("\n\n").map(|block| block.trim_matches('\n'));
    blocks.filter(|block| !block.trim().is_empty())
}

fn put_block(out: &mut String, block: &str) {
    let mut lines = block.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(words) = line.strip_prefix("# ") {
            let _ = writeln!(out, "<h1>{}</h1>", marked(words));
        } else if let Some(words) = line.strip_prefix("## ") {
            let _ = writeln!(out, "<h2>{}</h2>", marked(words));
        } else if line.starts_with('|') {
            let mut rows = vec![line];
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(row);
            }
            put_table(out, &rows);
        } else if line.starts_with("- ") {
            out.push_str("<ul>\n");
            let mut item = Some(line);
            while let Some(words) = item {
                let _ = writeln!(out, "<li>{}</li>", marked(words.trim_start_matches("- ")));
                item = lines.next_if(|line| line.starts_with("- "));
            }
            out.push_str("</ul>\n");
        } else {
            let mut words = line.to_owned();
            let is_words = |line: &&str| !line.starts_with(['|', '#']) && !line.starts_with("- ");
            while let Some(more) = lines.next_if(is_words) {
                words.push('\n');
                words.push_str(more);
            }
            let _ = writeln!(out, "<p>{}</p>", marked(&words));
        }
    }
}

fn put_table(out: &mut String, rows: &[&str]) {
    out.push_str("<div class=\"table\"><table>\n");
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        if cells.iter().all(|cell| !cell.is_empty() && cell.chars().all(|c| c == '-')) {
            continue; // the line below the head
        }
        let kind = if number == 0 { "th" } else { "td" };
        out.push_str("<tr>");
        for cell in cells {
            let _ = write!(out, "<{kind}>{}</{kind}>", marked(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// Escaped, with `code` between its tags, and links.
fn marked(words: &str) -> String {
    let mut out = String::new();
    for (number, part) in words.split('`').enumerate() {
        let part = escaped(part);
        match number % 2 {
            0 => out.push_str(&linked(&part)),
            _ => {
                let _ = write!(out, "<code>{part}</code>");
            }
        }
    }
    out
}

/// `[words](target)` as a link; a picture's name is left as it is.
fn linked(escaped: &str) -> String {
    let mut out = String::new();
    let mut rest = escaped;
    while let Some((before, link)) = rest.split_once('[') {
        let whole = link.split_once("](").and_then(|(words, after)| {
            let (target, after) = after.split_once(')')?;
            Some((words, target, after))
        });
        match whole.filter(|_| !before.ends_with('!')) {
            Some((words, target, after)) => {
                let target = target.replace('"', "%22");
                let _ = write!(out, "{before}<a href=\"{target}\">{words}</a>");
                rest = after;
            }
            None => {
                let _ = write!(out, "{before}[");
                rest = link;
            }
        }
    }
    out.push_str(rest);
    out
}

pub fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_blocks_are_there_and_nothing_is_markup_by_accident() {
        let markdown = "# A < B\n\nRun with `x <y>`.\n\n| a | b |\n|---|---|\n| 1 | - |\n\n\
                        Versions:\n- one\n- two\n";
        let page = html(markdown, &[("speed".into(), "<svg></svg>\n".into())]);
        assert!(page.contains("<title>A &lt; B</title>") && page.contains("<h1>A &lt; B</h1>"));
        assert!(page.contains("<p>Run with <code>x &lt;y&gt;</code>.</p>"), "{page}");
        assert!(page.contains("<tr><th>a</th><th>b</th></tr>\n<tr><td>1</td><td>-</td></tr>"));
        assert!(page.contains("<p>Versions:</p>\n<ul>\n<li>one</li>\n<li>two</li>\n</ul>"));
        assert_eq!(page.matches("<svg>").count(), 1);
        assert!(!page.contains("http"), "it needs nothing else");
    }

    #[test]
    fn links_are_links_and_other_brackets_are_not() {
        assert_eq!(marked("a [b](c.html)!"), "a <a href=\"c.html\">b</a>!");
        assert_eq!(marked("![b](c.svg) [x] `[y](z)`"), "![b](c.svg) [x] <code>[y](z)</code>");
        let picture = |file: &str| (file == "c.svg").then(|| "<svg/>\n".to_owned());
        let page = html_with("# T\n\n## U\n\n![b](c.svg)\n\n![b](d.svg)\n", picture);
        assert!(page.contains("<h2>U</h2>\n<figure>\n<svg/>\n</figure>\n"), "{page}");
        assert!(page.contains("<p>![b](d.svg)</p>"), "what is not there is named: {page}");
    }
}
