#!/usr/bin/env python3
"""What a weight costs on Arm CPUs: instructions, and cycles by a static model (llvm-mca).

    benches/mca.py             print the report; benches/arm-cycles.md is its output
    benches/mca.py --check     fail if a loop takes more instructions than benches/arm-cycles.md says
    benches/mca.py --loop Q4_0 print the assembly of that format's (or tile kernel's) loops

Needs Debian's rustc-web with libstd-rust-web-dev:arm64, as .ci/run installs them, and llvm (not for
--check).
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / "benches" / "arm-cycles.md"
TARGET = "aarch64-unknown-linux-gnu"
# The order in which kernels/src/simd/mod.rs lists them, and the CPUs that have no better one.
# LLVM's model of the A76 is the A57's, as is that of the A72.
LEVELS = {"neon": ["cortex-a53", "cortex-a72"], "dotprod": ["cortex-a76"], "i8mm": []}
CPUS = [cpu for cpus in LEVELS.values() for cpu in cpus]
TILES = {"multiply": "neon", "multiply_dotprod": "dotprod", "multiply_i8mm": "i8mm"}
# Multiply-adds of an instruction that multiplies bytes.
PRODUCTS = {"sdot": 16, "smmla": 32, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}
# How much worse is worse.
TOLERANCE = 1.05


def assembly():
    """The kernels' assembly, by mangled name."""
    env = dict(os.environ, RUSTC="/usr/bin/rustc", CARGO_TARGET_DIR=str(ROOT / "target" / "debian"))
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "kernels.s"
        command = ["cargo", "rustc", "-q", "--release", "--target", TARGET, "-p", "tandem-kernels", "--lib", "--"]
        command += ["--emit", f"asm={out}", "-C", "codegen-units=1", "-C", "symbol-mangling-version=v0"]
        command += ["-C", "debuginfo=0", "-C", "lto=off"]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        functions, lines = {}, None
        for line in out.read_text().splitlines():
            if match := re.match(r"(_R\w+):", line):
                lines = functions.setdefault(match[1], [])
            elif line.startswith(".Lfunc_end"):
                lines = None
            elif lines is not None:
                lines.append(line.split("//")[0].strip())
    return functions


def is_instruction(line):
    return line and not line.startswith(".") and not line.endswith(":")


def n_products(lines):
    """Multiply-adds of bytes."""
    return sum(PRODUCTS.get(line.split()[0], 0) for line in lines if re.search(r"\.(8|16)b", line))


def hot_loop(lines, prefetches):
    """Of the innermost loops that prefetch, that with the fewest multiply-adds, which is a single token's
    (others do several tokens at once); of those that do not, that with the most."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for end, line in enumerate(lines):
        match = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if match and labels.get(match[1], end) < end:
            loops.append((labels[match[1]], end))
    inner = [l for l in loops if not any(o != l and l[0] <= o[0] and o[1] <= l[1] for o in loops)]
    bodies = [[i for i in lines[start : end + 1] if is_instruction(i)] for start, end in inner]
    bodies = [body for body in bodies if n_products(body) and any("prfm" in i for i in body) == prefetches]
    return (min if prefetches else max)(bodies, key=n_products, default=None)


def formats():
    """The formats with a product of their own, in the order of kernels/src/simd/int8.rs, and the others."""
    source = (ROOT / "kernels" / "src" / "simd" / "int8.rs").read_text()
    return re.findall(r"DType::(\w+) => enter!", source) + ["the others"]


def loops(functions):
    """(level, what, instructions of the loop) of every kernel."""
    names = formats()
    found = {}
    for symbol, lines in functions.items():
        if "4int8" in symbol and (match := re.search(r"6matmul(?:s(\w*)_)?5entry$", symbol)):
            # Functions of one name in one place are numbered in their order, in base 62.
            digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
            n = 0
            if match[1] is not None:
                for digit in match[1]:
                    n = n * 62 + digits.index(digit)
                n += 2 if match[1] else 1
            level, name = list(LEVELS)[n // len(names)], names[n % len(names)]
            found[level, name] = hot_loop(lines, prefetches=True)
            # A tile kernel that only one format uses is inlined there.
            if not any("4neon4tile" in line for line in lines):
                found[level, f"tile of {name}"] = hot_loop(lines, prefetches=False)
        elif "4neon4tile" in symbol:
            plain = subprocess.check_output(["c++filt", "-s", "rust", symbol], text=True)
            match = re.search(
                r"neon::tile::(\w+)::<.*(Symmetric|Affine)<(\d): u32, (true|false): bool.*>, 4: usize", plain
            )
            if match and match[1] in TILES:
                minima = " and a minimum" if match[2] == "Affine" else ""
                what = f"tile, {match[3]} bits, a scale{minima} for {32 if match[4] == 'true' else 16}"
                found[TILES[match[1]], what] = hot_loop(lines, prefetches=False)
    order = {name: i for i, name in enumerate(names)}
    # What a loop calls is not counted: there is nothing to say about formats that are unpacked elsewhere.
    found = {key: body for key, body in found.items() if body and not any(i.startswith("bl") for i in body)}
    for (level, what), body in found.items():
        assert (level == "neon") == any("smull" in i for i in body), f"{level} {what}: the numbering has changed"
    return sorted(found.items(), key=lambda i: (list(LEVELS).index(i[0][0]), order.get(i[0][1], 99), i[0][1]))


def cycles(cpu, body):
    """Cycles of one turn of a loop."""
    command = ["llvm-mca", f"-mtriple={TARGET}", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm", "-iterations=100"]
    done = subprocess.run(command, input="\n".join(body), text=True, capture_output=True, check=True)
    return int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1]) / 100


def rustc_version():
    return subprocess.check_output(["/usr/bin/rustc", "--version"], text=True).split()[1]


def report():
    version = subprocess.check_output(["llvm-mca", "--version"], text=True)
    rows = []
    for (level, what), body in loops(assembly()):
        n = n_products(body)
        figures = [cycles(cpu, body) / n if cpu in LEVELS[level] else None for cpu in CPUS]
        rows.append((level, what, n, len(body) / n, figures))
    print(f"""# Cycles of the hot loops on Arm

Written by `benches/mca.py` (rustc {rustc_version()}, llvm-mca {re.search(r'version ([0-9.]+)', version)[1]}): per multiply-add,
in one core, data in the first cache. A format's row is its decode loop of a single token, where a
multiply-add is a weight; a tile's is prefill's, four tokens at once. LLVM models the A76 as it does the A57.

| level | loop | multiply-adds a turn | instructions | {' | '.join(f'{cpu}' for cpu in CPUS)} |
|---|---|---:|---:|{'---:|' * len(CPUS)}""")
    for level, what, n, instructions, figures in rows:
        figures = " | ".join("" if x is None else f"{x:.3f}" for x in figures)
        print(f"| {level} | {what} | {n} | {instructions:.3f} | {figures} |")


def check():
    """Fails where a loop takes more instructions than the report says.

    Cycles are not compared: every LLVM has its own models, and what changes them shows in the
    instructions as a rule. Another rustc makes other code of the same source, which is told only.
    """
    before, text = {}, REPORT.read_text()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 4 and cells[0] in LEVELS:
            before[cells[0], cells[1]] = float(cells[3])
    now_there = loops(assembly())
    gone = before.keys() - {key for key, _ in now_there}
    worse = [f"{' '.join(key)} is not found any more" for key in sorted(gone)]
    for key, body in now_there:
        now = len(body) / n_products(body)
        if key not in before:
            worse.append(f"{' '.join(key)} is not in the report")
        elif now > before[key] * TOLERANCE:
            worse.append(f"{' '.join(key)}: {before[key]:.3f} instructions a multiply-add in the report, now {now:.3f}")
    if worse:
        print("\n".join(worse) + "\nIf that is meant to be: benches/mca.py > benches/arm-cycles.md")
        sys.exit(f"rustc {rustc_version()}," in text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--loop", metavar="NAME")
    args = parser.parse_args()
    if args.check:
        check()
    elif args.loop:
        for (level, what), body in loops(assembly()):
            if args.loop in what:
                print(f"# {level} {what}\n" + "\n".join(body) + "\n")
    else:
        report()


if __name__ == "__main__":
    main()
