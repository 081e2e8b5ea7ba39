#!/usr/bin/env python3
"""Trains a LoRA side by side with PyTorch and PEFT: speed, memory, and the loss of each step.

    benches/training.py MODEL.gguf DATA.jsonl [--steps 50] [--rank 16] [--batch 8] [--threads 1]

Needs the packages tandem-engine, torch, peft, transformers and gguf. All sides begin with the same
adapter (written by Tandem, read by PEFT), take the same examples in the same order and the same
optimizer. The model must be one that transformers reads from a GGUF file. Speeds are in tokens a CPU
second without padding, the first steps left out, so that other work on the machine does little to them.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

PROMPT = "{{ input }}\n=> "
SEED = 5
LEARNING_RATE = 5e-4
WARMUP = 0.05
N_UNTIMED = 3
MASK = (1 << 64) - 1


def shuffled(seed, purpose, items):
    """Fisher and Yates by xoshiro256++, as Tandem's training shuffles."""
    state, x = [], ((seed << 32 | seed >> 32) & MASK) ^ purpose
    for _ in range(4):  # SplitMix64
        x = (x + 0x9E3779B97F4A7C15) & MASK
        z = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        state.append(z ^ z >> 31)

    def turned(x, n):
        return (x << n | x >> (64 - n)) & MASK

    items = list(items)
    for i in reversed(range(1, len(items))):
        a, b, c, d = state
        drawn = (turned((a + d) & MASK, 23) + a) & MASK
        c, d = c ^ a, d ^ b
        state = [a ^ d, b ^ c, c ^ (b << 17) & MASK, turned(d, 45)]
        j = (drawn >> 11) * (i + 1) >> 53
        items[i], items[j] = items[j], items[i]
    return items


def recipe(args, name, train):
    """A recipe of Tandem's, in the folder of the run."""
    path = args.folder / f"{name}.toml"
    text = f"base = {json.dumps(str(args.model.absolute()))}\nprompt = {json.dumps(PROMPT)}\n"
    text += f"data = {{ path = {json.dumps(str(args.data.absolute()))}, limit = {args.batch * args.steps}, validation = 0 }}\n"
    text += f"lora = {{ rank = {args.rank}, alpha = {2 * args.rank} }}\n"
    train = {"batch": args.batch, "micro_batch": args.batch, "seed": SEED, "warmup": WARMUP, **train}
    text += "train = { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in train.items()) + " }\n"
    path.write_text(text)
    return path


class Clock:
    """CPU seconds from one step to the next."""

    def __init__(self):
        self.steps, self.last = [], time.process_time()

    def step(self):
        now = time.process_time()
        self.steps.append(now - self.last)
        self.last = now


def tandem_side(args, exact):
    import tandem

    clock, losses = Clock(), []

    def progress(event):
        if event["event"] == "step":
            clock.step()
            losses.append(event["loss"])

    train = {"steps": args.steps, "learning_rate": LEARNING_RATE, "validate_every": args.steps, "exact": exact}
    path = recipe(args, f"tandem-{exact}", train)
    tandem.train_lora(path, out=args.folder / f"adapter-{exact}", threads=args.threads, progress=progress)
    return losses, clock.steps


def peft_side(args, dtype):
    import peft
    import tandem
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    tokenizer = tandem.Model.open(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name)
    model = peft.PeftModel.from_pretrained(model.to(getattr(torch, dtype)), args.folder / "start", is_trainable=True)
    model.train()
    lines = args.data.read_text().splitlines()[: args.batch * args.steps]
    # Purposes 1 and 2 are the split and the first epoch.
    lines = shuffled(SEED, 2, shuffled(SEED, 1, lines))
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.0)
    n_warmup = math.ceil(WARMUP * args.steps)
    end = model.config.eos_token_id
    clock, losses = Clock(), []
    for step in range(args.steps):
        examples = []
        for line in map(json.loads, lines[step * args.batch :][: args.batch]):
            prompt = tokenizer.tokenize(PROMPT.replace("{{ input }}", line["input"]))
            target = [*tokenizer.tokenize(line["target"], add_special=False), end]
            examples.append((prompt, target))
        longest = max(len(p) + len(t) for p, t in examples)
        tokens = torch.zeros(len(examples), longest, dtype=torch.long)
        labels = torch.full_like(tokens, -100)
        mask = torch.zeros_like(tokens)
        for i, (prompt, target) in enumerate(examples):
            n = len(prompt) + len(target)
            tokens[i, :n], mask[i, :n] = torch.tensor(prompt + target), 1
            labels[i, len(prompt) : n] = torch.tensor(target)
        if step < n_warmup:
            rate = LEARNING_RATE * (step + 1) / n_warmup
        else:
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (args.steps - n_warmup)))
        optimizer.param_groups[0]["lr"] = rate
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        clock.step()
        losses.append(loss.item())
    return losses, clock.steps


SIDES = {
    "tandem": lambda args: tandem_side(args, False),
    "tandem, exact": lambda args: tandem_side(args, True),
    "PyTorch, float32": lambda args: peft_side(args, "float32"),
    "PyTorch, bfloat16": lambda args: peft_side(args, "bfloat16"),
}


def count_tokens(args):
    """Of each step's examples."""
    import tandem

    tokenizer = tandem.Model.open(args.model)
    lines = args.data.read_text().splitlines()[: args.batch * args.steps]
    lengths = []
    for line in map(json.loads, shuffled(SEED, 2, shuffled(SEED, 1, lines))):
        prompt = tokenizer.tokenize(PROMPT.replace("{{ input }}", line["input"]))
        lengths.append(len(prompt) + len(tokenizer.tokenize(line["target"], add_special=False)) + 1)
    return [sum(lengths[i : i + args.batch]) for i in range(0, len(lengths), args.batch)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    for name, default in [("steps", 50), ("rank", 16), ("batch", 8), ("threads", 1)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps <= N_UNTIMED:
        parser.error(f"the first {N_UNTIMED} steps are not timed: give more")
    if args.side:
        losses, seconds = SIDES[args.side](args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"losses": losses, "seconds": seconds, "peak": peak}))
        return
    import tandem

    with tempfile.TemporaryDirectory() as folder:
        args.folder = pathlib.Path(folder)
        # A step of next to nothing leaves the adapter as training begins with it.
        tandem.train_lora(recipe(args, "start", {"steps": 1, "learning_rate": 1e-30}), out=args.folder / "start")
        n_tokens = count_tokens(args)
        assert len(n_tokens) == args.steps, "the data has too few examples"
        results = {}
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side, "--folder", folder]
            environment = {**os.environ, "CANDLE_NUM_THREADS": "1", "OMP_NUM_THREADS": str(args.threads)}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            results[side] = json.loads(done.stdout.splitlines()[-1])
    theirs = results["PyTorch, float32"]["losses"]
    print("| | tokens a CPU second | peak memory | loss of the first step | of the last | largest difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for side, result in results.items():
        speed = sum(n_tokens[N_UNTIMED:]) / sum(result["seconds"][N_UNTIMED:])
        losses = result["losses"]
        largest = max(abs(a / b - 1) for a, b in zip(losses, theirs))
        cells = [side, f"{speed:.0f}", f"{result['peak'] / 1e9:.2f} GB", f"{losses[0]:.4f}", f"{losses[-1]:.4f}"]
        print("| " + " | ".join([*cells, f"{100 * largest:.2f} %"]) + " |", flush=True)


if __name__ == "__main__":
    main()
