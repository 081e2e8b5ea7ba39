"""Models, their logits, bundles, adapters."""

import json
import math

import pytest

import tandem
from conftest import FIXTURES, INPUT, POCKET, ROOT
from tandem import errors

LOGITS = ROOT.parent / "shared/peer/logits"


def test_what_a_model_is(model):
    assert (model.architecture, model.n_layer, model.n_vocab, model.n_embd) == ("llama", 6, 4096, 256)
    metadata = model.metadata
    assert metadata["general.architecture"] == "llama" and metadata["llama.block_count"] == 6
    assert metadata["tokenizer.ggml.tokens"] == 4096
    assert model.name == metadata["general.name"] and model.n_bytes > 1_000_000
    assert model.eos == metadata["tokenizer.ggml.eos_token_id"]
    assert "llama" in repr(model)


def test_texts_and_ids(model):
    for text in (INPUT, "bibliothèque partagée\n\n  x", "日本 🙂", ""):
        ids = model.tokenize(text, add_special=False)
        assert model.detokenize(ids) == text
        assert model.tokenize(text.encode(), add_special=False) == ids
    assert model.tokenize("x")[0] == model.bos
    with pytest.raises(errors.TokenizerError):
        model.detokenize([4096])
    with pytest.raises(errors.ArgumentError):
        model.tokenize(5)


def test_a_model_from_memory(model):
    tokens = [1, 5, 9, 700]
    wanted = model.logits(tokens).tolist()
    assert tandem.Model.from_bytes(POCKET.read_bytes()).logits(tokens).tolist() == wanted
    assert tandem.Model.open(str(POCKET), mmap=False).logits(tokens).tolist() == wanted


def test_what_is_no_model(tmp_path):
    with pytest.raises(errors.FileError) as error:
        tandem.Model.open(tmp_path / "nothing.gguf")
    assert "nothing.gguf" in str(error.value) and isinstance(error.value, OSError)
    (tmp_path / "x.gguf").write_bytes(POCKET.read_bytes()[:1000])
    for open_it in (lambda: tandem.Model.open(tmp_path / "x.gguf"), lambda: tandem.Model.from_bytes(b"GGUF")):
        with pytest.raises(tandem.TandemError):
            open_it()


def test_numbers_without_a_copy(model):
    numpy = pytest.importorskip("numpy")
    floats = model.logits([1, 5, 9])
    array = numpy.asarray(floats)
    assert array.shape == (3, model.n_vocab) and array.dtype == numpy.float32
    assert not array.flags.owndata and not array.flags.writeable
    assert floats.__array_interface__["data"][0] == array.ctypes.data
    assert array[1].tolist() == floats[1] and floats[-1] == floats[2] == array[2].tolist()
    del floats
    assert numpy.isfinite(array).all()
    with pytest.raises(IndexError):
        model.logits([1])[1]
    hidden = numpy.asarray(model.hidden_states([1, 5, 9]))
    assert hidden.shape == (3, model.n_embd)
    # A token's state is the same whatever comes after it.
    assert (numpy.asarray(model.hidden_states([1, 5])) == hidden[:2]).all()


def test_logits_of_compositions(model, bundle):
    composition = bundle.composition("summarize-fr")
    assert model.logits([1, 5], composition).tolist() != model.logits([1, 5]).tolist()
    other = tandem.Model.open(POCKET)
    with pytest.raises(tandem.TandemError):
        model.logits([])
    with pytest.raises(tandem.TandemError):
        model.logits([5000])
    # The same file's composition fits.
    assert other.logits([1, 5], composition).tolist() == model.logits([1, 5], composition).tolist()


def test_perplexity(model):
    text = (INPUT + "\n") * 60
    told = []
    found = model.perplexity(text, n_ctx=64, chunks=3, progress=lambda n_done, n: told.append((n_done, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found["n_chunks"] == 3 and found["n_tokens"] == 93
    # What the logits say of the last chunk, by hand.
    ids = model.tokenize(text)
    losses = []
    for chunk in range(3):
        ids_of_chunk = [model.bos] + ids[chunk * 64 + 1 : chunk * 64 + 64]
        session = model.session(n_ctx=64)
        session.eval(ids_of_chunk[:32])
        for before, after in zip(ids_of_chunk[32:], ids_of_chunk[33:]):
            logits = session.eval([before]).tolist()
            most = max(logits)
            losses.append(math.log(sum(math.exp(x - most) for x in logits)) + most - logits[after])
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)
    with pytest.raises(tandem.TandemError):
        model.perplexity("short")
    with pytest.raises(errors.ArgumentError):
        model.perplexity(text, chunks=0)
    class Enough(Exception):
        pass
    def enough(n_done, n):
        raise Enough
    with pytest.raises(Enough):
        model.perplexity(text, n_ctx=64, progress=enough)


def test_bundles(model, bundle, tmp_path):
    assert bundle.name == "pocket" and "summarize-fr" in bundle.compositions and "summarize" in bundle.adapters
    assert bundle.is_for_this_base
    assert "{{ input }}" in bundle.composition("summarize-fr").prompt
    assert bundle.adapter("summarize").prompt is None
    report = tandem.inspect_bundle(FIXTURES / "pocket.tandem")
    assert [c["name"] for c in report["compositions"]] == bundle.compositions
    assert tandem.verify_bundle(FIXTURES / "pocket.tandem") is None
    assert tandem.verify_bundle(FIXTURES / "pocket.tandem", POCKET) is True
    data = bytearray((FIXTURES / "pocket.tandem").read_bytes())
    data[-100] ^= 1
    (tmp_path / "spoiled.tandem").write_bytes(data)
    with pytest.raises(errors.BundleError):
        tandem.verify_bundle(tmp_path / "spoiled.tandem")
    with pytest.raises(errors.BundleError):
        bundle.composition("nothing")
    with pytest.raises(tandem.TandemError):
        model.bundle(POCKET)


def test_quantizing(model, tmp_path):
    told = []
    report = tandem.quantize(POCKET, tmp_path / "q4.gguf", "q4_0", progress=lambda *done: told.append(done))
    assert told[-1][0] == told[-1][1] > 1_000_000 and len(told) > 10
    assert report["n_bytes"] < 0.7 * report["n_bytes_before"] and report["fallbacks"] is None
    small = tandem.Model.open(tmp_path / "q4.gguf")
    assert small.n_bytes < 0.7 * model.n_bytes and small.logits([1, 5]).shape == (2, 4096)
    with pytest.raises(errors.ArgumentError) as error:
        tandem.quantize(POCKET, tmp_path / "x.gguf", "Q9")
    assert "Q4_K_M" in str(error.value)
    def stop(n_done, n):
        raise KeyError("enough")
    with pytest.raises(KeyError):
        tandem.quantize(POCKET, tmp_path / "x.gguf", "Q4_0", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["q4.gguf"]


def peers():
    return sorted(path.name.removesuffix(".hf-logits.npy") for path in LOGITS.glob("*.hf-logits.npy")) or [None]


@pytest.mark.parametrize("peer", peers())
def test_logits_of_transformers(peer):
    numpy = pytest.importorskip("numpy")
    if peer is None:
        pytest.skip("the goldens are not here")
    tokens = json.loads((LOGITS / f"{peer}.tokens.json").read_text())
    wanted = numpy.load(LOGITS / f"{peer}.hf-logits.npy")
    found = numpy.asarray(tandem.Model.open(LOGITS / f"{peer}-f16.gguf").logits(tokens, exact=True))
    assert found.shape == wanted.shape
    assert numpy.linalg.norm(found - wanted) / numpy.linalg.norm(wanted) < 1e-4


def test_logits_of_peft():
    numpy = pytest.importorskip("numpy")
    folders = sorted(LOGITS.glob("*-lora"))
    if not folders:
        pytest.skip("the goldens are not here")
    n_compared = 0
    for folder in folders:
        name = folder.name.removesuffix("-lora")
        model = tandem.Model.open(LOGITS / f"{name}-f16.gguf")
        tokens = json.loads((LOGITS / f"{name}.tokens.json").read_text())
        for key, wanted in numpy.load(folder / "peft-logits.npz").items():
            if "+" in key:
                continue  # with a calibration, which a bundle has
            composition = composed(model, folder, key)
            found = numpy.asarray(model.logits(tokens, composition, exact=True))
            error = numpy.linalg.norm(found - wanted) / numpy.linalg.norm(wanted)
            assert error < 1e-4, (name, key, error)
            n_compared += 1
    assert n_compared > 10


def composed(model, folder, key):
    """The composition that a golden's name tells: `ties_0.5_0.5_d0.5`, or an adapter's name."""
    merges = ("cat", "linear", "ties", "magnitude_prune", "svd")
    merge = next((merge for merge in merges if key.startswith(merge + "_")), None)
    if merge is None:
        return model.compose([(model.adapter(folder / key), 1.0)])
    weights, options = [], {}
    for part in key.removeprefix(merge + "_").split("_"):
        if part.startswith("d"):
            options["density"] = float(part[1:])
        elif part.startswith("r"):
            options["rank"] = int(part[1:])
        else:
            weights.append(float(part))
    adapters = [model.adapter(folder / name) for name in ("summarize", "translate")]
    return model.compose(list(zip(adapters, weights)), merge=merge, lora_type="f32", **options)


def test_wrong_compositions(model, tmp_path):
    with pytest.raises(errors.FileError):
        model.adapter(tmp_path)
    folder = LOGITS / "llama-lora/summarize"
    if not folder.is_dir():
        pytest.skip("the goldens are not here")
    with pytest.raises(errors.CompositionError):
        model.adapter(folder)  # another model's
    llama = tandem.Model.open(LOGITS / "llama-f16.gguf")
    adapter = llama.adapter(folder)
    assert adapter.modules
    with pytest.raises(errors.ArgumentError) as error:
        llama.compose([(adapter, 1.0)], merge="nothing")
    assert "magnitude_prune" in str(error.value)
    with pytest.raises(errors.CompositionError):
        llama.compose([(adapter, math.inf)])
    with pytest.raises(tandem.TandemError):
        model.session(llama.compose([(adapter, 1.0)]))
