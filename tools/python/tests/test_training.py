"""Learning, from data to a bundle."""

import json
import shutil
import signal
import threading
import time

import pytest

import tandem
from conftest import FIXTURES, INPUT, POCKET
from tandem import errors

LINES = [
    ("This package contains the documentation.", "documentation"),
    ("A library for reading images of many kinds.", "bibliothèque d'images"),
    ("Tools that talk to printers over the network.", "outils d'impression"),
    ("A small game about falling blocks and time.", "jeu de blocs"),
    ("Fonts with letters of many languages.", "polices de caractères"),
    ("An editor of text for the terminal.", "éditeur de texte"),
]


@pytest.fixture
def work(tmp_path):
    lines = [json.dumps({"input": a, "target": b}) for a, b in LINES]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    shutil.copy(FIXTURES / "pocket.tandem", tmp_path / "x.tandem")
    (tmp_path / "recipe.toml").write_text(f"""
base = {json.dumps(str(POCKET))}
bundle = "x.tandem"
composition = "summarize-fr-plain"
data = {{ path = "data.jsonl", validation = 2 }}
calibration = {{ kind = "low_rank", rank = 2 }}
lora = {{ rank = 2, alpha = 4 }}
train = {{ steps = 6, batch = 2, micro_batch = 1, learning_rate = 0.02, validate_every = 3, patience = 100000, seed = 5 }}
""")
    return tmp_path


def test_a_calibration_is_learned(work):
    events = []
    report = tandem.calibrate(work / "recipe.toml", out=work / "lc.safetensors", progress=events.append)
    steps = [event for event in events if event["event"] == "step"]
    assert [step["n_done"] for step in steps] == list(range(1, 7))
    assert all(step["loss"] > 0 and step["tokens_per_second"] > 0 for step in steps)
    validations = [event["loss"] for event in events if event["event"] == "validation"]
    assert len(validations) == 3 and report["best_loss"] == pytest.approx(min(validations))
    assert report["n_steps"] == 6 and (work / "lc.safetensors").stat().st_size > 0
    assert any("numbers to learn" in event.get("text", "") for event in events)


def test_an_adapter_is_learned_and_bundled(work):
    tandem.train_lora(work / "recipe.toml", out=work / "lora", rank=4, alpha=8.0, steps=3, threads=1)
    model = tandem.Model.open(POCKET)
    adapter = model.adapter(work / "lora")
    assert len(adapter.modules) > 10
    (work / "bundle.toml").write_text(f"""
bundle = {{ name = "mine", base = {json.dumps(str(POCKET))} }}
adapter = [{{ name = "one", path = "lora" }}]
composition = [{{ name = "both", adapters = [{{ name = "one", weight = 0.5 }}], prompt = "{{{{ input }}}} => " }}]
""")
    report = tandem.create_bundle(work / "bundle.toml", work / "mine.tandem")
    assert report["name"] == "mine" and report["adapters"][0]["factors"][0]["rank"] == 4
    session = model.session(model.bundle(work / "mine.tandem").composition("both"))
    session.generate(INPUT, max_tokens=4).read()


def test_what_the_function_raises_stops_it(work):
    class Enough(Exception):
        pass

    def enough(event):
        if event["event"] == "step" and event["n_done"] == 2:
            raise Enough

    options = {"out": work / "lc.safetensors", "steps": 100_000}
    with pytest.raises(Enough):
        tandem.calibrate(work / "recipe.toml", progress=enough, **options)
    # What it came to is kept, and it goes on from there.
    assert (work / "lc.safetensors").exists() and (work / "lc.safetensors.checkpoint").exists()
    with pytest.raises(tandem.TandemError) as error:
        tandem.calibrate(work / "recipe.toml", **options)
    assert "--resume" in str(error.value)
    events = []
    options["steps"] = 4
    tandem.calibrate(work / "recipe.toml", resume=True, progress=events.append, **options)
    begin = next(event for event in events if event["event"] == "begin")
    assert begin["n_done"] >= 2


def test_ctrl_c_stops_it(work):
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tandem.calibrate(work / "recipe.toml", out=work / "lc.safetensors", steps=100_000)
    assert (work / "lc.safetensors.checkpoint").exists()


def test_what_is_stopped_before_it_begins_changes_nothing(work):
    tandem.train_lora(work / "recipe.toml", out=work / "lora", steps=1)
    before = (work / "lora/adapter_model.safetensors").read_bytes()

    class Enough(Exception):
        pass

    def at_once(event):
        raise Enough

    with pytest.raises(Enough):
        tandem.train_lora(work / "recipe.toml", out=work / "lora", steps=100_000, progress=at_once)
    assert (work / "lora/adapter_model.safetensors").read_bytes() == before
    assert not (work / "lora.checkpoint").exists()


def test_a_function_that_takes_its_time_is_waited_for(work):
    class Enough(Exception):
        pass

    def slow(event):
        time.sleep(0.01)
        if event["event"] == "step" and event["n_done"] == 3:
            raise Enough

    with pytest.raises(Enough):
        tandem.calibrate(work / "recipe.toml", out=work / "x", steps=60, progress=slow)
    events = []
    tandem.calibrate(work / "recipe.toml", out=work / "x", steps=12, resume=True, progress=events.append)
    begin = next(event for event in events if event["event"] == "begin")
    # The training is not ahead of whom it tells.
    assert 3 <= begin["n_done"] < 10


def test_wrong_recipes(work):
    with pytest.raises(errors.FileError):
        tandem.calibrate(work / "nothing.toml")
    (work / "wrong.toml").write_text("base = 5")
    with pytest.raises(tandem.TandemError) as error:
        tandem.train_lora(work / "wrong.toml")
    assert "line 1" in str(error.value)
    for options in ({"steps": 2, "epochs": 1.0}, {"threads": 0}, {"wrong": 1}, {"kind": "x"}):
        with pytest.raises(tandem.TandemError):
            tandem.calibrate(work / "recipe.toml", out=work / "x", **options)
