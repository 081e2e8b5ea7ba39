#!/usr/bin/env python3
"""A server under load for minutes: clients of all its models, whole and streamed, idle connections and ones that
drip bytes, and clients that leave in the middle. Every text must be what it was at first; the memory is told.

    tandem serve --model fixtures/pocket-q8_0.gguf --bundle fixtures/pocket.tandem --parallel 8 &
    python3 benches/soak.py http://127.0.0.1:8080 --minutes 10

Needs no library, and a model whose compositions have prompts of their own, or a chat template.
"""

import argparse
import http.client
import json
import random
import socket
import threading
import time
from urllib.parse import urlsplit

WORDS = "package library image letter window river stone market engine paper silver winter bridge".split()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("url")
    a.add_argument("--minutes", type=float, default=10)
    a.add_argument("--clients", type=int, default=8)
    a.add_argument("--idle", type=int, default=200)
    a.add_argument("--dripping", type=int, default=50)
    args = a.parse_args()
    parts = urlsplit(args.url)
    host, port = parts.hostname, parts.port

    def connect():
        return http.client.HTTPConnection(host, port, timeout=120)

    def get(path):
        c = connect()
        c.request("GET", path)
        return c.getresponse().read().decode()

    models = [m["id"] for m in json.loads(get("/v1/models"))["data"]]
    rng = random.Random(1)
    cases = []
    for i in range(60):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(5, 60)))
        cases.append({"model": models[i % len(models)], "input": True, "prompt": text, "max_tokens": 24,
                      "temperature": (i % 3) * 0.6, "seed": i})

    def ask(body, stream):
        c = connect()
        c.request("POST", "/v1/completions", json.dumps({**body, "stream": stream}))
        r = c.getresponse()
        if not stream:
            return json.loads(r.read())["choices"][0]["text"]
        text = ""
        for line in r:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
        return text

    def leave(body):
        s = socket.create_connection((host, port))
        data = json.dumps({**body, "max_tokens": 400, "stream": True}).encode()
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        s.recv(400)
        s.close()

    wanted = [ask({**case, "cache_prompt": False}, False) for case in cases]
    idle = [socket.create_connection((host, port)) for _ in range(args.idle)]
    dripping = [socket.create_connection((host, port)) for _ in range(args.dripping)]
    end = time.monotonic() + 60 * args.minutes
    wrong, counts = [], [0] * args.clients

    def drip():
        line = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\nX-A: "
        i = 0
        while time.monotonic() < end:
            for k, s in enumerate(dripping):
                try:
                    s.sendall(line[i : i + 1] or b"a")
                except OSError:
                    # It was ended, as it should be: another takes its place.
                    dripping[k] = socket.create_connection((host, port))
            i += 1
            time.sleep(0.5)

    def client(k):
        rng = random.Random(100 + k)
        while time.monotonic() < end:
            i = rng.randrange(len(cases))
            if rng.random() < 0.05:
                leave(cases[i])
                continue
            text = ask(cases[i], rng.random() < 0.5)
            counts[k] += 1
            if text != wanted[i]:
                wrong.append((cases[i]["model"], wanted[i], text))

    threads = [threading.Thread(target=client, args=(k,)) for k in range(args.clients)]
    threads.append(threading.Thread(target=drip))
    for t in threads:
        t.start()
    start = time.monotonic()

    def value(name):
        lines = get("/metrics").splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)

    while any(t.is_alive() for t in threads):
        for t in threads:
            t.join(max(0.0, min(60.0, end - time.monotonic() + 1)))
            break
        print(f"{(time.monotonic() - start) / 60:.1f} min: {sum(counts)} answers, {len(wrong)} wrong, "
              f"{value('process_resident_memory_bytes') / 1e6:.0f} MB, {value('tandem_cache_bytes') / 1e6:.0f} MB of it "
              f"cached, {value('tandem_requests_cancelled_total'):.0f} left, {value('tandem_connections'):.0f} connections", flush=True)
        time.sleep(1)
    assert not wrong, wrong[:3]
    assert len(idle) == args.idle


if __name__ == "__main__":
    main()
