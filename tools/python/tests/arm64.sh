#!/usr/bin/env bash
# Installs a wheel in Debian for 64-bit Arm under emulation, with Debian's Python, and runs the tests there:
# tools/python/tests/arm64.sh WHEEL. Needs what tools/tests/arm64.sh needs.
set -euo pipefail
wheel=$(realpath "$1")
cd "$(dirname "$0")/../../.."
. tools/tests/arm64.sh

make_root python3-pip,python3-pytest,python3-numpy
inside pip --version
cp "$wheel" "$root/root/"
inside pip install -q --no-index --break-system-packages --root-user-action=ignore "/root/${wheel##*/}"
mkdir -p "$root/work/main/tools/python" "$root/work/shared/peer"
cp -r fixtures "$root/work/main/"
cp -r tools/python/{tests,examples,pyproject.toml,README.md} "$root/work/main/tools/python/"
if [ -d ../shared/peer/logits ]; then
    mkdir "$root/work/shared/peer/logits"
    cp -r ../shared/peer/logits/{llama,gemma4,lfm2,qwen35moe,falcon-h1}[-.]* "$root/work/shared/peer/logits/"
    rm "$root"/work/shared/peer/logits/llama-[!fl]*.gguf
fi
# A thousand models take long under emulation, and Ctrl-C in time is not to be had.
inside bash -c 'cd /work/main/tools/python && python3 -m pytest -q -p no:cacheprovider \
    -k "not thousand and not ctrl_c and not cancelling"'
