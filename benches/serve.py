#!/usr/bin/env python3
"""Load on a server with OpenAI's API: tokens a second in sum, and the time to the first token.

    tandem serve --model model.gguf --parallel 8 &
    python3 benches/serve.py http://127.0.0.1:8080 --clients 1,2,4,8 --models base,reply-witty
    python3 benches/serve.py http://127.0.0.1:8080 --beside 4000
    python3 benches/serve.py http://127.0.0.1:8080 http://127.0.0.1:8081 --clients 1,4,8

`--clients` runs so many streams at once, the models dealt out in turn, each with a prompt of its own. Of several
servers each is asked in turn in every round; the second column compares them with the first. `--adapters N` has
llama-server's requests choose one of its first N adapters, as tandem's choose models.
`--beside N` measures the first token of a short request alone, and while a prompt of N tokens is read.
Prompts are token ids, so that any model will do, and end tokens are forbidden, so that answers last. Needs
no library.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from urllib.parse import urlsplit


class Server:
    def __init__(self, url):
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.models = [m["id"] for m in self.get("/v1/models")["data"]]
        props = self.get("/props")
        self.is_llama = not props.get("build_info", "").startswith("tandem")
        end = props.get("eos_token")
        ids = self.post("/tokenize", {"content": end})["tokens"] if end else []
        self.bias = {str(i): -100 for i in ids}

    def chosen(self, args):
        names = [m for m in args.models.split(",") if m]
        return names if names and not self.is_llama else self.models[:1]

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def get(self, path):
        c = self.connect()
        c.request("GET", path)
        return json.loads(c.getresponse().read())

    def post(self, path, body):
        c = self.connect()
        c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(c.getresponse().read())

    def stream(self, model, n_prompt, n_tokens, seed, adapter=None):
        """Times of the pieces of an answer, in seconds since it was asked for."""
        rng = random.Random(seed)
        prompt = [rng.randrange(300, 3000) for _ in range(n_prompt)]
        body = {
            "model": model, "prompt": prompt, "max_tokens": n_tokens, "stream": True, "temperature": 0.7,
            "seed": seed, "logit_bias": self.bias, "stream_options": {"include_usage": True},
            "cache_prompt": False,
        }
        if adapter is not None:
            body["lora"] = [{"id": adapter, "scale": 1.0}]
        c = self.connect()
        start = time.perf_counter()
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = c.getresponse()
        assert r.status == 200, r.read()[:300]
        times, n = [], 0
        for line in r:
            if line.startswith(b"data: {"):
                data = json.loads(line[6:])
                if data.get("error"):
                    raise SystemExit(data["error"]["message"])
                if data.get("usage"):
                    n = data["usage"]["completion_tokens"]
                elif data["choices"][0].get("text"):
                    times.append(time.perf_counter() - start)
        return times, n


def at_once(server, n_clients, args, round_):
    out = [None] * n_clients
    models = server.chosen(args)

    def run(i):
        adapter = i % args.adapters if args.adapters and server.is_llama else None
        model = models[i % len(models)]
        out[i] = server.stream(model, args.prompt, args.tokens, 1000 * round_ + i, adapter)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n_clients)]
    start = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    took = time.perf_counter() - start
    first = statistics.median(times[0] for times, _ in out)
    n = sum(n for _, n in out)
    # While all write: from the last one's first piece to the first one's end.
    began, ended = max(t[0] for t, _ in out), min(t[-1] for t, _ in out)
    writing = sum(sum(began < x <= ended for x in t) * n / len(t) for t, n in out)
    rate = writing / (ended - began) if ended > began else 0.0
    return rate, n / took, first


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("urls", nargs="+", metavar="URL")
    a.add_argument("--clients", default="1,2,4,8")
    a.add_argument("--models", default="", help="names, by commas [default: the first]")
    a.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    a.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--adapters", type=int, default=0, metavar="N")
    a.add_argument("--beside", type=int, default=0, metavar="N")
    args = a.parse_args()
    servers = [Server(url) for url in args.urls]
    if args.beside:
        for server in servers:
            first_beside(server, args)
        return
    print("| clients | server | tokens/s while all write | of one | of the first | with prompts | first token |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    one = {}
    for n in map(int, args.clients.split(",")):
        rounds = [[at_once(server, n, args, r) for server in servers] for r in range(args.rounds)]
        for i, server in enumerate(servers):
            rate, whole, first = (statistics.median(x) for x in zip(*(r[i] for r in rounds)))
            beside = statistics.median(r[i][0] / r[0][0] for r in rounds)
            base = one.setdefault(i, rate)
            name = "llama-server" if server.is_llama else "tandem"
            print(f"| {n} | {name} | {rate:.1f} | {rate / base:.2f} | {beside:.2f} | {whole:.1f} | {1e3 * first:.0f} ms |", flush=True)


def first_beside(server, args):
    models = server.chosen(args)
    alone, beside = [], []
    for i in range(args.rounds):
        alone.append(server.stream(models[0], 20, 2, i)[0][0])
        long = threading.Thread(target=server.stream, args=(models[-1], args.beside, 2, 77 + i))
        long.start()
        time.sleep(0.5 + 0.1 * i)
        beside.append(server.stream(models[0], 20, 2, 50 + i)[0][0])
        long.join()
    one, other = statistics.median(alone), statistics.median(beside)
    print(f"first token alone {1e3 * one:.0f} ms, beside {args.beside} tokens {1e3 * other:.0f} ms: {other / one:.2f}")


if __name__ == "__main__":
    main()
