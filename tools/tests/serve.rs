//! `tandem serve`, asked over real sockets. That clients written by others are content with it,
//! `.ci/run` shows.
#![cfg(feature = "serve")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;
#[path = "common/pocket.rs"]
mod pocket;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{fixture, tandem};
use pocket::pocket_with;
use serde_json::{Value, json};
use tandem_formats::{Gguf, Value as GgufValue, Writer};

/// A running server, on a port of its own.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(more: &[&str]) -> Server {
        let (server, log) = Server::open(Server::spawn(&[&["--port", "0"], more].concat()));
        // It must be read to its end, or the server would wait for that.
        thread::spawn(move || log.for_each(drop));
        server
    }

    /// One that was started, when it listens, and the rest of its log.
    fn open(mut child: Child) -> (Server, impl Iterator<Item = String> + Send) {
        let log = child.stderr.take().unwrap();
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| line.strip_prefix("listening on http://").map(String::from));
        let address = address.expect("it listens");
        (Server { child, address }, lines)
    }

    fn spawn(more: &[&str]) -> Child {
        let bundle = fixture("pocket.tandem");
        let flags = ["--ctx", "512", "--bundle", bundle.to_str().unwrap()];
        Server::spawn_with(&fixture("pocket-q8_0.gguf"), &[&flags, more].concat())
    }

    fn spawn_with(model: &Path, more: &[&str]) -> Child {
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
    fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request).unwrap();
        Answer::read(stream)
    }

    fn get(&self, path: &str) -> Answer {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw(&request(path, body, ""))
    }

    /// The text that a composition answers in a conversation.
    fn chat(&self, body: &Value) -> String {
        let answer = self.post("/v1/chat/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_string()
    }

    fn gauge(&self, name: &str) -> f64 {
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

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(mut stream: impl std::io::Read) -> Answer {
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

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A refusal with this status and code.
    fn refuses(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        assert_eq!(error["code"], *code, "{error}");
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
    }

    /// The text of a stream of chunks, and how it ended.
    fn streamed(&self) -> (String, String) {
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

fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let n = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..n]);
        body = rest[n..].trim_start_matches("\r\n");
    }
    out
}

fn request(path: &str, body: &Value, headers: &str) -> Vec<u8> {
    let body = body.to_string();
    let n = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n}\r\nConnection: close\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

fn asks(model: &str, text: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    })
}

const TEXTS: [&str; 4] = [
    "This package provides the shared library for reading and writing images in many formats.",
    "This package contains the documentation of the compiler in HTML.",
    "A game of cards for one player. It has forty rules and a high score list.",
    "Tools to test and repair file systems on a disk, for the command line.",
];
const MODELS: [&str; 4] = [
    "summarize",
    "translate-de",
    "summarize-fr",
    "summarize-fr-lc",
];

/// What the command says to the same.
fn said(model: &str, text: &str) -> String {
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

#[test]
fn compositions_say_what_the_command_says_alone_and_beside_each_other() {
    let server = Server::start(&[]);
    let cases: Vec<_> = MODELS.iter().flat_map(|m| TEXTS.map(|t| (*m, t))).collect();
    let wanted: Vec<_> = cases
        .iter()
        .map(|(model, text)| said(model, text))
        .collect();
    let ask = |i: usize| {
        let (model, text) = cases[i];
        let mut body = asks(model, text);
        if i.is_multiple_of(2) {
            return server.chat(&body);
        }
        body["stream"] = true.into();
        server.post("/v1/chat/completions", &body).streamed().0
    };
    // One by one, then all at once, when every prompt is in the cache.
    for (i, wanted) in wanted.iter().enumerate().take(5) {
        assert_eq!(ask(i), *wanted, "{:?}", cases[i]);
    }
    for _ in 0..2 {
        let answers: Vec<_> = thread::scope(|scope| {
            let ask = &ask;
            let threads: Vec<_> = (0..cases.len())
                .map(|i| scope.spawn(move || ask(i)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(answers, wanted);
    }
    assert!(server.gauge("tandem_prompt_cached_tokens_total") > 0.0);
    assert!(server.gauge("tandem_composition_switches_total") > 4.0);
    assert!(server.gauge("tandem_cache_tokens") > 0.0);

    let listed = server.get("/v1/models").json();
    let ids: Vec<_> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids[0], "pocket-q8_0");
    assert!(MODELS.iter().all(|model| ids.contains(model)), "{ids:?}");
    assert_eq!(
        server.get("/v1/models/summarize-fr").json()["parent"],
        "pocket-q8_0"
    );
}

#[test]
fn prefixes_are_kept_for_whom_they_are_of() {
    let server = Server::start(&["--parallel", "2"]);
    let ask = |model: &str, more: Value| {
        let mut body =
            json!({"model": model, "prompt": TEXTS[0], "temperature": 0, "max_tokens": 8});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", &body).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        (
            answer["choices"][0]["text"].as_str().unwrap().to_string(),
            cached,
        )
    };
    let none = json!({"cache_prompt": false});
    let base = ask("base", none.clone()).0;
    let other = ask("summarize-fr", none.clone()).0;
    let (text, cached) = ask("base", json!({}));
    assert_eq!((text, cached), (base.clone(), 0));
    // Another composition sees nothing of it.
    let (text, cached) = ask("summarize-fr", json!({}));
    assert_eq!((text, cached), (other.clone(), 0));
    for _ in 0..2 {
        let (text, cached) = ask("base", json!({}));
        assert_eq!(text, base);
        assert!(cached > 10);
        assert_eq!(ask("summarize-fr", json!({})).0, other);
    }
    assert_eq!(ask("base", none).1, 0);
    // Several choices read the prompt once, with the cache or without.
    let before = server.gauge("tandem_prompt_tokens_total");
    let body = json!({"model": "base", "prompt": "Another text, which nobody asked for before this one.",
        "n": 3, "max_tokens": 8, "seed": 3, "cache_prompt": false, "temperature": 1.5});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    let n_prompt = answer["usage"]["prompt_tokens"].as_f64().unwrap();
    let n_computed = server.gauge("tandem_prompt_tokens_total") - before;
    assert!(n_computed <= n_prompt + 2.0, "{n_computed} of {n_prompt}");
}

#[test]
fn prefixes_outlive_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["--cache-dir", path, "--api-key", "one", "--api-key", "two"];
    let ask = |server: &Server, key: &str, model: &str| {
        let key = format!("Authorization: Bearer {key}\r\n");
        let body = json!({"model": model, "prompt": TEXTS[0], "temperature": 0, "max_tokens": 8});
        let answer = server.raw(&request("/v1/completions", &body, &key)).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap();
        (
            answer["choices"][0]["text"].as_str().unwrap().to_string(),
            cached,
        )
    };
    let end = |mut server: Server| {
        Command::new("kill")
            .arg(server.child.id().to_string())
            .status()
            .unwrap();
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
    };
    let files = || -> Vec<_> {
        std::fs::read_dir(path)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect()
    };
    let server = Server::start(&flags);
    let (base, _) = ask(&server, "one", "base");
    let (composed, _) = ask(&server, "one", "summarize-fr");
    end(server);
    assert_eq!(files().len(), 2);

    // Whose they are they are still.
    let server = Server::start(&flags);
    assert_eq!(ask(&server, "two", "base"), (base.clone(), 0));
    let (text, cached) = ask(&server, "one", "base");
    assert!(text == base && cached > 10, "{cached}");
    let (text, cached) = ask(&server, "one", "summarize-fr");
    assert!(text == composed && cached > 10, "{cached}");
    end(server);
    assert_eq!(files().len(), 3);

    // Torn and spoiled ones are not used.
    for (i, file) in files().iter().enumerate() {
        let mut bytes = std::fs::read(file).unwrap();
        match i {
            0 => bytes.truncate(bytes.len() / 2),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        }
        std::fs::write(file, bytes).unwrap();
    }
    let server = Server::start(&flags);
    assert_eq!(ask(&server, "one", "base"), (base, 0));
    assert_eq!(ask(&server, "one", "summarize-fr"), (composed, 0));
}

#[test]
fn answers_are_of_the_form_that_was_asked_for() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["game", "tool"]}, "n": {"type": "integer", "minimum": 3, "maximum": 9}},
        "required": ["kind", "n"],
        "additionalProperties": false,
    });
    let mut body = asks("summarize", TEXTS[2]);
    body["max_tokens"] = 100.into();
    let format = |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    body["response_format"] = format(&schema);
    for temperature in [0, 2] {
        body["temperature"] = temperature.into();
        let value: Value = serde_json::from_str(&server.chat(&body)).unwrap();
        assert!(
            matches!(value["kind"].as_str(), Some("game" | "tool")),
            "{value}"
        );
        assert!((3..=9).contains(&value["n"].as_i64().unwrap()), "{value}");
    }
    body["response_format"] = json!({"type": "regex", "pattern": "[0-9]{3}-[ab]{1,9}!"});
    let text = server.chat(&body);
    assert!(
        text.len() > 5 && text.as_bytes()[3] == b'-' && text.ends_with('!'),
        "{text}"
    );
    body["response_format"] = format(&json!({"type": "array", "uniqueItems": true}));
    server
        .post("/v1/chat/completions", &body)
        .refuses(400, "invalid_schema");
    body["response_format"] = json!({"type": "regex", "pattern": "(["});
    server
        .post("/v1/chat/completions", &body)
        .refuses(400, "invalid_schema");

    // Stop strings are looked for across tokens, and never shown.
    let text = server.chat(&asks("summarize", TEXTS[0]));
    let stop = &text[text.len() / 2..text.len() / 2 + 3];
    let mut body = asks("summarize", TEXTS[0]);
    body["stop"] = json!([stop, "\u{2603}"]);
    assert_eq!(server.chat(&body), text[..text.find(stop).unwrap()]);
    body["stream"] = true.into();
    let streamed = server.post("/v1/chat/completions", &body).streamed();
    assert_eq!(
        streamed,
        (
            text[..text.find(stop).unwrap()].to_string(),
            "stop".to_string()
        )
    );

    // The prompt's own probabilities, as evaluation harnesses ask for them.
    let body =
        json!({"model": "base", "prompt": TEXTS[1], "echo": true, "logprobs": 1, "max_tokens": 0});
    let answer = server.post("/v1/completions", &body).json();
    let logprobs = &answer["choices"][0]["logprobs"];
    let n = logprobs["tokens"].as_array().unwrap().len();
    assert_eq!(n as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    let values = logprobs["token_logprobs"].as_array().unwrap();
    assert!(
        values[0].is_null() && values[1..].iter().all(|v| v.as_f64().unwrap() <= 0.0),
        "{logprobs}"
    );
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    let server = Server::start(&["--api-key", "secret", "--max-body", "100K"]);
    server.get("/v1/models").refuses(401, "invalid_api_key");
    assert_eq!(server.get("/health").json()["status"], "ok");
    let key = "Authorization: Bearer secret\r\n";
    let ask = |change: Value| {
        let mut body = asks("summarize", TEXTS[0]);
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        server.raw(&request("/v1/chat/completions", &body, key))
    };
    ask(json!({"model": "sumarize"})).refuses(404, "model_not_found");
    ask(json!({"model": "base"})).refuses(400, "no_chat_template");
    let long = "word ".repeat(2000);
    let long = json!({"messages": [{"role": "user", "content": long}]});
    ask(long).refuses(400, "context_length_exceeded");
    let image =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    ask(json!({ "messages": image })).refuses(400, "unsupported_content");
    let wrong = ask(json!({"temperature": -1}));
    assert_eq!(wrong.json()["error"]["param"], "temperature");
    for (field, value) in [
        ("n", json!(0)),
        ("stop", json!("")),
        ("logit_bias", json!({"999999999": 1})),
        ("top_logprobs", json!(3)),
        ("seed", json!(1.5)),
        ("messages", json!([])),
        ("tool_choice", json!("perhaps")),
    ] {
        let wrong = ask(json!({ field: value }));
        assert_eq!(
            (wrong.status, &wrong.json()["error"]["param"]),
            (400, &json!(field))
        );
    }
    let origin = format!("{key}Origin: http://evil.example\r\n");
    server
        .raw(&request(
            "/v1/chat/completions",
            &asks("summarize", "x"),
            &origin,
        ))
        .refuses(403, "origin_not_allowed");
    let evil =
        server.raw(b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    evil.refuses(403, "host_not_allowed");
    let claim = format!(
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n{key}Content-Length: 200000\r\n\r\n"
    );
    server
        .raw(claim.as_bytes())
        .refuses(413, "request_too_large");
    let twice = format!(
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{key}Content-Length: 29\r\n\r\n{{\"content\":\"a\",\"content\":\"b\"}}"
    );
    server.raw(twice.as_bytes()).refuses(400, "invalid_json");
    assert_eq!(server.raw(b"nonsense\r\n\r\n").status, 400);
    let wrong = server.get("/v1/chat/completions");
    assert!(
        wrong.status == 405 && wrong.head.contains("allow: post"),
        "{}",
        wrong.head
    );
}

#[test]
fn who_leaves_costs_nothing_more() {
    let server = Server::start(&["--parallel", "2"]);
    let mut body = asks("base", "x");
    body.as_object_mut().unwrap().remove("messages");
    let ends = server
        .post(
            "/tokenize",
            &json!({"content": "</s><|im_end|><|endoftext|>"}),
        )
        .json();
    let bias: serde_json::Map<_, _> = ends["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| (id.to_string(), json!(-100)))
        .collect();
    body["prompt"] = TEXTS[0].into();
    body["max_tokens"] = 480.into();
    body["logit_bias"] = bias.into();
    for stream in [true, false] {
        body["stream"] = stream.into();
        let mut connection = TcpStream::connect(&server.address).unwrap();
        connection
            .write_all(&request("/v1/completions", &body, ""))
            .unwrap();
        let start = Instant::now();
        while server.gauge("tandem_requests_processing") < 1.0 && start.elapsed().as_secs() < 10 {
            thread::yield_now();
        }
        drop(connection);
        let start = Instant::now();
        while server.gauge("tandem_requests_processing") > 0.0 {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "it works on for nobody"
            );
        }
    }
}

#[test]
fn it_ends_when_it_is_told_to_and_lets_answers_end() {
    let mut server = Server::start(&[]);
    let mut body = asks("summarize-fr", TEXTS[0]);
    body["stream"] = true.into();
    let mut connection = TcpStream::connect(&server.address).unwrap();
    connection
        .write_all(&request("/v1/chat/completions", &body, ""))
        .unwrap();
    let first = until_text(&mut connection);
    let _idle = TcpStream::connect(&server.address).unwrap();
    let killed = Command::new("kill")
        .arg(server.child.id().to_string())
        .status()
        .unwrap();
    assert!(killed.success());
    let rest = std::io::Read::chain(&first[..], connection);
    assert_eq!(
        Answer::read(rest).streamed().0,
        said("summarize-fr", TEXTS[0])
    );
    let start = Instant::now();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(TcpStream::connect(&server.address).is_err());
}

/// What comes of a stream up to its first text: the answer is at work then.
fn until_text(stream: &mut TcpStream) -> Vec<u8> {
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
fn signal(server: &Server, name: &str) {
    let id = server.child.id().to_string();
    let status = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(status.success());
}

#[test]
fn answers_without_grace_end_with_an_error() {
    let mut server = Server::start(&["--parallel", "1"]);
    let ask = |stream: bool| {
        let mut body = json!({"prompt": "The", "max_tokens": 500, "logit_bias": {"2": -100}});
        body["stream"] = stream.into();
        let mut connection = TcpStream::connect(&server.address).unwrap();
        connection
            .write_all(&request("/v1/completions", &body, ""))
            .unwrap();
        connection
    };
    let mut streamed = ask(true);
    let first = until_text(&mut streamed);
    signal(&server, "-TERM");
    thread::sleep(Duration::from_millis(50));
    signal(&server, "-TERM");
    let rest = Answer::read(std::io::Read::chain(&first[..], streamed));
    assert!(
        rest.body.contains("\"code\":\"shutting_down\""),
        "{}",
        rest.body
    );
    assert!(!rest.body.contains("finish_reason\":\""), "{}", rest.body);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn bundles_are_read_anew_when_somebody_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("b.tandem");
    std::fs::copy(fixture("pocket.tandem"), &bundle).unwrap();
    let path = bundle.to_str().unwrap();
    let flags = ["--port", "0", "--alias", "one=summarize", "--bundle", path];
    let child = Server::spawn_with(&fixture("pocket-q8_0.gguf"), &flags);
    let (server, mut log) = Server::open(child);
    let wanted = server.chat(&asks("summarize-fr", TEXTS[0]));
    let counted = |server: &Server| {
        let metrics = server.get("/metrics").body;
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.contains("model=\"summarize-fr\",kind=\"predicted\""));
        line.unwrap().to_string()
    };
    let before = counted(&server);

    // What is none is not taken, and all stays as it was.
    let new = folder.path().join("new.tandem");
    std::fs::write(&new, b"no bundle").unwrap();
    std::fs::rename(&new, &bundle).unwrap();
    signal(&server, "-HUP");
    assert!(log.any(|line| line.contains("the bundles are used as they were")));
    assert_eq!(server.chat(&asks("summarize-fr", TEXTS[0])), wanted);

    std::fs::copy(fixture("pocket.tandem"), &new).unwrap();
    std::fs::rename(&new, &bundle).unwrap();
    signal(&server, "-HUP");
    assert!(log.any(|line| line.contains("read anew")));
    assert_ne!(counted(&server), before, "counts go on");
    assert_eq!(
        server.chat(&asks("one", TEXTS[1])),
        said("summarize", TEXTS[1])
    );
    assert_eq!(server.chat(&asks("summarize-fr", TEXTS[0])), wanted);
}

#[test]
fn what_is_not_wanted_is_not_there() {
    let server = Server::start(&["--no-page", "--no-ollama"]);
    for path in ["/", "/page.js", "/api/tags"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.get("/v1/models").status, 200);
}

/// Killed at whatever moment, it starts again, and says the same.
#[test]
fn a_server_that_was_killed_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["--cache-dir", path, "--cache", "2M"];
    let texts: Vec<String> = (0..12)
        .map(|i| format!("Package {i}. {}", TEXTS[i % 4]))
        .collect();
    let wanted: Vec<String> = texts
        .iter()
        .map(|text| said("summarize-fr", text))
        .collect();
    for round in 0..8 {
        let mut server = Server::start(&flags);
        let address = server.address.clone();
        let asking = thread::spawn({
            let texts = texts.clone();
            move || {
                let mut answers = Vec::new();
                for text in &texts {
                    let body = asks("summarize-fr", text);
                    let Ok(mut connection) = TcpStream::connect(&address) else {
                        break;
                    };
                    let sent = connection.write_all(&request("/v1/chat/completions", &body, ""));
                    let answer = Answer::read(connection);
                    if sent.is_err() || answer.status != 200 {
                        break;
                    }
                    answers.push(answer.json()["choices"][0]["message"]["content"].clone());
                }
                answers
            }
        });
        // In the middle of answers; and while files are written, which a friendly signal begins.
        thread::sleep(Duration::from_millis(20 + 23 * round));
        if round % 2 == 1 {
            signal(&server, "-TERM");
            thread::sleep(Duration::from_millis(round * 3));
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for (answer, wanted) in asking.join().unwrap().iter().zip(&wanted) {
            assert_eq!(answer, wanted);
        }
    }
    let server = Server::start(&flags);
    for (text, wanted) in texts.iter().zip(&wanted) {
        assert_eq!(server.chat(&asks("summarize-fr", text)), *wanted);
    }
}

/// Calls come in the form that the template writes them in, and are told in OpenAI's.
#[test]
fn calls_are_written_as_the_template_has_them() {
    let objects = r#"{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}"#;
    let named = "<s>{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}";
    let xml = "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}\
               <parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>";
    let marked = "<s>call:{{ c.function.name }}{{ \"{\" }}{% for k, v in c.function.arguments.items() %}{{ k }}:\
                  {% if v is string %}<s>{{ v }}<s>{% else %}{{ v }}{% endif %}{{ \",\" if not loop.last }}\
                  {% endfor %}{{ \"}\" }}</s>";
    let glm = "<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n\
               <arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>";
    let lfm2 = "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={% if v is string %}\
                '{{ v }}'{% else %}{{ v }}{% endif %}{{ \", \" if not loop.last }}{% endfor %})";
    let tools = json!([
        {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {
            "room": {"enum": ["hall", "bath's"]}, "note": {"type": "string", "maxLength": 12},
            "level": {"type": "integer", "minimum": 10, "maximum": 99}, "on": {"$ref": "#/$defs/flag"},
            "who": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 20}, {"type": "null"}]}},
            "required": ["room", "level", "note"], "additionalProperties": false, "$defs": {"flag": {"type": "boolean"}}}}},
        {"type": "function", "function": {"name": "stop"}},
    ]);
    for (before, call, after) in [
        ("[CALLS] [", objects, "]"),
        ("", named, ""),
        ("", xml, ""),
        ("", marked, ""),
        ("", glm, ""),
        ("[CALL] [", lfm2, "]"),
    ] {
        let template = format!(
            "{{{{ tools | tojson }}}}{{% for m in messages %}}{{{{ m.content }}}}{{% if m.tool_calls %}}{before}\
             {{% for c in m.tool_calls %}}{call}{{% endfor %}}{after}{{% endif %}}</s>{{% endfor %}}"
        );
        let model = pocket_with("tokenizer.chat_template", GgufValue::Str(&template));
        let child = Server::spawn_with(model.path(), &["--ctx", "1024", "--port", "0"]);
        let (server, log) = Server::open(child);
        thread::spawn(move || log.for_each(drop));
        let ask = |choice: Value, seed: u64| {
            let body = json!({
                "messages": [{"role": "user", "content": TEXTS[0]}], "tools": tools, "tool_choice": choice,
                "seed": seed, "max_tokens": 600,
            });
            let answer = server.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            let choice = answer.json()["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            let call = choice["message"]["tool_calls"][0].clone();
            assert_eq!(call["id"].as_str().unwrap().len(), 9);
            let name = call["function"]["name"].as_str().unwrap().to_string();
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            (name, arguments, call)
        };
        for seed in 0..6 {
            let light = json!({"type": "function", "function": {"name": "light"}});
            let (name, arguments, call) = ask(light, seed);
            assert_eq!(name, "light");
            assert!(
                ["hall", "bath's"].contains(&arguments["room"].as_str().unwrap()),
                "{arguments}"
            );
            assert!(
                (10..=99).contains(&arguments["level"].as_i64().unwrap()),
                "{arguments}"
            );
            assert!(
                arguments["note"].as_str().unwrap().chars().count() <= 12,
                "{arguments}"
            );
            let who = arguments.get("who");
            assert!(
                who.is_none_or(
                    |who| who.is_null() || who.as_str().is_some_and(|who| who.chars().count() > 1)
                ),
                "{arguments}"
            );
            assert!(
                arguments.get("on").is_none_or(Value::is_boolean),
                "{arguments}"
            );
            let (name, arguments, _) = ask("required".into(), seed);
            assert!(
                name == "light" || (name == "stop" && arguments == json!({})),
                "{name} {arguments}"
            );
            // The call goes back to the template as it was told.
            let messages = json!([
                {"role": "user", "content": "Light?"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": "done"},
            ]);
            let body = json!({"messages": messages, "tools": tools});
            let prompt = server.post("/apply-template", &body).json()["prompt"].clone();
            assert!(prompt.as_str().unwrap().contains("light"), "{prompt}");
        }
        // Schemas that refer to themselves, and to each other in numbers, are looked at no longer than others.
        let mut definitions =
            json!({"a0": {"anyOf": [{"$ref": "#/$defs/a0"}, {"type": "string"}]}});
        for i in 1..40 {
            let before = json!({"$ref": format!("#/$defs/a{}", i - 1)});
            definitions[format!("a{i}")] = json!({"anyOf": [before, before]});
        }
        let parameters = json!({"type": "object", "$defs": definitions,
            "properties": {"x": {"$ref": "#/$defs/a39"}, "y": {"$ref": "#/$defs/a0"}}});
        let function = json!({"name": "f", "parameters": parameters});
        let body = json!({
            "messages": [{"role": "user", "content": "?"}], "max_tokens": 3,
            "tools": [{"type": "function", "function": function}], "tool_choice": "required",
        });
        let answer = server.post("/v1/chat/completions", &body);
        assert!([200, 400].contains(&answer.status), "{}", answer.body);
        let (name, arguments, _) =
            ask(json!({"type": "function", "function": {"name": "stop"}}), 1);
        assert_eq!((&*name, arguments), ("stop", json!({})));
    }
}

/// Whoever thinks before an answer may do so before one of a schema, too.
#[test]
fn thoughts_come_before_what_was_asked_for() {
    let template = "{% if thoughts %}<think>{% endif %}{% for m in messages %}{{ m.content }}</s>{% endfor %}\
                    {% if closed %}<think></think>{% endif %}";
    let model = pocket_with("tokenizer.chat_template", GgufValue::Str(template));
    let child = Server::spawn_with(model.path(), &["--ctx", "512", "--port", "0"]);
    let (server, log) = Server::open(child);
    thread::spawn(move || log.for_each(drop));
    let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}});
    for args in [json!({}), json!({"closed": true})] {
        let body = json!({
            "messages": [{"role": "user", "content": "Well?"}], "response_format": schema, "temperature": 0,
            "chat_template_kwargs": args,
        });
        let content = server.chat(&body);
        assert!(["\"yes\"", "\"no\""].contains(&&*content), "{content}");
    }
}

/// A model without a vocabulary with one of 512 words.
fn with_vocabulary(gguf: &[u8]) -> Vec<u8> {
    let gguf = Gguf::parse(gguf).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf
        .metadata()
        .filter(|(key, _)| !key.starts_with("tokenizer."))
    {
        writer.add(key, *value).unwrap();
    }
    let words: Vec<String> = (0..512).map(|i| format!("\u{2581}w{i}")).collect();
    writer
        .add("tokenizer.ggml.model", GgufValue::Str("llama"))
        .unwrap();
    writer.add_strings("tokenizer.ggml.tokens", &words).unwrap();
    writer
        .add_array("tokenizer.ggml.scores", &[0_f32; 512])
        .unwrap();
    writer
        .add_array("tokenizer.ggml.token_type", &[1_i32; 512])
        .unwrap();
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    writer.to_vec(&data).unwrap()
}

/// Models that cannot go back go on from where prompts parted before.
#[test]
fn recurrent_models_keep_what_prompts_have_in_common() {
    let Some(model) = common::shared("peer/logits/qwen35-f16.gguf") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let spoken = folder.path().join("spoken.gguf");
    let bytes = with_vocabulary(&std::fs::read(model).unwrap());
    std::fs::write(&spoken, bytes).unwrap();
    let child = Server::spawn_with(&spoken, &["--ctx", "256", "--port", "0"]);
    let (server, log) = Server::open(child);
    thread::spawn(move || log.for_each(drop));
    let ask = |last: u32, cache: bool| {
        let prompt: Vec<u32> = (1..60).chain([last, last + 1, last + 2]).collect();
        let body =
            json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "cache_prompt": cache});
        let answer = server.post("/v1/completions", &body).json();
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        (answer["choices"][0]["text"].clone(), cached.unwrap())
    };
    let wanted: Vec<_> = (0..3).map(|i| ask(70 + 5 * i, false).0).collect();
    // The first is new; the second parts from it, where a copy is kept from then on.
    assert_eq!(ask(70, true), (wanted[0].clone(), 0));
    assert_eq!(ask(75, true), (wanted[1].clone(), 0));
    assert_eq!(ask(80, true), (wanted[2].clone(), 59));
}

#[test]
fn a_unix_socket_is_for_its_group_only_and_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.sock");
    let mut child = Server::spawn(&["--host", path.to_str().unwrap()]);
    let start = Instant::now();
    let ask = || {
        let mut stream = UnixStream::connect(&path).ok()?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
        Some(Answer::read(stream)).filter(|answer| answer.status == 200)
    };
    let answer = loop {
        match ask() {
            Some(answer) => break answer,
            None => thread::sleep(Duration::from_millis(20)),
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    };
    assert_eq!(answer.json()["status"], "ok");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o660
    );
    // It is in use: nobody else may take it.
    let mut other = Server::spawn(&["--host", path.to_str().unwrap()]);
    assert_eq!(other.wait().unwrap().code(), Some(1));
    Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_port_that_is_taken_and_names_that_clash_are_errors() {
    let server = Server::start(&[]);
    let port = server.address.rsplit_once(':').unwrap().1.to_string();
    let serve = |more: &[&str]| {
        let mut args = vec!["serve", "--model"];
        let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
        args.push(model.to_str().unwrap());
        args.extend(["--bundle", bundle.to_str().unwrap()]);
        args.extend(more);
        let args: Vec<_> = args.iter().map(std::ffi::OsStr::new).collect();
        common::run(&args, b"")
    };
    serve(&["--port", &port]).fails(1, &port);
    serve(&["--port", "0", "--name-base", "summarize"]).fails(1, "two models called summarize");
    serve(&["--port", "0", "--default", "nothing"]).fails(1, "no model called nothing");
    serve(&["--port", "0", "--allow-origin", "*"]).fails(1, "API key");
    serve(&["--port", "0", "--cache", "1X"]).fails(2, "512M");
}
