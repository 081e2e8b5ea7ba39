#!/usr/bin/env python3
"""Renders chat templates by jinja2, as Hugging Face's transformers sets it up, and by Tandem, and compares.

    compare.py FOLDER...    templates as *.jinja in folders, or wheels and archives that have them
    compare.py --write      writes what jinja2 makes of the templates in expressions.json into it

Needs jinja2. Each template is given the conversations below; where jinja2 raises an error, Tandem must, too.
"""

import argparse
import datetime
import itertools
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent.parent

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.\nIn °C.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "enum": [1, 2, 3], "default": 1},
                    "units": {"type": ["string", "null"], "nullable": True},
                    "areas": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
                },
                "required": ["place"],
            },
            "return": {"type": "string"},
        },
    }
]
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Ulm", "days": 2, "f": 1.0, "ok": True}}}
CALL_TEXT = {**CALL, "function": {"name": "get_weather", "arguments": '{"place": "Ulm"}'}}


def says(role, content, **more):
    return {"role": role, "content": content, **more}


USER = says("user", 'Hi <there> & "you", it\'s\n me. ')
CONVERSATIONS = {
    "user": [USER],
    "system": [says("system", " Be brief.\n"), USER],
    "turns": [says("system", "S"), USER, says("assistant", "<think>\nhm\n</think>\n\nHello"), says("user", "And?")],
    "said": [USER, says("assistant", "Hello")],
    "reasons": [USER, says("assistant", "Hello", reasoning_content="I think"), says("user", "And?")],
    "parts": [says("user", [{"type": "text", "text": "Look"}, {"type": "text", "text": "here"}])],
    "tools": [USER, says("assistant", None, tool_calls=[CALL]), says("tool", "20", name="get_weather", tool_call_id="call12345"), says("assistant", "20 degrees")],
    "tool text": [USER, says("assistant", "", tool_calls=[CALL_TEXT]), says("tool", '{"t": 20}', tool_call_id="call12345"), says("user", "Thanks")],
    "two calls": [USER, says("assistant", "Wait", tool_calls=[CALL, CALL]), says("tool", "1", tool_call_id="call12345"), says("tool", "2", tool_call_id="call12345")],
    "developer": [says("developer", "D"), USER],
    "roles": [says("assistant", "first"), says("user", "then")],
    "empty": [],
    "empty text": [says("user", "")],
    "unicode": [says("user", "Grüße, 世界 🙂\t\u2028é")],
}
VARIABLES = {
    "plain": {"add_generation_prompt": True},
    "closed": {"add_generation_prompt": False},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "thinking off": {"add_generation_prompt": True, "enable_thinking": False, "thinking": False},
    "thinking on": {"add_generation_prompt": True, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "documents": {"add_generation_prompt": True, "documents": [{"title": "T", "text": "Some text", "doc_id": 1}]},
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, as transformers' AssistantTracker reads it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


def by_jinja2(template, variables):
    """What it writes, or None and why it does not."""
    try:
        return template.render(**variables), None
    except Exception as error:  # whatever a template does wrong
        return None, f"{type(error).__name__}: {error}"


def sources(path):
    """The templates of a folder, a wheel or an archive, by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*.jinja")):
            yield str(file.relative_to(path)), file.read_text()
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".jinja"):
                    yield name, archive.read(name).decode()
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".jinja"):
                    yield member.name, archive.extractfile(member).read().decode()


def cases(templates):
    """Each template with each conversation and some of the variables."""
    env = environment()
    for name, source in templates:
        try:
            template = env.from_string(source)
        except jinja2.exceptions.TemplateError as error:
            yield f"{name}", source, {}, (None, f"{type(error).__name__}: {error}")
            continue
        for conversation, variable in itertools.product(CONVERSATIONS, VARIABLES):
            given = {"messages": CONVERSATIONS[conversation], "tools": None, "documents": None}
            given |= SPECIAL | VARIABLES[variable]
            yield f"{name}: {conversation}, {variable}", source, given, by_jinja2(template, given)


def write_expressions():
    file = FOLDER / "expressions.json"
    env = environment()
    args = {"messages": CONVERSATIONS["turns"], "tools": None, "documents": None, "add_generation_prompt": True} | SPECIAL
    lines = []
    for case in json.loads(file.read_text())["cases"]:
        try:
            text = env.from_string(case["template"]).render(**args)
        except Exception:  # whatever a template does wrong
            text = None
        lines.append(json.dumps({"template": case["template"], "text": text}, ensure_ascii=False))
    head = json.dumps(args, ensure_ascii=False)
    file.write_text('{"args": ' + head + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--show", type=int, default=20, help="differences to show [default: 20]")
    args = parser.parse_args()
    if args.write:
        return write_expressions()
    templates = [template for path in args.templates for template in sources(path)]
    all_cases = list(cases(templates))
    requests = "".join(json.dumps({"template": source, "args": given}) + "\n" for _, source, given, _ in all_cases)
    command = ["cargo", "run", "-q", "-p", "tandem-engine", "--example", "template"]
    answers = subprocess.run(command, cwd=ROOT, input=requests, stdout=subprocess.PIPE, text=True, check=True)
    n_equal, differences = 0, []
    for (name, _, _, (wanted, why)), line in zip(all_cases, answers.stdout.rstrip("\n").split("\n"), strict=True):
        answer = json.loads(line)
        found = answer.get("text")
        if found == wanted:
            n_equal += 1
        else:
            differences.append((name, f"jinja2: {wanted if why is None else why!r}", f"tandem: {found if found is not None else answer['error']!r}"))
    for difference in differences[: args.show]:
        print(*difference, sep="\n  ")
    n_texts = sum(wanted is not None for *_, (wanted, _) in all_cases)
    print(f"{len(templates)} templates, {len(all_cases)} renderings, {n_texts} of them texts: {n_equal} as jinja2 has it")
    sys.exit(bool(differences) or not templates)


if __name__ == "__main__":
    main()
