//! A running `tandem serve`, and what is asked of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::common::{fixture, tandem};

/// A running server, on a port of its own.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(more: &[&str]) -> Server {
        let (server, log) = Server::open(Server::spawn(&[&["--port", "0"], more].concat()));
        // It must be read to its end, or the server would wait for that.
        thread::spawn(move || log.for_each(drop));
        server
    }

    /// One that was started, when it listens, and the rest of its log.
    pub(crate) fn open(mut child: Child) -> (Server, impl Iterator<Item = String> + Send) {
        let log = child.stderr.take().unwrap();
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| line.strip_prefix("listening on http://").map(String::from));
        let address = address.expect("it listens");
        (Server { child, address }, lines)
    }

    pub(crate) fn spawn(more: &[&str]) -> Child {
        let bundle = fixture("pocket.tandem");
        let flags = ["--ctx", "512", "--bundle", bundle.to_str().unwrap()];
        Server::spawn_with(&fixture("pocket-q8_0.gguf"), &[&flags, more].concat())
    }

    pub(crate) fn spawn_with(model: &Path, more: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["serve", "--threads", "2", "--model"])
            .arg(model)
            .args(more)
            .env_remove("TANDEM_CPU")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The status and the whole answer to a request as it stands.
    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request).unwrap();
        Answer::read(stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw(&request(path, body, ""))
    }

    /// The text that a composition answers in a conversation.
    pub(crate) fn chat(&self, body: &Value) -> String {
        let answer = self.post("/v1/chat/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_string()
    }

    pub(crate) fn gauge(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(mut stream: impl std::io::Read) -> Answer {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let head = head.to_ascii_lowercase();
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_string(),
        };
        Answer {
            status: status.unwrap_or(0),
            head,
            body,
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A refusal with this status and code.
    pub(crate) fn refuses(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        assert_eq!(error["code"], *code, "{error}");
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
    }

    /// The text of a stream of chunks, and how it ended.
    pub(crate) fn streamed(&self) -> (String, String) {
        let (mut text, mut reason) = (String::new(), String::new());
        assert!(self.body.ends_with("data: [DONE]\n\n"), "{}", self.body);
        for line in self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: {"))
        {
            let chunk: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
            let choice = &chunk["choices"][0];
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
        (text, reason)
    }
}

pub(crate) fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let n = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..n]);
        body = rest[n..].trim_start_matches("\r\n");
    }
    out
}

pub(crate) fn request(path: &str, body: &Value, headers: &str) -> Vec<u8> {
    let body = body.to_string();
    let n = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\nConnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn asks(model: &str, text: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    })
}

pub(crate) const TEXTS: [&str; 4] = [
    "This package provides the shared library for reading and writing images in many formats.",
    "This package contains the documentation of the compiler in HTML.",
    "A game of cards for one player. It has forty rules and a high score list.",
    "Tools to test and repair file systems on a disk, for the command line.",
];
pub(crate) const MODELS: [&str; 4] = [
    "summarize",
    "translate-de",
    "summarize-fr",
    "summarize-fr-lc",
];

/// What the command says to the same.
pub(crate) fn said(model: &str, text: &str) -> String {
    let run = tandem!(
        "run",
        "--model",
        fixture("pocket-q8_0.gguf"),
        "--bundle",
        fixture("pocket.tandem"),
        "--compose",
        model,
        "--temp",
        "0",
        "-n",
        "24",
        "--threads",
        "2",
        "--json",
        "--prompt",
        text
    );
    run.ok().json()["text"].as_str().unwrap().to_string()
}

/// What comes of a stream up to its first text: the answer is at work then.
pub(crate) fn until_text(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let is_text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        ["\"content\":\"", "\"text\":\""].iter().any(|key| {
            let mut places = text.match_indices(key);
            places.any(|(at, _)| !text[at + key.len()..].starts_with('"'))
        })
    };
    while !is_text(&bytes) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
    }
    bytes
}

/// Sends the server a signal.
pub(crate) fn signal(server: &Server, name: &str) {
    let id = server.child.id().to_string();
    let status = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(status.success());
}
