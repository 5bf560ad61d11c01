//! Passkeys, kept out of logs.
//!
//! Owns: what of a tracker's address or message may be shown. Never: used for anything sent on
//! the wire.
//! Flow: every log line, error and listing that mentions a tracker goes through here.

const MASK: &str = "***";
/// Runs of letters and digits of this length are taken for secrets: passkeys in use have 16 to
/// 64.
const SECRET_RUN: usize = 16;
const SECRET_KEYS: [&str; 13] = [
    "passkey",
    "authkey",
    "auth",
    "key",
    "pass",
    "password",
    "pid",
    "secret",
    "token",
    "torrent_pass",
    "uid",
    "user",
    "sig",
];

/// The address with secrets masked: user information, path segments and query values that look
/// like
/// keys (16 or more letters and digits in a row, with a digit among them or all hexadecimal),
/// and the
/// values of parameters named like keys. The host stays readable.
#[must_use]
pub fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return mask_words(url);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{MASK}@{host}"),
        None => authority.to_owned(),
    };
    let tail = tail.split('#').next().unwrap_or("");
    let (path, query) = match tail.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (tail, None),
    };
    let path: Vec<String> = path.split('/').map(mask_segment).collect();
    let mut out = format!("{scheme}://{host}{}", path.join("/"));
    if let Some(query) = query {
        let pairs: Vec<String> = query.split('&').map(mask_pair).collect();
        out.push('?');
        out.push_str(&pairs.join("&"));
    }
    out
}

/// Text from a tracker or a library made fit to show: secrets masked word by word, control
/// characters
/// (terminal escapes) dropped, at most `chars_max` characters.
#[must_use]
pub fn redact_text(text: &str, chars_max: usize) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c == '\n' || c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control() && !is_direction_override(*c))
        .take(chars_max)
        .collect();
    let words: Vec<String> = clean
        .split(' ')
        .map(|word| if word.contains("://") { redact(word) } else { mask_words(word) })
        .collect();
    words.join(" ")
}

fn is_direction_override(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn mask_segment(segment: &str) -> String {
    match segment.split_once('=') {
        Some(_) => mask_pair(segment),
        None => mask_words(segment),
    }
}

fn mask_pair(pair: &str) -> String {
    let Some((key, value)) = pair.split_once('=') else {
        return mask_words(pair);
    };
    let named = SECRET_KEYS.contains(&key.to_ascii_lowercase().as_str());
    let value = if named && !value.is_empty() { MASK.to_owned() } else { mask_words(value) };
    format!("{key}={value}")
}

fn mask_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars().chain(std::iter::once('\0')) {
        // A percent-encoded secret is one run too.
        if c.is_ascii_alphanumeric() || c == '%' {
            run.push(c);
            continue;
        }
        out.push_str(if is_secret(&run) { MASK } else { &run });
        run.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

fn is_secret(run: &str) -> bool {
    run.len() >= SECRET_RUN
        && (run.bytes().any(|b| b.is_ascii_digit()) || run.bytes().all(|b| b.is_ascii_hexdigit())
            // Mixed case in the middle of a long run is a base64 key, not a word.
            || run.bytes().skip(1).any(|b| b.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_the_rest_stays() {
        let table = [
            ("http://t.example/announce", "http://t.example/announce"),
            (
                "https://t.example/0123456789abcdef0123456789abcdef/announce",
                "https://t.example/***/announce",
            ),
            (
                "http://t.example/announce.php?passkey=short",
                "http://t.example/announce.php?passkey=***",
            ),
            ("http://t.example/a?x=0123456789abcdef01&y=2#frag", "http://t.example/a?x=***&y=2"),
            ("http://me:hunter2@t.example:80/announce", "http://***@t.example:80/announce"),
            ("http://t.example/passkey=abc/announce", "http://t.example/passkey=***/announce"),
            ("http://t.example/aGVsbG9Xb3JsZEhlbGxv/announce", "http://t.example/***/announce"),
            ("udp://tracker.opentracker.org:1337", "udp://tracker.opentracker.org:1337"),
            ("0123456789abcdef0123", "***"),
        ];
        for (url, shown) in table {
            assert_eq!(redact(url), shown);
        }
    }

    #[test]
    fn text_loses_escapes_and_keys() {
        let text =
            "bad \u{1b}[31mkey http://t.example/0123456789abcdef01/announce\n0123456789abcdef01";
        assert_eq!(redact_text(text, 500), "bad [31mkey http://t.example/***/announce ***");
        assert_eq!(redact_text("abcdef", 3), "abc");
    }
}
