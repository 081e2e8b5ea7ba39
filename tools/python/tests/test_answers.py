"""Sessions and what they generate."""

import asyncio
import json
import os
import re
import subprocess
import threading
import time

import pytest

import tandem
from conftest import FIXTURES, GREEDY, IDS, INPUT, POCKET, TEXT
from tandem import errors


def test_the_command_says_the_same(session):
    answer = session.generate(INPUT, **GREEDY)
    pieces = list(answer)
    assert len(pieces) > 2 and "".join(pieces) == TEXT
    assert answer.tokens == IDS and answer.stop_reason == "end_of_text"
    command = os.environ.get("TANDEM")
    if not command:
        pytest.skip("no command to compare with in TANDEM")
    said = subprocess.run(
        [command, "run", "--model", POCKET, "--bundle", FIXTURES / "pocket.tandem", "--compose", "summarize-fr",
         "--temp", "0", "-n", "32", "--json", "--prompt", INPUT],
        check=True, capture_output=True,
    )
    said = json.loads(said.stdout)
    assert said["ids"] == answer.tokens and said["text"] == TEXT
    assert said["prompt_ids"] == session.prompt_ids(INPUT)


def test_a_prefix_is_kept_and_told(session):
    first = session.generate(INPUT, **GREEDY)
    assert first.read() == TEXT
    assert first.timings.n_cached == 0 and first.timings.n_prompt == len(session.prompt_ids(INPUT))
    assert first.timings.n_tokens == len(IDS) and first.timings.tokens_per_second > 0
    again = session.generate(INPUT, **GREEDY)
    assert again.read() == TEXT
    # The last token is evaluated anew, for its logits.
    assert again.timings.n_cached == again.timings.n_prompt - 1


def test_seeds_decide(session):
    def said(seed):
        answer = session.generate(INPUT, temperature=3, max_tokens=12, seed=seed)
        return answer.read(), answer.seed

    assert said(7) == said(7) and said(7)[1] == 7
    texts = {said(seed)[0] for seed in range(4)}
    assert len(texts) > 1
    (_, first), (_, second) = said(None), said(None)
    assert first != second


def test_stop_strings_and_limits(session):
    answer = session.generate(INPUT, stop="partag", **GREEDY)
    assert answer.read() == " bibliothèque "
    assert answer.stop_reason == "stop_string" and answer.stop_string == "partag"
    answer = session.generate(INPUT, temperature=0, max_tokens=2, stop=["x", "y"])
    answer.read()
    assert len(answer.tokens) == 2 and answer.stop_reason == "max_tokens" and answer.stop_string is None
    answer = session.generate(INPUT, temperature=0, max_tokens=0)
    assert answer.read() == "" and answer.tokens == []


def test_an_answer_goes_on_where_it_is_left(session):
    answer = session.generate(INPUT, **GREEDY)
    assert answer.stop_reason is None
    first = next(answer)
    assert answer.stop_reason is None and len(answer.tokens) >= 1
    assert first + answer.read() == TEXT
    assert list(answer) == [] and answer.read() == ""


def test_breaking_out_frees_the_session(session):
    for _ in session.generate(INPUT, temperature=0, max_tokens=400):
        break
    held = session.generate(INPUT, temperature=0, max_tokens=400)
    next(held)
    # Another answer ends the one before, also where somebody still has that.
    assert session.generate(INPUT, **GREEDY).read() == TEXT
    assert list(held) == [] and held.stop_reason == "cancelled" and len(held.tokens) >= 1


def test_cancelling_from_another_thread(model):
    # Without an end of text: temperature and all tokens allowed.
    session = model.session(n_ctx=4096)
    answer = session.generate([1, 5], temperature=5, top_k=0, top_p=1, min_p=0, max_tokens=4000)
    timer = threading.Timer(0.1, answer.cancel)
    timer.start()
    start = time.monotonic()
    for _ in range(20):
        answer.read()
        if answer.stop_reason == "cancelled":
            break
        answer = session.generate([1, 5], temperature=5, top_k=0, top_p=1, min_p=0, max_tokens=4000)
        threading.Timer(0.1, answer.cancel).start()
    assert answer.stop_reason == "cancelled" and time.monotonic() - start < 30


def test_async_for(session):
    async def said():
        return [piece async for piece in session.generate(INPUT, **GREEDY)]

    async def both():
        # The loop goes on while text is generated.
        ticks = 0
        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)
        ticking = asyncio.ensure_future(tick())
        pieces = await said()
        ticking.cancel()
        return pieces, ticks

    pieces, ticks = asyncio.run(both())
    assert "".join(pieces) == TEXT and len(pieces) > 2 and ticks > 2


def test_a_task_that_is_cancelled_ends_its_answer(model):
    session = model.session(n_ctx=20_000)
    answer = session.generate([5] * 15_000, max_tokens=4)

    async def read():
        async for _ in answer:
            pass

    async def impatient():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(), 0.2)

    start = time.monotonic()
    asyncio.run(impatient())
    # The loop's end waits for its threads.
    assert time.monotonic() - start < 2
    assert answer.stop_reason == "cancelled" and answer.tokens == []
    session.generate([1, 5], max_tokens=1).read()


def test_looking_ends_nothing(session):
    answer = session.generate(INPUT, **GREEDY)
    first = next(answer)
    assert session.prompt_ids(INPUT) and session.tokens[: len(session.prompt_ids(INPUT))]
    with pytest.raises(errors.GrammarError):
        session.generate(INPUT, regex="(")
    with pytest.raises(errors.ArgumentError):
        session.generate(5)
    assert first + answer.read() == TEXT
    answer = session.generate(INPUT, **GREEDY)
    answer.cancel()
    assert answer.stop_reason == "cancelled"


def test_forms(session):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}
    for form in (schema, json.dumps(schema)):
        answer = session.generate(INPUT, json_schema=form, max_tokens=64, seed=3)
        assert 0 <= json.loads(answer.read())["n"] <= 9
        assert answer.stop_reason in ("complete", "end_of_text")
    assert re.fullmatch("(ab){3}", session.generate(INPUT, regex="(ab){3}").read())
    assert session.generate(INPUT, lark='start: "yes" | "no"').read() in ("yes", "no")
    for wrong in ({"json_schema": {"type": 5}}, {"regex": "("}, {"lark": "start: nothing"}):
        with pytest.raises(errors.GrammarError):
            session.generate(INPUT, **wrong)
    with pytest.raises(errors.ArgumentError):
        session.generate(INPUT, regex="a", lark="start: a")
    assert session.generate(INPUT, **GREEDY).read() == TEXT


def test_conversations(chat_model):
    session = chat_model.session(n_ctx=512)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked = chat_model.detokenize(session.prompt_ids(messages))
    assert asked.strip().startswith("Be brief.\nHello\n=>")
    session.chat(messages, max_tokens=3).read()
    tool = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}
    answer = session.chat(messages, tools=[tool], max_tokens=1)
    assert answer.tool_calls == []
    answer.read()
    # The template has no use for tools, so a message tells of them.
    told = chat_model.detokenize(session.tokens)
    assert "Be brief." in told and '"name": "lamp"' in told.replace('":"', '": "')
    said = '<tool_call>\n{"name": "lamp", "arguments": {"on": [true, 5]}}\n</tool_call>'
    answer = session.chat(messages, [tool], regex=re.escape(said).replace("\\\n", "\\n").replace('\\"', '"'))
    assert answer.read() == said
    assert answer.tool_calls == [{"name": "lamp", "arguments": {"on": [True, 5]}}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert "one\ntwo" in chat_model.detokenize(session.prompt_ids(parts))
    parts[0]["content"].append({"type": "image_url", "image_url": "x"})
    for wrong in ("no messages", [5], {"role": "user"}, parts):
        with pytest.raises(errors.ArgumentError):
            session.chat(wrong)
    with pytest.raises(errors.ArgumentError):
        session.chat(messages, tools="lamp")
    with pytest.raises(errors.PromptError):
        session.chat([])
    with pytest.raises(errors.ArgumentError):
        session.chat([{"role": "user", "content": object()}])


def test_a_model_without_template_refuses_conversations(model):
    assert not model.has_chat_template
    with pytest.raises(errors.PromptError):
        model.session(n_ctx=64).chat([{"role": "user", "content": "Hello"}])


def test_prompts_of_every_kind(model, session):
    by_input = session.prompt_ids(INPUT)
    assert session.prompt_ids(INPUT.encode()) == by_input
    raw = session.prompt_ids(INPUT, raw=True)
    assert raw != by_input and raw == model.tokenize(INPUT, parse_special=True)
    assert session.generate(by_input, **GREEDY).read() == TEXT
    assert session.generate(tuple(by_input), **GREEDY).read() == TEXT
    for wrong in (5, None, ["a"], [-1], [1 << 40], object()):
        with pytest.raises(errors.ArgumentError):
            session.generate(wrong)
    with pytest.raises(errors.SessionError):
        session.generate([model.n_vocab])
    with pytest.raises(errors.SessionError):
        session.generate([])
    with pytest.raises(errors.ContextFullError):
        session.generate([5] * 600)


def test_compositions_are_switched(model, bundle, session):
    plain = model.session(n_ctx=512)
    session.set_composition(None)
    assert session.generate(INPUT, **GREEDY).read() == plain.generate(INPUT, **GREEDY).read()
    session.set_composition(bundle.composition("summarize-fr"))
    assert session.generate(INPUT, **GREEDY).read() == TEXT
    german = model.session(bundle.composition("translate-de"))
    assert german.generate(INPUT, **GREEDY).read() != TEXT


def test_evaluating_and_rewinding(model):
    session = model.session(n_ctx=64)
    first = session.eval([1, 5, 9])
    assert first.shape == (model.n_vocab,) and len(first) == model.n_vocab
    session.eval([4])
    assert session.tokens == [1, 5, 9, 4]
    assert session.rewind(2) == 2
    assert session.eval([9]).tolist() == first.tolist()
    with pytest.raises(errors.ContextFullError):
        session.eval([1] * 64)
    with pytest.raises(errors.SessionError):
        session.eval([])


def test_wrong_options_are_refused_by_name(model, session):
    for options in ({"n_ctx": 0}, {"kv_type": "q4_0"}, {"level": "sse"}, {"wrong": 1}, {"threads": "two"}):
        with pytest.raises(errors.ArgumentError) as error:
            model.session(**options)
        assert any(word in str(error.value) for word in options)
    for options in ({"temperature": -1}, {"temperature": float("nan")}, {"top_p": 2}, {"stop": 5}, {"seed": -1},
                    {"max_draft": 16}, {"repeat_penalty": 0}, {"max_tokens": "x"}, {"wrong": 1}):
        with pytest.raises(errors.ArgumentError) as error:
            session.generate(INPUT, **options)
        assert any(word in str(error.value) for word in options)
    with pytest.raises(ValueError):
        session.generate(INPUT, top_p=2)


def test_two_threads_on_one_model(model, bundle):
    def said(name):
        session = model.session(bundle.composition(name), n_ctx=512, threads=1)
        return [session.generate(INPUT, **GREEDY).read() for _ in range(8)]

    names = ["summarize-fr", "translate-de"]
    alone = [said(name) for name in names]
    together = [None, None]
    def work(i):
        together[i] = said(names[i])
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_two_threads_on_one_session(session):
    # One ends the other's answer; nobody hangs, or gets the other's text.
    def work():
        for _ in range(20):
            text = session.generate(INPUT, **GREEDY).read()
            assert TEXT.startswith(text)
            texts.append(text)

    texts = []
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 60
    assert session.generate(INPUT, **GREEDY).read() == TEXT


def test_what_is_used_outlives_what_it_came_from():
    session = tandem.Model.open(POCKET).session(n_ctx=64)
    answer = session.generate([1, 5], temperature=0, max_tokens=8)
    del session
    answer.read()
    assert len(answer.tokens) >= 1
