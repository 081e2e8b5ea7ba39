#!/usr/bin/env python3
"""Times `tandem run` with and without guessed tokens, in turn, on prompts of several kinds.

    benches/guesses.py [--tandem PATH] [--rounds N] [--smollm FILE] [--noise FILE]

Each prompt is answered `--rounds` times with `--max-draft 0` and with the default; the best time of each
counts. Fails where the texts differ. `--smollm` is SmolLM2-135M-Instruct, whose texts are worth guessing;
`--noise` a model of `tandem synth`, whose texts are not.
"""

import argparse
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
DESCRIPTIONS = [
    "This package contains the shared library that programs need to read and write compressed archives.",
    "gspell provides a flexible API to add spell checking to a GTK+ application. It features a checker for "
    "text views, a dialog that checks a whole document, and support for several dictionaries at once.",
    "Play a game of 8-ball or 9-ball, either in training mode or against a friend. For beginners, the game "
    "has a tutorial that introduces the user interface and the controls.",
    "A collection of programs for TCP programming in shell scripts. There is also a small library that makes "
    "it easier to create TCP/IP sockets.",
]


def answer(args, flags, max_draft):
    command = [args.tandem, "run", "--json", "--max-draft", str(max_draft), "-t", args.threads, *flags]
    report = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    speed = report["generated_tokens_per_second"]
    report["seconds"] = (report["n_generated"] - 1) / speed if speed else 0.0
    return report


def measure(args, name, prompts):
    n, seconds, drafted, accepted, ratios = 0, [0.0, 0.0], 0, 0, []
    for flags in prompts:
        rounds = [[answer(args, flags, most) for most in (0, 15)] for _ in range(args.rounds)]
        plain, guessed = (min(column, key=lambda r: r["seconds"]) for column in zip(*rounds))
        if any(report["ids"] != plain["ids"] for both in rounds for report in both):
            raise SystemExit(f"{name}: guesses changed the text of {flags}")
        n += plain["n_generated"] - 1
        seconds[0] += plain["seconds"]
        seconds[1] += guessed["seconds"]
        drafted += guessed["n_drafted"]
        accepted += guessed["n_accepted"]
        ratios.append(plain["seconds"] / max(guessed["seconds"], 1e-9))
    before, after = (n / s for s in seconds)
    print(f"| {name} | {n} | {before:.1f} | {after:.1f} | {after / before:.2f} | {min(ratios):.2f} | {accepted} of {drafted} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", default="target/release/tandem")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--smollm")
    parser.add_argument("--noise")
    args = parser.parse_args()

    text = (ROOT / "README.md").read_text()
    code = (ROOT / "engine/src/c_api/generate.rs").read_text()[2000:3800]
    greedy = ["--temp", "0", "-n", "200"]
    print("| text | tokens | tokens/s without | with guesses | ratio | worst answer | guesses that came |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    fixtures = ROOT / "fixtures"
    pocket = ["-m", fixtures / "pocket-q8_0.gguf", "--bundle", fixtures / "pocket.tandem", *greedy]
    measure(args, "pocket, `summarize-fr` of package descriptions", [
        [*pocket, "--compose", "summarize-fr", "-p", text] for text in DESCRIPTIONS])
    if args.smollm:
        model = ["-m", args.smollm]
        rewrite = "Repeat the following text and correct its spelling:\n\n"
        summarize = "Summarize the following text in a few sentences:\n\n"
        pieces = [text[i : i + 900] for i in (600, 1500)]
        measure(args, "SmolLM2, rewriting", [[*model, *greedy, "-p", rewrite + piece] for piece in pieces])
        measure(args, "SmolLM2, summarizing", [
            [*model, *greedy, "-p", summarize + piece] for piece in [*pieces, *DESCRIPTIONS]])
        measure(args, "SmolLM2, C declarations going on", [[*model, *greedy, "--raw", "-p", code]])
        measure(args, "SmolLM2, a story at temperature 1.5", [
            [*model, "-n", "200", "--temp", "1.5", "--seed", "3", "-p", f"Tell me a story about {what}."]
            for what in ("rain", "a dog", "stones")])
    if args.noise:
        measure(args, "random weights, at temperature 1", [
            ["-m", args.noise, "-n", "100", "--temp", "1", "--seed", "3", "--raw", "-p", text[:600]]])


if __name__ == "__main__":
    main()
