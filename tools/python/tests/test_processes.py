"""What must not end, hang or fill the process."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import tandem
from conftest import FIXTURES, GREEDY, INPUT, POCKET, TEXT
from tandem import errors


def memory():
    """Bytes of this process that are in memory and no file's."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def run(code, **options):
    """Runs a script that knows where the fixtures are; gives what it wrote."""
    head = f"import tandem\nMODEL = {str(POCKET)!r}\nBUNDLE = {str(FIXTURES / 'pocket.tandem')!r}\n"
    script = [sys.executable, "-c", head + textwrap.dedent(code)]
    done = subprocess.run(script, timeout=300, capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    return done.stdout


def test_a_thousand_models_leave_nothing(bundle):
    def use():
        model = tandem.Model.open(POCKET)
        session = model.session(model.bundle(FIXTURES / "pocket.tandem").composition("summarize-fr"), n_ctx=64,
                                threads=1)
        answer = session.generate(INPUT, temperature=0, max_tokens=2)
        next(answer)
        if len(kept) % 2:
            answer.read()
        kept.append(None)

    kept = []
    for _ in range(100):
        use()
    before = memory()
    for _ in range(1000):
        use()
    assert memory() - before < 4_000_000
    assert threading.active_count() < 20


def test_a_forked_process(session, model):
    answer = session.generate(INPUT, **GREEDY)
    next(answer)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for use in (lambda: next(answer), lambda: session.generate(INPUT), lambda: session.tokens,
                    lambda: answer.tokens):
            try:
                use()
                said.append("used")
            except errors.ForkedError:
                said.append("refused")
        # The model itself is good here, too.
        own = model.session(model.bundle(FIXTURES / "pocket.tandem").composition("summarize-fr"), n_ctx=64)
        said.append(own.generate(INPUT, **GREEDY).read())
        os.write(writer, repr(said).encode())
        os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
    assert os.waitpid(child, 0)[1] == 0
    assert eval(said) == ["refused"] * 4 + [TEXT]
    assert answer.read()


def test_a_forked_process_ends_cleanly():
    said = run("""
        import os, sys
        model = tandem.Model.open(MODEL)
        session = model.session(n_ctx=64)
        answer = session.generate([1, 5])
        next(answer)
        child = os.fork()
        if child == 0:
            sys.exit(0)  # with all that a script's end takes down
        print(os.waitpid(child, 0)[1])
    """)
    assert said == "0\n"


def test_multiprocessing_with_a_model_of_the_parent():
    said = run("""
        import multiprocessing
        model = tandem.Model.open(MODEL)
        def work(i):
            return model.session(n_ctx=64, threads=1).generate([1, 5 + i], temperature=0, max_tokens=4).read()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(work, range(8)) == [work(i) for i in range(8)]
        print("same")
    """)
    assert said == "same\n"


def test_forked_processes_have_seeds_of_their_own():
    said = run("""
        import multiprocessing
        model = tandem.Model.open(MODEL)
        def seed(_):
            return model.session(n_ctx=64, threads=1).generate([1, 5]).seed
        seed(0)
        with multiprocessing.get_context("fork").Pool(4) as pool:
            seeds = pool.map(seed, range(16), chunksize=1)
        print(len(set(seeds)))
    """)
    assert said == "16\n"


@pytest.mark.parametrize("work", [
    "model.perplexity('This package provides the shared library. ' * 6_000)",
    "session.generate([5] * 30_000)",
    "model.session(n_ctx=40_000).eval([5] * 30_000)",
    "model.logits([5] * 10_000)",
    "[session.generate([1, 5], temperature=3, max_tokens=4000).read() for _ in range(10_000)]",
])
def test_ctrl_c(work):
    said = run(f"""
        import signal, threading, time
        model = tandem.Model.open(MODEL)
        session = model.session(n_ctx=40_000)
        def press():
            global pressed
            pressed = time.monotonic()
            signal.raise_signal(signal.SIGINT)
        threading.Timer(0.3, press).start()
        try:
            answer = {work}
            next(answer)
        except KeyboardInterrupt:
            print(time.monotonic() - pressed < 2)
            assert len(session.generate([1, 5], temperature=0, max_tokens=2).tokens) == 0
    """)
    assert said == "True\n"


def test_the_interpreter_survives_whatever_it_is_given():
    script = [sys.executable, Path(__file__).with_name("any_use.py"), POCKET, FIXTURES / "pocket.tandem"]
    done = subprocess.run(script, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert int(done.stdout) > 200
