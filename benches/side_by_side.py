#!/usr/bin/env python3
"""Times `tandem bench` against llama.cpp's `llama-bench`, in turn, and prints the ratios.

    benches/side_by_side.py --llama-bench PATH [--tandem PATH] [--rounds N] [--threads N] MODEL...

Each round runs both programs once on each model, so that a machine that slows down slows both.
Figures are medians over the rounds, tokens per second; the ratio is the median of the rounds' own.
"""

import argparse
import json
import statistics
import subprocess


def tandem(args, model):
    command = [args.tandem, "bench", "-m", model, "-p", args.prompt, "-n", args.gen, "-t", args.threads]
    rows = json.loads(subprocess.check_output(command + ["-r", "1", "-o", "json"]))
    return {row["test"]: row for row in rows}


def llama(args, model):
    command = [args.llama_bench, "-m", model, "-p", args.prompt, "-n", args.gen, "-t", args.threads]
    rows = json.loads(subprocess.check_output(command + ["-r", "1", "-o", "json"], stderr=subprocess.DEVNULL))
    return {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": r["avg_ts"] for r in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--tandem", default="target/release/tandem")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--prompt", default="256")
    parser.add_argument("--gen", default="64")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    args = parser.parse_args()
    print("| model | test | tandem | llama.cpp | ratio | share of read bandwidth |")
    print("|---|---|---:|---:|---:|---:|")
    for model in args.models:
        rounds = [(tandem(args, model), llama(args, model)) for _ in range(args.rounds)]
        for test in rounds[0][0]:
            ours = [t[test]["tokens_per_second"] for t, _ in rounds]
            theirs = [l[test] for _, l in rounds]
            ratio = statistics.median(a / b for a, b in zip(ours, theirs))
            shares = [t[test]["bandwidth_share"] for t, _ in rounds]
            share = f"{statistics.median(shares):.2f}" if shares[0] is not None else ""
            name = model.rsplit("/", 1)[-1]
            medians = statistics.median(ours), statistics.median(theirs)
            print(f"| {name} | {test} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
