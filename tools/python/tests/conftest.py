"""What the tests share: the model and the bundle of the repository's fixtures."""

from pathlib import Path

import pytest

import tandem

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "fixtures"
POCKET = FIXTURES / "pocket-q8_0.gguf"
INPUT = "This package provides the shared library."
# What the command answers, greedily, with the composition summarize-fr.
TEXT = " bibliothèque partagée pour libsoup"
IDS = [577, 3691, 329, 380, 4003, 2601, 2]
GREEDY = {"temperature": 0, "max_tokens": 32}


@pytest.fixture(scope="session")
def model():
    return tandem.Model.open(POCKET)


@pytest.fixture(scope="session")
def bundle(model):
    return model.bundle(FIXTURES / "pocket.tandem")


@pytest.fixture
def session(model, bundle):
    return model.session(bundle.composition("summarize-fr"), n_ctx=512, threads=2)


@pytest.fixture
def chat_model(model):
    """The model with a chat template, which its file lacks."""
    return tandem.Model.from_bytes(
        with_template(POCKET.read_bytes(), "{% for m in messages %}{{ m.content }}\n{% endfor %}=> ")
    )


def with_template(data, template):
    """A GGUF file's bytes with one entry of metadata more."""
    def text(value):
        value = value.encode()
        return len(value).to_bytes(8, "little") + value

    n_entries = int.from_bytes(data[16:24], "little")
    entry = text("tokenizer.chat_template") + (8).to_bytes(4, "little") + text(template)
    # Tensors' data begin at a multiple of the alignment after the metadata: so must what is added.
    padding = -len(entry) % 32
    entry = text("tokenizer.chat_template") + (8).to_bytes(4, "little") + text(template + " " * padding)
    head = data[:16] + (n_entries + 1).to_bytes(8, "little") + entry
    return head + data[24:]
