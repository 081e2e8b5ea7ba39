//! How `tandem serve` begins, ends, is killed, and what outlives it.
#![cfg(feature = "serve")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;
#[expect(dead_code, reason = "as above")]
#[path = "common/server.rs"]
mod server;

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{fixture, shared};
use serde_json::json;
use server::*;
use tandem_formats::{Gguf, Value as GgufValue, Writer};

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
    let Some(model) = shared("peer/logits/qwen35-f16.gguf") else {
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
