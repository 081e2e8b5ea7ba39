#!/usr/bin/env python3
"""Does what TUTORIAL.md says, command by command, on a few hundred examples.

    tutorial.py TANDEM SHARED

TANDEM is the program, SHARED the folder with data/tone. Files in the tutorial are fences of TOML that begin
with their name; commands are fences of sh, of which those marked so are left running.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNNING = "# leave it running"
N_LINES = 300
DATA = {"reply": "reply", "tone": "tone-pirate", "both": "reply-pirate"}


def main():
    program, shared = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    text = (ROOT / "tools" / "TUTORIAL.md").read_text()
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = [line for kind, body in fences if kind == "sh" for line in body.splitlines()]
    assert len(commands) > 10, "the tutorial has lost its commands"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "bin").mkdir()
        (folder / "bin" / "tandem").symlink_to(program)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TANDEM_SOURCE": str(ROOT)}
        for name, data in DATA.items():
            lines = (shared / "data" / "tone" / f"{data}.train.jsonl").read_text().splitlines()[:N_LINES]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        running, said = [], ""
        try:
            for kind, body in fences:
                if kind == "toml":
                    name = body.splitlines()[0].removeprefix("# ")
                    (folder / name).write_text(body)
                    continue
                for command in body.splitlines():
                    print("$", command, flush=True)
                    start = time.monotonic()
                    if RUNNING in command:
                        shell = ["bash", "-c", "exec " + command.removesuffix(RUNNING)]
                        running.append(subprocess.Popen(shell, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
                        assert "listening" in running[-1].stderr.readline()
                        continue
                    shell = ["bash", "-euo", "pipefail", "-c", command]
                    done = subprocess.run(shell, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
                    said = done.stdout
                    print(said, f"({time.monotonic() - start:.0f} s)", flush=True)
                    assert done.returncode == 0, command
            answer = json.loads(said)["choices"][0]["message"]["content"]
            assert answer.strip(), "the served composition says nothing"
            assert (folder / "board" / "mail.tandem").exists()
        finally:
            for process in running:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
