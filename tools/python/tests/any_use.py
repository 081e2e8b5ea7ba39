"""Uses the package in any way, wrong ones mostly, from two threads: any_use.py MODEL BUNDLE [SECONDS] [SEED].

Every error must be an exception, and none a panic of the engine. Prints how many uses gave a result.
"""

import collections
import inspect
import os
import random
import shutil
import sys
import tempfile
import threading
import time

import tandem

MODEL, BUNDLE = map(os.path.abspath, sys.argv[1:3])
SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 5
random.seed(int(sys.argv[4]) if len(sys.argv) > 4 else 0)
os.chdir(tempfile.mkdtemp())
# They may be written to.
MODEL, BUNDLE = shutil.copy(MODEL, "model.gguf"), shutil.copy(BUNDLE, "x.tandem")


class Odd:
    """Raises where others give."""

    def __index__(self):
        raise RuntimeError("odd")

    def __str__(self):
        raise RuntimeError("odd")

    def __float__(self):
        return float("nan")

    def __fspath__(self):
        return "nowhere"

    def __iter__(self):
        raise RuntimeError("odd")


def deep(n):
    value = []
    for _ in range(n):
        value = [value]
    return value


LONE = "\ud800"
TEXTS = ["", "a", "This package contains the manual.", "x" * 3000, LONE, "\0", b"", b"\xff\xfe", "\u2028 {{ input }}"]
NUMBERS = [None, True, 0, -1, 1, 2, 7, 15, 63, 64, 65, 1 << 31, 1 << 63, 1 << 64, 0.5, -0.0, 1e308, float("inf"),
           float("nan"), "1", Odd()]
TOKENS = [[], [1], [1, 5, 9], [5000], [-1], [1 << 70], ["a"], [None], (1, 5), range(3, 40), [5] * 63, [5] * 65]
MESSAGES = [[{"role": "user", "content": "x"}], [], [{}], [{"role": LONE, "content": deep(10)}],
            [{"role": "user", "content": deep(100_000)}], "no", [5], [{"role": "system"}, {"role": "user", "content": 5}]]
FORMS = ["a+", "(a|b){3}", "(((((a+)+)+)+)+)+", "[" * 5000, 'start: "a" | "b"', "start: start", {"type": "object"},
         {"type": "array", "items": {"$ref": "#"}}, {"$ref": "#/$defs/x"}, "{}", "{", {"type": 5}, deep(100_000), ""]
PATHS = [MODEL, BUNDLE, "nowhere", ".", "", "/dev/null", "/", Odd(), LONE, "\0", 5, None]
WORDS = ["cat", "svd", "ties", "dare_linear", "f16", "f32", "q8_0", "scalar", "avx2", "Q4_0", "IQ4_NL", "", LONE, 5]
CALLS = [None, print, len, lambda *_: 1 / 0, lambda *_: None, Odd()]
BY_NAME = {
    "prompt": TEXTS + TOKENS + MESSAGES, "text": TEXTS, "tokens": TOKENS, "messages": MESSAGES,
    "tools": MESSAGES + [[{"type": "function", "function": {"name": "x", "parameters": {"properties": 5}}}]],
    "template_args": [{}, {"x": deep(10)}, {"x": deep(100)}, 5, None, {LONE: 1}], "stop": TEXTS + [["a", ""], [5], 5],
    "json_schema": FORMS, "regex": FORMS, "lark": FORMS, "path": PATHS, "input": PATHS, "output": PATHS,
    "recipe": PATHS, "out": PATHS, "model": PATHS, "progress": CALLS, "data": [b"", b"GGUF", b"GGUF" + bytes(100), "x"],
    "merge": WORDS, "kv_type": WORDS, "level": WORDS, "type": WORDS, "name": ["summarize-fr", "summarize", "x", LONE],
}
SAMPLING = ["max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "seed", "stop",
            "frequency_penalty", "presence_penalty", "penalty_window", "max_draft", "json_schema", "regex", "lark"]
OPTIONS = {"generate": SAMPLING, "chat": SAMPLING,
           "session": ["n_ctx", "n_batch", "threads", "threads_decode", "kv_type", "exact", "level"],
           "calibrate": ["steps", "rank", "out", "wrong"], "train_lora": ["steps", "alpha", "out"]}
HIDDEN = ("__getitem__", "__next__", "__anext__", "__len__", "__repr__", "__iter__", "__new__", "__array_interface__")

# Read, as the file may be replaced by another.
model = tandem.Model.open(MODEL, mmap=False)
bundle = model.bundle(BUNDLE)
composition = bundle.composition("summarize-fr")
session = model.session(composition, n_ctx=64, threads=1)
fixed = [tandem, model, bundle, composition, session, model.session(n_ctx=64, threads=1)]
made = []
counts = collections.Counter()


def value(name):
    if random.random() < 0.1:
        return random.choice([*NUMBERS, *TEXTS, *fixed, *made[-3:], object(), type, sys])
    if name == "composition":
        return random.choice([None, composition, bundle, composition])
    if name == "adapters":
        return random.choice([[], [(composition, 1.0)], 5, [5], [(None, None)]])
    return random.choice(BY_NAME.get(name, NUMBERS))


def arguments(use, name):
    few, named = [], {}
    try:
        parameters = inspect.signature(use).parameters.values()
    except (TypeError, ValueError):
        parameters = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            for option in random.sample(OPTIONS.get(name, ['wrong']), random.randrange(4)):
                named[option] = value(option)
        elif parameter.default is parameter.empty and random.random() < 0.97:
            few.append(value(parameter.name))
        elif parameter.default is not parameter.empty and random.random() < 0.3:
            named[parameter.name] = value(parameter.name)
    if random.random() < 0.03:
        few.append(value("wrong"))
    # As large as they can be, these would take what the machine has.
    for option in ("n_ctx", "n_batch", "max_tokens", "threads", "threads_decode", "steps", "chunks"):
        if isinstance(named.get(option), int) and named[option] > 1000:
            named[option] = 65
    return few, named


def once():
    thing = random.choice(fixed + made)
    names = [name for name in dir(thing) if (name in HIDDEN or not name.startswith("__")) and name != "errors"]
    if random.random() < 0.7:
        names = [name for name in names if callable(getattr(type(thing), name, None)) and name[0] != "_"] or names
    name = random.choice(names)
    try:
        use = getattr(thing, name)
        if callable(use):
            few, named = arguments(use, name)
            use = use(*few, **named)
        if inspect.iscoroutine(use):
            use.close()
        elif isinstance(use, tandem.Generation):
            made.append(use)
            next(use, None)
        elif isinstance(use, (tandem.Model, tandem.Floats, tandem.Session)):
            made.append(use)
        counts["results"] += 1
    except BaseException as error:
        is_fault = isinstance(error, SystemError) or type(error).__name__ == "PanicException"
        assert not is_fault, (thing, name, error)
        counts[type(error).__name__] += 1
    if len(made) > 30:
        del made[random.randrange(len(made))]


def many():
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            once()
    except BaseException as fault:
        faults.append(fault)


faults = []
sys.stdout, stdout = open(os.devnull, "w"), sys.stdout
threads = [threading.Thread(target=many) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(dict(counts), file=sys.stderr)
if faults:
    raise faults[0]
print(counts["results"], file=stdout)
