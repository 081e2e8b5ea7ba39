"""A chat in the terminal: chat.py MODEL. Ctrl-C stops an answer, Ctrl-D ends."""

import sys

import tandem

model = tandem.Model.open(sys.argv[1])
session = model.session()
messages = []
while True:
    try:
        question = input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        break
    messages.append({"role": "user", "content": question})
    # The conversation so far is in the session: only what is new is evaluated.
    answer = session.chat(messages)
    text = ""
    try:
        for piece in answer:
            print(piece, end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        answer.cancel()
    messages.append({"role": "assistant", "content": text})
    timings = answer.timings
    print(f"\n[{timings.n_cached} of {timings.n_prompt} tokens known, {timings.tokens_per_second:.0f} tokens/s]")
