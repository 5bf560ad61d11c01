//! A tracker's address.
//!
//! Owns: the split into scheme, host, port and the exact path and query bytes. Never: resolves
//! the host.
//! Flow: torrents and YAML give strings; the schedule groups by [`TrackerUrl::host_key`],
//! control dials.

use std::fmt;
use std::net::Ipv6Addr;

use super::redact::redact;

/// Longer addresses than this are refused: passkeys need a hundred bytes, no server takes more
/// than 8 KiB.
pub const URL_BYTES_MAX: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
    Udp,
}

impl Scheme {
    /// BEP 15 knows none.
    #[must_use]
    pub fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Udp => None,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Udp => "udp",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("a tracker address begins with http://, https:// or udp://")]
    NoScheme,
    #[error(
        "{0}:// trackers are not supported; use the tracker's http://, https:// or udp:// address"
    )]
    Scheme(String),
    #[error("an HTTP tracker cannot send its clients on to udp://")]
    RedirectToUdp,
    #[error("the tracker address has no host")]
    NoHost,
    #[error(
        "the tracker's host name has a character that is not allowed; write it in ASCII (punycode)"
    )]
    Host,
    #[error("the tracker's port is not a number from 1 to 65535")]
    Port,
    #[error("a udp:// tracker address names its port, as in udp://tracker.example:6969/announce")]
    NoPort,
    #[error("user and password in a tracker address are not supported")]
    UserInfo,
    #[error("the tracker address is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
}

/// An `http`, `https` or `udp` tracker address. `Debug` and `Display` mask secrets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TrackerUrl {
    scheme: Scheme,
    /// Lower case, IPv6 without brackets.
    host: String,
    port: u16,
    /// Begins with `/`, holds only bytes that may stand in a request line, otherwise as given.
    path_and_query: String,
}

impl TrackerUrl {
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::NoScheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "udp" => Scheme::Udp,
            other if other.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(UrlError::Scheme(other.chars().take(16).collect()));
            }
            _ => return Err(UrlError::NoScheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = split_authority(authority)?;
        let port = match port {
            Some(digits) => parse_port(digits)?,
            None => scheme.default_port().ok_or(UrlError::NoPort)?,
        };
        Ok(Self { scheme, host, port, path_and_query: path_and_query(tail) })
    }

    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    #[must_use]
    pub fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or("/")
    }

    /// `host`, with brackets for IPv6 and the port where it is not the scheme's own: the Host
    /// header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let own = self.scheme.default_port() == Some(self.port);
        if own { host } else { format!("{host}:{}", self.port) }
    }

    /// What requests are capped by: scheme, host and port.
    #[must_use]
    pub fn host_key(&self) -> String {
        format!("{}://{}", self.scheme.name(), self.authority())
    }

    /// Path and query with an announce's parameters after those that the address already has.
    #[must_use]
    pub fn with_parameters(&self, parameters: &str) -> String {
        let own = &self.path_and_query;
        let joint = match own.find('?') {
            None => "?",
            Some(at) if at + 1 == own.len() || own.ends_with('&') => "",
            Some(_) => "&",
        };
        format!("{own}{joint}{parameters}")
    }

    /// Where a redirect leads: absolute, `//host/path`, `/path`, or relative to this path.
    pub fn join(&self, location: &str) -> Result<Self, UrlError> {
        let to = self.resolve(location)?;
        if to.scheme == Scheme::Udp { Err(UrlError::RedirectToUdp) } else { Ok(to) }
    }

    fn resolve(&self, location: &str) -> Result<Self, UrlError> {
        let location = location.trim();
        let plain = location.split(['/', '?', '#']).next().unwrap_or("");
        if plain.contains(':') {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{}:{location}", self.scheme.name()));
        }
        let base = format!("{}://{}", self.scheme.name(), self.authority());
        let path = self.path();
        if location.starts_with('/') {
            Self::parse(&format!("{base}{location}"))
        } else if location.starts_with('?') {
            Self::parse(&format!("{base}{path}{location}"))
        } else {
            let folder = &path[..=path.rfind('/').unwrap_or(0)];
            Self::parse(&format!("{base}{folder}{location}"))
        }
    }

    /// Text that shows the address with its secrets masked.
    #[must_use]
    pub fn redacted(&self) -> String {
        redact(&format!("{}{}", self.host_key(), self.path_and_query))
    }

    /// The whole address, secrets and all: for the wire and for comparison only.
    #[must_use]
    pub fn exposed(&self) -> String {
        format!("{}{}", self.host_key(), self.path_and_query)
    }
}

impl fmt::Display for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl fmt::Debug for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

fn split_authority(authority: &str) -> Result<(String, Option<&str>), UrlError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(UrlError::Host)?;
        let address: Ipv6Addr = inside.parse().map_err(|_| UrlError::Host)?;
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or(UrlError::Port)?),
        };
        return Ok((address.to_string(), port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.len() > 253 || !host.bytes().all(allowed) {
        return Err(UrlError::Host);
    }
    Ok((host.to_ascii_lowercase(), port))
}

fn parse_port(digits: &str) -> Result<u16, UrlError> {
    match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(UrlError::Port),
    }
}

/// Drops the fragment, encodes what may not stand in a request line, touches nothing else: a
/// passkey
/// that is percent-encoded already stays as it is.
fn path_and_query(tail: &str) -> String {
    let tail = tail.split('#').next().unwrap_or("");
    let mut out = String::with_capacity(tail.len() + 1);
    if !tail.starts_with('/') {
        out.push('/');
    }
    for b in tail.bytes() {
        if b.is_ascii_graphic()
            && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        {
            out.push(char::from(b));
        } else {
            super::announce::push_percent(&mut out, b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_exactly() {
        let url = TrackerUrl::parse("HTTP://Tracker.Example:8080/a%2fb/announce?x=1 2#f").unwrap();
        assert_eq!((url.host(), url.port()), ("tracker.example", 8080));
        assert_eq!(url.path_and_query(), "/a%2fb/announce?x=1%202");
        assert_eq!(url.authority(), "tracker.example:8080");
        let url = TrackerUrl::parse("https://[2001:DB8::1]?k=v").unwrap();
        assert_eq!((url.host(), url.port(), url.path_and_query()), ("2001:db8::1", 443, "/?k=v"));
        assert_eq!(url.authority(), "[2001:db8::1]");
        let url = TrackerUrl::parse("udp://T.example:80/announce?passkey=k").unwrap();
        assert_eq!((url.scheme(), url.path_and_query()), (Scheme::Udp, "/announce?passkey=k"));
        // Its port always shows: it has none of its own.
        assert_eq!(url.host_key(), "udp://t.example:80");
        assert_eq!(url.to_string(), "udp://t.example:80/announce?passkey=***");
    }

    #[test]
    fn parameters_join_a_query_that_is_there() {
        for (url, expected) in [
            ("http://t/announce", "/announce?a=1"),
            ("http://t/announce?", "/announce?a=1"),
            ("http://t/announce?passkey=k", "/announce?passkey=k&a=1"),
            ("http://t/announce?passkey=k&", "/announce?passkey=k&a=1"),
            ("http://t", "/?a=1"),
        ] {
            assert_eq!(TrackerUrl::parse(url).unwrap().with_parameters("a=1"), expected);
        }
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        for (url, error) in [
            ("tracker.example/announce", UrlError::NoScheme),
            ("wss://t:80/announce", UrlError::Scheme("wss".into())),
            ("udp://t/announce", UrlError::NoPort),
            ("udp://[::1]", UrlError::NoPort),
            ("http:///announce", UrlError::NoHost),
            ("http://t:0/announce", UrlError::Port),
            ("http://t:+80/announce", UrlError::Port),
            ("http://t:99999/", UrlError::Port),
            ("http://a b/", UrlError::Host),
            ("http://[::1/", UrlError::Host),
            ("http://u:p@t/", UrlError::UserInfo),
        ] {
            assert_eq!(TrackerUrl::parse(url).unwrap_err(), error, "{url}");
        }
        assert_eq!(
            TrackerUrl::parse(&format!("http://t/{}", "a".repeat(3000))),
            Err(UrlError::TooLong)
        );
    }

    #[test]
    fn redirects_resolve() {
        let url = TrackerUrl::parse("http://t:81/x/announce?k=1").unwrap();
        for (location, to) in [
            ("https://u/announce", "https://u/announce"),
            ("//u:82/a", "http://u:82/a"),
            ("/b?c=d", "http://t:81/b?c=d"),
            ("c", "http://t:81/x/c"),
            ("?z", "http://t:81/x/announce?z"),
        ] {
            assert_eq!(url.join(location).unwrap().exposed(), to);
        }
        assert!(url.join("file:///etc/passwd").is_err());
        assert_eq!(url.join("UDP://t:80/announce"), Err(UrlError::RedirectToUdp));
    }

    #[test]
    fn debug_and_display_hide_the_passkey() {
        let url = TrackerUrl::parse("http://t/0123456789abcdef0123456789abcdef/announce").unwrap();
        assert!(!format!("{url} {url:?}").contains("0123456789"));
        assert!(url.exposed().contains("0123456789"));
    }
}
