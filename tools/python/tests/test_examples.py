"""The examples, as a user runs them."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import tandem
from conftest import FIXTURES, INPUT, POCKET, TEXT, with_template

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def said(name, *arguments, given=None):
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, input=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compositions():
    lines = said("compositions.py", POCKET, FIXTURES / "pocket.tandem", INPUT).splitlines()
    assert lines[0].startswith("model alone:") and f"summarize-fr:{TEXT}" in lines


def test_intent():
    action, room = said("intent.py", POCKET, "Turn on the light").split(maxsplit=1)
    assert action in ("turn_on", "turn_off", "set_temperature") and room


def test_chat(tmp_path):
    data = with_template(POCKET.read_bytes(), "{% for m in messages %}{{ m.content }} {% endfor %}=>")
    (tmp_path / "chat.gguf").write_bytes(data)
    lines = said("chat.py", tmp_path / "chat.gguf", given="Hello\nAgain\n")
    assert lines.count("tokens/s]") == 2 and "[0 of" in lines


def test_langchain():
    pytest.importorskip("langchain_core")
    said("langchain_llm.py", POCKET, INPUT)


def test_langchain_takes_an_empty_answer():
    """As a model gives one, now and then, that ends at once."""
    pytest.importorskip("langchain_core")
    llm = runpy.run_path(str(EXAMPLES / "langchain_llm.py"))["Tandem"](session=tandem.Model.open(POCKET).session())
    text = "".join(llm.stream(INPUT, temperature=0))
    assert text and text == llm.invoke(INPUT, temperature=0)
    assert list(llm.stream(INPUT, temperature=0, stop=[text[0]])) == [""]


def test_the_readme_says_so():
    """Its example, with the fixtures' files, gives what it shows."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    for name in ("pocket-q8_0.gguf", "pocket.tandem"):
        code = code.replace(f'"{name}"', repr(str(FIXTURES / name)))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    shown = next(line for line in readme.splitlines() if "bibliothèque" in line)
    assert shown.strip().startswith(done.stdout.split("<tandem.Timings")[0].strip())


def test_the_stubs_tell_what_there_is():
    """Names in the stubs and names of the module are the same."""
    stubs = ast.parse((Path(tandem.__file__).parent / "__init__.pyi").read_text())
    told = {}
    for node in stubs.body:
        if isinstance(node, ast.ClassDef):
            told[node.name] = {item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
        elif isinstance(node, ast.FunctionDef):
            told[node.name] = None
    for name, members in told.items():
        if name.startswith("_"):
            continue
        thing = getattr(tandem, name)
        if members is None:
            assert thing.__doc__
            continue
        public = {member for member in dir(thing) if not member.startswith("_")}
        assert public == {member for member in members if not member.startswith("_")}, name
        assert thing.__doc__ and all(getattr(thing, member).__doc__ for member in public), name
    functions = {name for name in tandem.__all__ if callable(getattr(tandem, name)) and name != "TandemError"}
    assert functions <= set(told)
