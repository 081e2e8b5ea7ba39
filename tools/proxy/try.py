#!/usr/bin/env python3
"""The recipe beside it, tried: three servers behind HAProxy, one of which is killed.

    apt install haproxy
    tools/proxy/try.py target/release/tandem
"""

import concurrent.futures as futures
import http.client
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent.parent / "fixtures"
MODELS = ["summarize", "translate-fr", "translate-de", "summarize-fr", "summarize-de"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port, body, path="/v1/chat/completions"):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    r = c.getresponse()
    return r.status, json.loads(r.read())


def asks(i, n_turns=1):
    text = f"This package, number {i}, provides the shared library for reading and writing images."
    messages = [{"role": "user", "content": text}]
    return {"model": MODELS[i % len(MODELS)], "messages": messages * n_turns, "temperature": 0, "max_tokens": 16}


def answer(port, body):
    status, said = post(port, body)
    assert status == 200, said
    cached = said["usage"]["prompt_tokens_details"]["cached_tokens"]
    return said["choices"][0]["message"]["content"], cached


def requests_of(port):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    c.request("GET", "/metrics")
    lines = c.getresponse().read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('tandem_requests_total{path="/v1/chat'))


def until(what, limit=20):
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def main():
    tandem = sys.argv[1]
    ports = [free_port() for _ in range(3)]
    model = ["--model", str(FIXTURES / "pocket-q8_0.gguf"), "--bundle", str(FIXTURES / "pocket.tandem")]

    def start(port):
        serve = [tandem, "serve", *model, "--port", str(port), "--threads", "1"]
        return subprocess.Popen(serve, stderr=subprocess.DEVNULL)

    proxy_port = free_port()
    recipe = (HERE / "haproxy.cfg").read_text()
    here = {"127.0.0.1:8000": proxy_port, **{f"192.168.1.{11 + i}:8080": p for i, p in enumerate(ports)}}
    for there, port in here.items():
        assert there in recipe
        recipe = recipe.replace(there, f"127.0.0.1:{port}")
    folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(folder.name) / "haproxy.cfg"
    path.write_text(recipe)
    subprocess.run(["haproxy", "-c", "-q", "-f", path], check=True)
    servers = [start(port) for port in ports]
    proxy = subprocess.Popen(["haproxy", "-db", "-f", path], stderr=subprocess.DEVNULL)
    try:
        def ready():
            try:
                return all(answer(p, asks(0)) for p in (*ports, proxy_port))
            except (OSError, AssertionError, ValueError):
                return False

        until(ready)
        before = [requests_of(p) for p in ports]
        wanted = [answer(ports[0], asks(i))[0] for i in range(24)]
        before[0] += 24
        # Each conversation is answered, by all boards together, and finds its beginning the second time.
        with futures.ThreadPoolExecutor(8) as pool:
            for again in (False, True):
                found = list(pool.map(lambda i: answer(proxy_port, asks(i)), range(24)))
                assert [text for text, _ in found] == wanted
                assert not again or all(cached > 0 for _, cached in found[3:]), found
        shares = [requests_of(p) - n for p, n in zip(ports, before)]
        assert sum(shares) == 48 and min(shares) >= 4, shares
        print("shared out:", shares)

        # Streams come piece by piece.
        c = http.client.HTTPConnection("127.0.0.1", proxy_port, timeout=60)
        c.request("POST", "/v1/chat/completions", json.dumps({**asks(3), "stream": True}))
        r = c.getresponse()
        events = [line for line in r if line.startswith(b"data: ")]
        assert r.status == 200 and events[-1] == b"data: [DONE]\n" and len(events) > 4, events
        print("streamed:", len(events), "events")

        # A board that dies: what it was answering is lost, all else is answered, by the others.
        servers[1].send_signal(signal.SIGKILL)
        servers[1].wait()
        lost = 0
        for i in range(24):
            status, said = post(proxy_port, asks(i))
            if status == 200:
                assert said["choices"][0]["message"]["content"] == wanted[i]
            else:
                assert status in (502, 503), said
                lost += 1
        assert lost <= 3, lost
        with futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: answer(proxy_port, asks(i))[0], range(24)))
        assert found == wanted
        print("one killed:", lost, "requests lost")

        # It comes back.
        servers[1] = start(ports[1])
        until(lambda: post(proxy_port, asks(0)) and servers[1].poll() is None and answers_on(ports[1]))
        n = requests_of(ports[1])

        def is_asked():
            for i in range(24):
                assert answer(proxy_port, asks(i))[0] == wanted[i]
            return requests_of(ports[1]) >= n + 4

        until(is_asked)
        print("back again")
    finally:
        proxy.terminate()
        for server in servers:
            server.terminate()
            server.wait(20)
        proxy.wait(20)


def answers_on(port):
    try:
        return answer(port, asks(0)) is not None
    except (OSError, AssertionError):
        # It does not listen yet, or opens its model.
        return False


if __name__ == "__main__":
    main()
