//! Who may ask: keys, origins of web pages, host names.
//!
//! A server on the loopback interface can be reached by every page that its user opens in a browser. So
//! requests from pages of other origins are refused before anything is done, and so are those for a host name
//! that is not this machine's, which is how a page gets around its origin (DNS rebinding).

use std::net::IpAddr;

use blake3::Hash;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;

/// The rules.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Of the keys, of which one is needed; none where anybody may ask.
    keys: Vec<Hash>,
    /// Origins allowed beside those on loopback.
    pub origins: Vec<String>,
    /// Host names allowed beside loopback's and addresses.
    pub hosts: Vec<String>,
    /// Whether the server listens beyond loopback: then it has names in the network, too.
    pub is_public: bool,
    /// Whether it listens on a Unix socket, whose clients have to be on this machine.
    pub is_unix: bool,
}

/// Who asks, as far as it matters: those with different keys do not share what is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Of the key's hash, as it does not change with the order of keys; 0 without one.
    pub group: u64,
    /// Whose requests wait in the line: the key's, or the address's where none is needed.
    pub line: u64,
}

impl Caller {
    /// Somebody without a key.
    pub(super) fn at(peer: Peer) -> Caller {
        Caller {
            group: 0,
            line: peer.0,
        }
    }

    fn of(key: &Hash) -> Caller {
        let group = key
            .as_bytes()
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Caller { group, line: group }
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(u64);

impl Peer {
    /// This machine, by a Unix socket.
    pub(super) const HERE: Peer = Peer(0);

    /// An address; of those of version 6 the network, as whoever has one has all of it.
    pub(super) fn of(address: IpAddr) -> Peer {
        Peer(match address.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        })
    }
}

impl Access {
    pub(super) fn set_keys<'k>(&mut self, keys: impl Iterator<Item = &'k str>) {
        self.keys = keys.map(|key| blake3::hash(key.as_bytes())).collect();
    }

    /// Refuses hosts and origins that have no business here.
    pub(super) fn check_source(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let forbidden =
            |message: String, code| Err(ApiError::new(StatusCode::FORBIDDEN, message).code(code));
        let host = text(headers, header::HOST);
        let n_hosts = headers.get_all(header::HOST).iter().count();
        if n_hosts > 1 || (n_hosts == 1 && host.is_none()) {
            let message = "one Host header is wanted".to_string();
            return forbidden(message, "host_not_allowed");
        }
        if let Some(host) = host
            && !self.is_unix
            && !self.allows_host(host)
        {
            let message = format!(
                "this server is not called {:?}: --allow-host allows further names",
                clip(host)
            );
            return forbidden(message, "host_not_allowed");
        }
        if headers.contains_key(header::ORIGIN) {
            let origin = text(headers, header::ORIGIN).unwrap_or("");
            if !self.allows_origin(origin, host) {
                let message = format!(
                    "pages of {:?} may not ask: --allow-origin allows further ones",
                    clip(origin)
                );
                return forbidden(message, "origin_not_allowed");
            }
        }
        Ok(())
    }

    /// Who asks; without a key that is known, where one is needed, nobody.
    pub(super) fn caller(&self, headers: &HeaderMap, peer: Peer) -> Result<Caller, ApiError> {
        if self.keys.is_empty() {
            return Ok(Caller::at(peer));
        }
        let given = key(headers).map(|key| blake3::hash(key.as_bytes()));
        let mut caller = None;
        // Hashes are compared in constant time, and with all keys, so that no time tells anything.
        for known in &self.keys {
            if given.is_some_and(|given| given == *known) {
                caller = Some(Caller::of(known));
            }
        }
        caller.ok_or_else(|| {
            let message = "a valid API key is needed: Authorization: Bearer KEY";
            ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
        })
    }

    fn allows_host(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback_name(name)
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || self
                .hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(name))
            || (self.is_public && is_local_name(name))
    }

    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let listed = |allowed: &String| {
            (allowed == "*" && origin != "null") || allowed.trim_end_matches('/') == origin
        };
        if self.origins.iter().any(listed) {
            return true;
        }
        let Some((scheme, authority)) = origin.split_once("://") else {
            return false;
        };
        let is_web = matches!(scheme, "http" | "https");
        is_web && (is_loopback_name(without_port(authority)) || host == Some(authority))
    }

    /// The headers by which a browser lets a page read the answer; `asked` where it asks beforehand.
    pub(super) fn cors(&self, headers: &HeaderMap, asked: bool) -> Vec<(HeaderName, HeaderValue)> {
        let mut out = Vec::new();
        let Some(origin) = headers.get(header::ORIGIN) else {
            return out;
        };
        out.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
        out.push((header::VARY, HeaderValue::from_static("Origin")));
        if asked {
            let methods = HeaderValue::from_static("GET, POST, OPTIONS");
            out.push((header::ACCESS_CONTROL_ALLOW_METHODS, methods));
            let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let default = HeaderValue::from_static("authorization, content-type, x-api-key");
            let allowed = wanted.cloned().unwrap_or(default);
            out.push((header::ACCESS_CONTROL_ALLOW_HEADERS, allowed));
            let seconds = HeaderValue::from_static("600");
            out.push((header::ACCESS_CONTROL_MAX_AGE, seconds));
        }
        out
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The key that a request brings.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = text(headers, header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| text(headers, HeaderName::from_static("x-api-key")))
}

fn without_port(authority: &str) -> &str {
    // An address of version 6 is in brackets and has colons itself.
    let end = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[end..].find(':') {
        Some(colon) => &authority[..end + colon],
        None => authority,
    }
}

fn is_loopback_name(name: &str) -> bool {
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || is_address.is_ok_and(|address| address.is_loopback())
}

/// A name of this network: the machine's own, one of mDNS, or any without a dot.
fn is_local_name(name: &str) -> bool {
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_mdns = name.len() > 6 && name.to_ascii_lowercase().ends_with(".local");
    is_mdns || !name.contains('.') || name.eq_ignore_ascii_case(host_name.trim())
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    fn source(access: &Access, pairs: &[(&'static str, &str)]) -> Option<&'static str> {
        let checked = access.check_source(&headers(pairs));
        checked.err().and_then(|error| error.code)
    }

    #[test]
    fn hosts_of_others_are_refused() {
        let mut access = Access::default();
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.168.1.5",
        ] {
            assert_eq!(source(&access, &[("host", host)]), None, "{host}");
        }
        let refused = Some("host_not_allowed");
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "pi",
            "pi.local",
        ] {
            assert_eq!(source(&access, &[("host", host)]), refused, "{host}");
        }
        access.is_public = true;
        access.hosts.push("board.example".to_string());
        for host in ["pi", "pi.local:8080", "board.example"] {
            assert_eq!(source(&access, &[("host", host)]), None, "{host}");
        }
        assert_eq!(source(&access, &[("host", "evil.example")]), refused);
    }

    #[test]
    fn pages_of_others_are_refused() {
        let mut access = Access::default();
        let ask = |access: &Access, origin: &str| {
            source(access, &[("host", "127.0.0.1:8080"), ("origin", origin)])
        };
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1:1",
            "http://[::1]:5173",
        ] {
            assert_eq!(ask(&access, origin), None, "{origin}");
        }
        let refused = Some("origin_not_allowed");
        let others = [
            "http://evil.example",
            "null",
            "",
            "file://",
            "http://localhost.evil.example",
            "ftp://localhost",
        ];
        for origin in others {
            assert_eq!(ask(&access, origin), refused, "{origin}");
        }
        access.origins.push("https://page.example".to_string());
        assert_eq!(ask(&access, "https://page.example"), None);
        assert_eq!(ask(&access, "https://page.example.evil.example"), refused);
    }

    #[test]
    fn only_the_keys_open() {
        let mut access = Access::default();
        let (one, two) = (
            Peer::of([10, 0, 0, 1].into()),
            Peer::of([10, 0, 0, 2].into()),
        );
        let open = |peer| access.caller(&HeaderMap::new(), peer).unwrap();
        assert!(open(one).group == open(two).group && open(one).line != open(two).line);
        access.set_keys(["one", "two"].into_iter());
        let ask = |name, value: &str| access.caller(&headers(&[(name, value)]), Peer::HERE).ok();
        let one = ask("authorization", "Bearer one").unwrap();
        let two = ask("authorization", "bEARER two").unwrap();
        assert!(one.group != two.group && one.line != two.line && one.group != 0);
        assert_eq!(ask("x-api-key", "two"), Some(two));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer on",
            "Bearer onee",
            "Bearer ONE",
            "Basic one",
        ] {
            assert_eq!(ask("authorization", wrong), None, "{wrong}");
        }
        assert!(access.caller(&HeaderMap::new(), Peer::HERE).is_err());
    }
}
