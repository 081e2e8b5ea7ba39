#!/usr/bin/env python3
"""Trains and evaluates all ways to do two tasks at once, on Debian's package descriptions.

    benches/study.py [--tandem PATH] [--shared DIR] [--seeds 1,2] [--no-train] [--again]

For the compositions sum-fr and sum-de (a long English description in, a short French or German one
out) it compares the model alone, each adapter alone, merges, two inferences, an adapter trained for
the composition (joint expert), and the calibrations. It writes benches/study/: results.json,
README.md and chart.svg.

What is trained is kept in target/study and not trained again (but with --again), so that the study
can be stopped and goes on. --no-train evaluates what has been trained so far.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time

from study_chart import chart

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUDY = ROOT / "benches" / "study"
TASKS = {"sum-fr": "French", "sum-de": "German"}
PROMPT = "{{ input }}\n=> "
MAX_TOKENS = 32
# The Python reference (../shared/models/pocket) tells its figures for at most so many examples.
N_REFERENCE = 150

# The merges without anything learned. Weights and densities are chosen for each task on the first
# N_CHOICE training examples, so that none loses for want of a good one.
N_CHOICE = 100
WEIGHTS = [0.5, 0.7, 1.0]
DENSITIES = [0.5, 0.7, 0.9]
MERGES = {"linear": False, "cat": False, "ties": True, "dare_linear": True}  # has a density

# What is learned: name, command, its flags. All calibrations on the same merge: cat at 0.5 and 0.5.
TRAININGS = [
    ("lc", "calibrate", ["--kind", "output_bias", "--lr", "1e-2"]),
    ("lcpp", "calibrate", ["--kind", "low_rank", "--rank", "4", "--lr", "3e-3"]),
    ("lc-weight", "calibrate", ["--kind", "weight_bias", "--lr", "1e-3"]),
    ("projection", "calibrate", ["--kind", "projection", "--lr", "1e-2"]),
    ("joint", "train-lora", []),
]
KINDS = {"lc": "output_bias", "lc-weight": "weight_bias", "lcpp": "low_rank", "projection": "projection"}

# The rows of the tables, in their order: name, label, group.
METHODS = [
    ("none", "model alone", "plain"),
    ("summarize", "adapter summarize", "plain"),
    ("translate", "adapter translate", "plain"),
    ("linear", "merge linear", "plain"),
    ("cat", "merge cat", "plain"),
    ("cat-half", "merge cat at 0.5 and 0.5", "plain"),
    ("ties", "merge TIES", "plain"),
    ("dare_linear", "merge DARE", "plain"),
    ("multi-step", "summarize, then translate", "costly"),
    ("joint", "joint-expert LoRA", "costly"),
    ("joint-given", "joint-expert LoRA (PEFT's)", "costly"),
    ("projection", "cat + projection", "learned"),
    ("lc-weight", "cat + LC (weight bias)", "learned"),
    ("lc", "cat + LC (output bias)", "learned"),
    ("lcpp", "cat + LC++", "learned"),
    ("lc-given", "cat + LC (PyTorch's)", "given"),
    ("lcpp-given", "cat + LC++ (PyTorch's)", "given"),
]


def write(path, text):
    """Writes a file, all of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


class Study:
    def __init__(self, args):
        self.args = args
        self.work = ROOT / "target" / "study"
        self.work.mkdir(parents=True, exist_ok=True)
        self.base = ROOT / "fixtures" / "pocket-q8_0.gguf"
        self.pocket = args.shared / "models" / "pocket"
        self.data = args.shared / "data" / "debian"

    def tandem(self, *command):
        command = [str(self.args.tandem), *map(str, command)]
        print("$", shlex.join(command), file=sys.stderr, flush=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    def train(self, task, name, command, flags, seed):
        """Trains one thing, unless that has been done; what is known of it, or None."""
        out = self.work / f"{task}-{name}-{seed}{'' if name == 'joint' else '.safetensors'}"
        record = self.work / f"{task}-{name}-{seed}.json"
        if record.exists() and not self.args.again:
            return json.loads(record.read_text())
        if self.args.no_train:
            return None
        recipe = STUDY / (f"joint-{task[-2:]}.toml" if name == "joint" else f"{task}.toml")
        flags = [*flags, "--data", self.data / f"{task}.train.jsonl", "--seed", seed, "--out", out]
        flags += ["--curve", self.work / f"{task}-{name}-{seed}.svg"]
        if self.args.threads:
            flags += ["--threads", self.args.threads]
        is_resumed = pathlib.Path(f"{out}.checkpoint").exists() and not self.args.again
        if is_resumed:
            flags.append("--resume")
        command = [str(self.args.tandem), command, *map(str, [recipe, *flags])]
        print("$", shlex.join(command), file=sys.stderr, flush=True)
        start = time.monotonic()
        with open(record.with_suffix(".log"), "wb") as log:
            process = subprocess.Popen(command, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{name} of {task} failed: {record.with_suffix('.log').read_text()}")
        seconds, cpu = round(time.monotonic() - start, 1), round(usage.ru_utime + usage.ru_stime, 1)
        known = {"task": task, "name": name, "seed": seed, "seconds": seconds, "cpu_seconds": cpu}
        if is_resumed:
            known |= {"seconds": None, "cpu_seconds": None}  # of the last part only
        write(record, json.dumps(known) + "\n")
        return known

    def train_all(self):
        wanted = [
            (task, name, command, flags, seed)
            for seed in self.args.seeds
            for name, command, flags in TRAININGS
            for task in TASKS
        ]
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            known = list(pool.map(lambda training: self.train(*training), wanted))
        return [k for k in known if k]

    def bundle(self, task, name, compositions, adapters=()):
        """Makes a bundle of these compositions (lines of TOML) and the single-task adapters."""
        translate = "translate-" + task[-2:]
        lines = ["[bundle]", f'name = "{name}"', f"base = {quoted(self.base)}"]
        singles = [("summarize", self.pocket / "adapters" / "summarize")]
        singles += [(translate, self.pocket / "adapters" / translate)]
        for adapter, path in [*singles, *adapters]:
            lines += ["[[adapter]]", f'name = "{adapter}"', f"path = {quoted(path)}"]
        for composition in compositions:
            lines += ["[[composition]]", f"prompt = {json.dumps(PROMPT)}", *composition]
        recipe, out = self.work / f"{name}.toml", self.work / f"{name}.tandem"
        recipe.write_text("\n".join(lines) + "\n")
        self.tandem("bundle", "create", recipe, "--out", out)
        return out

    def eval(self, bundle, data, names, flags=()):
        """The rows that `tandem eval` gives, by name, and the ROUGE-L of each example."""
        predictions = bundle.with_suffix(".predictions.jsonl")
        command = ["eval", "--model", self.base, "--bundle", bundle, "--data", data]
        command += ["--compose", ",".join(names), "--max-tokens", MAX_TOKENS, "--output", "json"]
        command += ["--predictions", predictions, *flags]
        report = json.loads(self.tandem(*command))
        scores = {}
        for line in map(json.loads, predictions.read_text().splitlines()):
            scores.setdefault(line["composition"], []).append(100 * line["rougeL"])
        return report, {row["composition"]: row for row in report["rows"]}, scores

    def choose_merges(self, task):
        """Weight and density of each merge: those that are best on some training examples."""
        record = self.work / f"{task}-choice.json"
        if record.exists() and not self.args.again:
            return json.loads(record.read_text())
        options = {}
        for merge, has_density in MERGES.items():
            for weight in WEIGHTS:
                for density in DENSITIES if has_density else [None]:
                    name = f"{merge}-{weight}-{density}".replace(".", "_")
                    options[name] = (merge, weight, density)
        compositions = [[f'name = "{name}"', *merge_lines(task, *how)] for name, how in options.items()]
        bundle = self.bundle(task, f"{task}-choice", compositions)
        flags = ["--limit", N_CHOICE, "--tokenizer", "whitespace"]
        _, rows, _ = self.eval(bundle, self.data / f"{task}.train.jsonl", options, flags)
        best = {}
        for name, (merge, weight, density) in options.items():
            score = rows[name]["rougeL"]["mean"]
            if score > best.get(merge, (-1,))[0]:
                best[merge] = (score, weight, density)
        best = {merge: {"weight": w, "density": d, "score": round(s, 2)} for merge, (s, w, d) in best.items()}
        write(record, json.dumps(best) + "\n")
        return best

    def evaluate(self, task, merges, trained):
        """All rows of one task."""
        translate = "translate-" + task[-2:]
        compositions, adapters = [], []
        names = {"none": ("none", None), "summarize": ("summarize", None), translate: ("translate", None)}

        def add(name, method, seed, lines):
            compositions.append([f'name = "{name}"', *lines])
            names[name] = (method, seed)

        def add_calibrated(name, method, seed, path):
            calibration = f'calibration = {{ kind = "{KINDS[method.removesuffix("-given")]}", path = {quoted(path)} }}'
            add(name, method, seed, merge_lines(task, "cat", 0.5, None) + [calibration])

        def add_joint(name, method, seed, path):
            adapters.append((f"{name}-adapter", path))
            add(name, method, seed, [f'adapters = [{{ name = "{name}-adapter" }}]'])

        add("cat-half", "cat-half", None, merge_lines(task, "cat", 0.5, None))
        for merge, how in merges.items():
            add(merge, merge, None, merge_lines(task, merge, how["weight"], how["density"]))
        for name in ["lc", "lcpp"]:
            path = self.pocket / f"calibration-{task}-{name}.safetensors"
            add_calibrated(f"{name}-given", f"{name}-given", None, path)
        given = self.pocket / "adapters" / f"joint-summarize-{task[-2:]}"
        if given.exists():
            add_joint("joint-given", "joint-given", None, given)
        for known in trained:
            if known["task"] != task:
                continue
            name, seed = known["name"], known["seed"]
            stem = f"{task}-{name}-{seed}"
            if name == "joint":
                add_joint(f"joint-{seed}", name, seed, self.work / stem)
            else:
                add_calibrated(f"{name}-{seed}", name, seed, self.work / f"{stem}.safetensors")

        bundle = self.bundle(task, task, compositions, adapters)
        steps = ["--multi-step", f"summarize,{translate}"]
        names[f"summarize -> {translate}"] = ("multi-step", None)
        asked = [name for name, (method, _) in names.items() if method != "multi-step"]
        data = self.data / f"{task}.test.jsonl"
        report, rows, scores = self.eval(bundle, data, asked, [*steps, "--tokenizer", "whitespace"])
        _, words, _ = self.eval(bundle, data, asked, [*steps, "--tokenizer", "words"])
        results = []
        for name, (method, seed) in names.items():
            row = rows[name]
            training = [k for k in trained if (k["task"], k["name"], k["seed"]) == (task, method, seed)]
            results.append({
                "task": task,
                "method": method,
                "seed": seed,
                "rougeL": rounded(row["rougeL"]),
                "rougeL_first": round(statistics.mean(scores[name][:N_REFERENCE]), 2),
                "rougeL_words": rounded(words[name]["rougeL"]),
                "inferences": row["inferences"],
                "ms_per_example": round(row["ms_per_example"], 1),
                "extra_parameters": row["extra_parameters"],
                "extra_bytes": row["extra_bytes"],
                "training_seconds": training[0]["seconds"] if training else None,
                "training_cpu_seconds": training[0]["cpu_seconds"] if training else None,
            })
        return report["examples"], results


def quoted(path):
    return json.dumps(str(path))


def rounded(mean):
    return {key: round(value, 2) for key, value in mean.items()}


def merge_lines(task, merge, weight, density):
    """A composition's merge of the two single-task adapters, in TOML."""
    members = [f'{{ name = "{name}", weight = {weight} }}' for name in ("summarize", "translate-" + task[-2:])]
    lines = [f"adapters = [{', '.join(members)}]", f'merge = "{merge}"']
    if density is not None:
        lines.append(f"density = {density}")
    if merge.startswith("dare"):
        lines.append("seed = 1")
    return lines


def cpu_name():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def n_parameters(path):
    """Of a PEFT adapter, from the header of its safetensors file."""
    with open(path / "adapter_model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return sum(rows * columns for rows, columns in shapes)


def of_method(results, task, method):
    return [r for r in results["rows"] if (r["task"], r["method"]) == (task, method)]


def grouped(n):
    return f"{n:,}"


def summary_table(results):
    """One row a method: the mean over the seeds, and each seed's figure."""
    adapter = results["adapter_parameters"]
    lines = ["| | " + " | ".join(TASKS) + " | inferences | extra parameters | of an adapter's | extra bytes |"]
    lines.append("|---|" + "---:|" * (len(TASKS) + 4))
    for method, label, group in METHODS:
        rows = {task: of_method(results, task, method) for task in TASKS}
        if group == "given" or not any(rows.values()):
            continue
        cells = [f"**{label}**" if group == "learned" else label]
        for task in TASKS:
            scores = [r["rougeL"]["mean"] for r in rows[task]]
            cell = f"{statistics.mean(scores):.1f}" if scores else "-"
            cells.append(cell + (f" ({', '.join(f'{s:.1f}' for s in scores)})" if len(scores) > 1 else ""))
        one = next(r for task in TASKS for r in rows[task])
        share = f"{100 * one['extra_parameters'] / adapter:.1f} %"
        cells += [str(one["inferences"]), grouped(one["extra_parameters"]), share, grouped(one["extra_bytes"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def full_table(results):
    """One row a method, task and seed."""
    lines = [
        "| task | method | seed | ROUGE-L, 95 % interval | first 150 | with words | ms an example | training, s (CPU s) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task in TASKS:
        for method, label, _ in METHODS:
            for r in of_method(results, task, method):
                mean, low, high = (r["rougeL"][key] for key in ("mean", "low", "high"))
                cells = [task, label, "" if r["seed"] is None else str(r["seed"])]
                cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
                cells += [f"{r['rougeL_first']:.1f}", f"{r['rougeL_words']['mean']:.1f}", f"{r['ms_per_example']:.0f}"]
                seconds = r["training_seconds"]
                cpu = r["training_cpu_seconds"]
                cells.append(("" if seconds is None else f"{seconds:.0f}") + ("" if cpu is None else f" ({cpu:.0f})"))
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def missing(results):
    """What a whole study has and these results have not."""
    labels = {method: label for method, label, _ in METHODS}
    found = {(r["task"], r["method"], r["seed"]) for r in results["rows"]}
    wanted = [(task, name, seed) for name, _, _ in TRAININGS for task in TASKS for seed in results["seeds"]]
    lacking = [f"{labels[name]} of {task} with seed {seed}" for task, name, seed in wanted if (task, name, seed) not in found]
    if not lacking:
        return ""
    return f"Not trained when this was written: {'; '.join(lacking)}. `benches/study.py` goes on with them.\n\n"


def page(results):
    choices = []
    for task, merges in results["merges"].items():
        how = [f"{m} {c['weight']}" + (f" at density {c['density']}" if c["density"] else "") for m, c in merges.items()]
        choices.append(f"{task}: {', '.join(how)}")
    machine = results["machine"]
    is_trained = any(row["method"] == "joint" for row in results["rows"])
    joint = "; the joint expert is a LoRA of the same rank as the\nadapters, learned on the same examples by [joint-fr.toml](joint-fr.toml) and [joint-de.toml](joint-de.toml)." if is_trained else "."
    return f"""# Two tasks in one inference: the study

Written by `{results['command']}` on {results['date']} (seeds {', '.join(map(str, results['seeds']))}); the figures are also in
[results.json](results.json).

The model of [fixtures/](../../fixtures/README.md) (5.8 million parameters, Q8_0) has an adapter that makes a
long description of a Debian package a short one, and others that translate short ones into French
and German. Wanted is both at once: a long English description in, a short French (`sum-fr`) or
German (`sum-de`) one out.

{summary_table(results)}

ROUGE-L (F-measure, %, words being what stands between white space) on {results['n_test']} test examples a task. Of
what is learned, the mean over the seeds is shown, and each seed's figure (seeds
{', '.join(map(str, results['seeds']))}). An adapter has {grouped(results['adapter_parameters'])} parameters; extra bytes are those in a
bundle, where adapters are stored in Q8_0 and calibrations in F16. Calibrations are learned on the
merge `cat` at weights 0.5 and 0.5, on {grouped(results['n_train'])} training examples a task (some of them held out to tell the best
step) by [sum-fr.toml](sum-fr.toml) and [sum-de.toml](sum-de.toml){joint}

{missing(results)}![ROUGE-L of all methods](chart.svg)

Weights and densities of the merges were chosen on the first {N_CHOICE} training examples
(weights {', '.join(map(str, WEIGHTS))}, densities {', '.join(map(str, DENSITIES))}): {'; '.join(choices)}.

## All figures

`first {N_REFERENCE}` is the ROUGE-L of the first {N_REFERENCE} examples, for comparison with the Python reference (26.4 for LC
and 26.8 for LC++ on sum-fr, 14.4 and 14.1 on sum-de, 12.9 and 7.2 for the merge at 0.5 and 0.5).
Rows "PyTorch's" and "PEFT's" are its calibrations and adapter, evaluated here. `with words` is
ROUGE-L as the Python package `rouge-score` takes words by default, to which a letter with an accent
is none. Times are of {machine['cpu']}, {machine['cores']} cores shared with other work: the CPU seconds
tell more.

{full_table(results)}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", type=pathlib.Path, default=ROOT / "target" / "release" / "tandem")
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared", help="data and models")
    parser.add_argument("--seeds", default="1,2", type=lambda text: [int(s) for s in text.split(",")])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--threads", help="threads of a training")
    parser.add_argument("--no-train", action="store_true", help="evaluate what has been trained")
    parser.add_argument("--again", action="store_true", help="train what has been trained")
    args = parser.parse_args()
    study = Study(args)
    start = time.monotonic()
    trained = study.train_all()
    rows, merges = [], {}
    for task in TASKS:
        merges[task] = study.choose_merges(task)
        n_test, results = study.evaluate(task, merges[task], trained)
        rows += results
    n_train = sum(1 for _ in open(study.data / "sum-fr.train.jsonl"))
    results = {
        "command": "benches/study.py",
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "seconds_of_this_run": round(time.monotonic() - start),
        "seeds": args.seeds,
        "n_test": n_test,
        "n_train": n_train,
        "adapter_parameters": n_parameters(study.pocket / "adapters" / "summarize"),
        "merges": merges,
        "rows": rows,
    }
    STUDY.mkdir(exist_ok=True)
    write(STUDY / "results.json", json.dumps(results, indent=1) + "\n")
    write(STUDY / "README.md", page(results))
    write(STUDY / "chart.svg", chart(results, METHODS, TASKS))
    print(summary_table(results))


if __name__ == "__main__":
    main()
