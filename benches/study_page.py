"""The study's page: its tables, in Markdown."""

import statistics

# The rows of the tables, in their order: name, label, group.
METHODS = [
    ("none", "model alone", "plain"),
    ("first", "adapter of the first task", "plain"),
    ("second", "adapter of the second task", "plain"),
    ("linear", "merge linear", "plain"),
    ("cat", "merge cat", "plain"),
    ("cat-half", "merge cat at 0.5 and 0.5", "plain"),
    ("ties", "merge TIES", "plain"),
    ("dare_linear", "merge DARE", "plain"),
    ("magnitude_prune", "merge of the largest values", "plain"),
    ("svd", "merge SVD", "plain"),
    ("slerp", "merge SLERP", "plain"),
    ("lorahub", "LoraHub's search", "plain"),
    ("multi-step", "one task, then the other", "costly"),
    ("joint", "joint-expert LoRA", "costly"),
    ("joint-given", "joint-expert LoRA (PEFT's)", "given"),
    ("projection", "cat + projection", "learned"),
    ("lc-weight", "cat + LC (weight bias)", "learned"),
    ("lc", "cat + LC (output bias)", "learned"),
    ("lcpp", "cat + LC++", "learned"),
    ("lc-given", "cat + LC (PyTorch's)", "given"),
    ("lcpp-given", "cat + LC++ (PyTorch's)", "given"),
]


def of_method(results, task, method):
    return [r for r in results["rows"] if (r["task"], r["method"]) == (task, method)]


def grouped(n):
    return f"{n:,}"


def interval(rouge):
    return f"{rouge['mean']:.1f} ({rouge['low']:.1f} to {rouge['high']:.1f})"


def table(head, rows):
    """Lines of Markdown; columns whose name begins with `<` are text, others are numbers."""
    names = [name.removeprefix("<") for name in head]
    lines = ["| " + " | ".join(names) + " |"]
    lines.append("|" + "|".join("---" if name.startswith("<") else "---:" for name in head) + "|")
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def summary_table(results):
    """One row a method: the mean over the seeds, and each seed's figure."""
    tasks = results["tasks"]
    rows = []
    for method, label, group in METHODS:
        found = {task: of_method(results, task, method) for task in tasks}
        if group == "given" or not any(found.values()):
            continue
        cells = [f"**{label}**" if group == "learned" else label]
        for task in tasks:
            scores = [r["rougeL"]["mean"] for r in found[task]]
            cell = f"{statistics.mean(scores):.1f}" if scores else "-"
            if len(scores) == 1:
                rouge = found[task][0]["rougeL"]
                cell += f" ({rouge['low']:.1f} to {rouge['high']:.1f})"
            elif scores:
                cell += f" ({', '.join(f'{s:.1f}' for s in scores)})"
            cells.append(cell)
        one = next(r for task in tasks for r in found[task])
        share = f"{100 * one['extra_parameters'] / results['adapter_parameters']:.2f} %"
        cells += [str(one["inferences"]), grouped(one["extra_parameters"]), share, grouped(one["extra_bytes"])]
        rows.append(cells)
    head = ["<", *tasks, "inferences", "extra parameters", "of an adapter's", "extra bytes"]
    return table(head, rows)


def full_table(results):
    """One row a method, task and seed."""
    rows = []
    for task in results["tasks"]:
        for method, label, _ in METHODS:
            for r in of_method(results, task, method):
                cells = [task, label, "" if r["seed"] is None else str(r["seed"]), interval(r["rougeL"])]
                cells += [f"{r['rougeL_first']:.1f}", "" if r["ms_per_example"] is None else f"{r['ms_per_example']:.0f}"]
                cells.append(duration(r["training_seconds"], r["training_cpu_seconds"]))
                rows.append(cells)
    head = ["<task", "<method", "seed", "ROUGE-L, 95 % interval", "first 150", "ms an example", "training, s (CPU s)"]
    return table(head, rows)


def duration(seconds, cpu_seconds):
    """Seconds, and CPU seconds in brackets, as far as they are known."""
    told = "" if seconds is None else f"{seconds:.0f}"
    return told if cpu_seconds is None else f"{told} ({cpu_seconds:.0f})"


def beyond_table(results):
    """What is learned beside the best of what is not, example by example."""
    labels = {method: label for method, label, _ in METHODS}
    rows = []
    for r in results["rows"]:
        if not r.get("beyond"):
            continue
        best = r["beyond"]["best"]
        single = results["tasks"][r["task"]].get(best)
        named = f"adapter {single}" if single else labels[best]
        rows.append([r["task"], labels[r["method"]], str(r["seed"]), named, interval(r["beyond"])])
    return table(["<task", "<method", "seed", "<best of one inference without it", "difference"], rows)


def price_table(results):
    rows = []
    labels = {method: label for method, label, _ in METHODS}
    for price in results["prices"]:
        task = results["tasks"][price["task"]]
        label = {"first": task["first"], "second": task["second"]}.get(price["method"], price["method"])
        label = labels.get(price["method"], f"adapter {label}")
        scores = [interval(price["rougeL"][single]) for single in (task["first"], task["second"])]
        rows.append([price["task"], label, *scores, f"{price['perplexity']:.2f}"])
    return table(["<composition", "<with", "first task alone", "second task alone", "perplexity"], rows)


def missing(results):
    """What a whole study has and these results have not."""
    labels = {method: label for method, label, _ in METHODS}
    found = {(r["task"], r["method"], r["seed"]) for r in results["rows"]}
    wanted = [(task, name, seed) for name in results["trainings"] for task in results["tasks"] for seed in results["seeds"]]
    lacking = [f"{labels[name]} of {task} with seed {seed}" for task, name, seed in wanted if (task, name, seed) not in found]
    lines = [f"{task} was not run: there is no data for it here." for task in results["not_run"]]
    if lacking:
        lines.append(f"Not trained when this was written: {'; '.join(lacking)}.")
    return "".join(line + "\n" for line in lines) + ("\n" if lines else "")


def page(results):
    choices = []
    for task, merges in results["merges"].items():
        how = [f"{m} {c['weight']}" + (f" at density {c['density']}" if c["density"] else "") for m, c in merges.items()]
        choices.append(f"{task}: {', '.join(how)}")
    machine, tasks = results["machine"], results["tasks"]
    seeds = ", ".join(map(str, results["seeds"]))
    recipes = ", ".join(f"[{task}.toml]({task}.toml) and [joint-{task}.toml](joint-{task}.toml)" for task in tasks)
    n_test = ", ".join(f"{n} of {task}" for task, n in results["n_test"].items())
    singles = ""
    if results["adapters"]:
        took = [f"{name} {duration(t['seconds'], t['cpu_seconds'])}" for name, t in results["adapters"].items()]
        links = ", ".join(f"[{name}.toml]({name}.toml)" for name in results["adapters"])
        singles = f"The adapters were trained by {links}; seconds, and CPU seconds in brackets: {', '.join(took)}.\n"
    pairs = "; ".join(f"{name}: {task['first']}, {task['second']}" for name, task in tasks.items())
    return f"""# Two tasks in one inference: {results['study']}

Written by `benches/study.py {results['study']}` on {results['date']} (seeds {seeds}); the figures are also in
[results.json](results.json).

{results['about']}

{summary_table(results)}

ROUGE-L (F-measure, %, words being what stands between white space; in brackets the 95 % interval, or each
seed's figure) on the test examples ({n_test}). First and second task of each composition: {pairs}. An adapter
has {grouped(results['adapter_parameters'])} parameters; extra bytes are those in a bundle, where adapters are stored in Q8_0 and
calibrations in F16. What is learned is learned by {recipes}, calibrations on the merge
`cat` at 0.5 and 0.5. {singles}
{missing(results)}![ROUGE-L of all methods](chart.svg)

Example by example beside the best that one inference gives without learning anything for the composition; the
95 % interval is of the mean difference:

{beyond_table(results)}

Weights and densities of the merges were chosen on the first {results['n_choice']} training examples of each
composition: {'; '.join(choices)}.

## What a calibration costs

The single tasks under what was made for both, ROUGE-L on the test examples of each; and the perplexity of plain
English (the test inputs of the first task), which the model should still know.

{price_table(results)}

## All figures

`first 150` is the ROUGE-L of the first 150 examples. Times are of {machine['cpu']}, {machine['cores']} cores
shared with other work: the CPU seconds tell more. An example's time is that of one thread.

{full_table(results)}
"""
