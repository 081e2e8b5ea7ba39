//! `tandem serve`, asked over real sockets. That clients written by others are content with it,
//! `.ci/run` shows.
#![cfg(feature = "serve")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;
#[expect(dead_code, reason = "as above")]
#[path = "common/server.rs"]
mod server;

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::fixture;
use serde_json::{Value, json};
use server::*;

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
fn what_is_not_wanted_is_not_there() {
    let server = Server::start(&["--no-page", "--no-ollama"]);
    for path in ["/", "/page.js", "/api/tags"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.get("/v1/models").status, 200);
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
