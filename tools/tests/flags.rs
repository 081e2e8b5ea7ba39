//! Flags as people know them from elsewhere, and what is said about doubtful ones.

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::ffi::OsStr;
use std::process::Command;

use common::{fixture, run, tandem};

#[test]
fn a_stop_string_ends_the_text_and_is_not_printed() {
    let model = fixture("pocket-q8_0.gguf");
    let report = |stop: &[&str]| {
        let mut args = [
            "run",
            "--json",
            "--temp",
            "0",
            "-n",
            "12",
            "-p",
            "This package",
            "-m",
        ]
        .map(OsStr::new)
        .to_vec();
        args.push(model.as_os_str());
        args.extend(stop.iter().map(OsStr::new));
        run(&args, b"").ok().json()
    };
    let whole = report(&[])["text"].as_str().unwrap().to_string();
    // In the middle of a token or across two of them: a word's end and the next one's beginning.
    let at = whole.match_indices(' ').nth(2).unwrap().0;
    let stop = &whole[at - 1..at + 2];
    let found = report(&["--stop", "never", "--stop", stop]);
    assert_eq!(found["stop"], "stop_string");
    assert_eq!(found["stop_string"], stop);
    assert_eq!(found["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!(report(&["--stop", "never said"])["text"], whole);
    tandem!("run", "-m", model, "-p", "a", "--stop", "").fails(2, "a text is wanted");
}

#[test]
fn guesses_are_counted_and_change_nothing() {
    let model = fixture("pocket-q8_0.gguf");
    let report = |most: &str| {
        tandem!(
            "run",
            "--json",
            "--raw",
            "-m",
            model,
            "--temp",
            "0",
            "-n",
            "80",
            "-p",
            "the library, the library, the library, the library,",
            "--max-draft",
            most
        )
        .ok()
        .json()
    };
    let (plain, guessed) = (report("0"), report("15"));
    assert_eq!(plain["ids"], guessed["ids"]);
    assert_eq!(
        (&plain["n_drafted"], &plain["n_accepted"]),
        (&0.into(), &0.into())
    );
    let (drafted, accepted) = (&guessed["n_drafted"], &guessed["n_accepted"]);
    assert!(accepted.as_u64() > Some(0) && accepted.as_u64() <= drafted.as_u64());
    tandem!("run", "-m", model, "-p", "a", "--max-draft", "16").fails(2, "a number up to 15");
}

#[test]
fn flags_are_taken_as_people_know_them() {
    let model = fixture("pocket-q8_0.gguf");
    let text = |args: &[&str]| {
        let mut all = vec![
            "run",
            model.to_str().unwrap(),
            "-p",
            "The library",
            "--temp",
            "0",
        ];
        all.extend(args);
        let all: Vec<_> = all.into_iter().map(OsStr::new).collect();
        run(&all, b"").ok()
    };
    let short = text(&["-n", "4"]).text();
    assert_eq!(text(&["-n", "4", "-s", "-1", "-c", "64"]).text(), short);
    let all = ["-n", "4", "--top-k", "-1", "-t", "-1"];
    assert_eq!(text(&all).text(), short);
    // No limit but the context's.
    let long = text(&["-n", "-1", "-c", "40"]);
    assert!(long.text().starts_with(short.trim_end()) && !long.stderr.contains("max_tokens"));
    tandem!("run", model, "-p", "a", "-s", "-2").fails(2, "-1 for a random one");
    tandem!("run", model, "-p", "a", "-n", "-2").fails(2, "-1 for no limit");
    tandem!("run", model, "-p", "a", "-t", "0").fails(2, "-1 for the default");
    tandem!("run", model, "-p", "a", "--top-k", "-2").fails(2, "-1 for all tokens");
    tandem!("run", "-p", "a").fails(2, "MODEL");
    run(&["run".as_ref(), model.as_ref()], b"a prompt").fails(2, "hint: --prompt-file -");
    // An empty variable is as good as none.
    let empty = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args([
            "run",
            model.to_str().unwrap(),
            "-p",
            "The library",
            "--temp",
            "0",
            "-n",
            "4",
        ])
        .env("TANDEM_CPU", "")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(empty.stdout).unwrap(), short);
}

#[test]
fn what_gives_doubtful_results_is_said_once() {
    let model = fixture("pocket-q8_0.gguf");
    let stderr = |args: &[&str]| {
        let mut all = vec!["run", model.to_str().unwrap(), "-n", "1"];
        all.extend(args);
        let all: Vec<_> = all.into_iter().map(OsStr::new).collect();
        run(&all, b"").ok().stderr
    };
    assert!(!stderr(&["-p", "a"]).contains("warning"));
    let beyond = stderr(&["-p", "a", "--ctx", "100000"]);
    assert_eq!(
        beyond.matches("the model was trained on").count(),
        1,
        "{beyond}"
    );
    let cores = stderr(&["-p", "a", "--threads", "5000"]);
    assert_eq!(
        cores.matches("more than there are cores").count(),
        1,
        "{cores}"
    );
    let twice = stderr(&["--raw", "-p", "<s>a"]);
    assert_eq!(twice.matches("two BOS tokens").count(), 1, "{twice}");
    let long = "word ".repeat(50);
    tandem!("run", model, "-p", long, "--ctx", "6").fails(1, "give a larger --ctx");
}
