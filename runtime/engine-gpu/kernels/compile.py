"""Compiles the kernels for every architecture, without a GPU and without CUDA.

    python compile.py [--check]

Writes `compiled/<architecture>.cubin.gz` for each of `CUBINS`, and PTX that a driver compiles for those
that are not among them; with `--check`, compares them with what is there, and writes nothing. Fails if a
kernel does not keep what it holds in registers. Needs requirements.txt.
"""

import ctypes
import gzip
import importlib.util
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
COMPILED = KERNELS / "compiled"
# Turing, Ampere, Ada, Hopper, Blackwell. A cubin runs on its architecture, and on later ones of the
# same number before the last digit; one with an "a" on its own alone.
CUBINS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
PTX = "compute_75"
# Lambdas are for the GPU, as all else is.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v")
SPILLS = re.compile(
    r"Function properties for (\w+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
)


def main():
    is_check = sys.argv[1:] == ["--check"]
    COMPILED.mkdir(exist_ok=True)
    wrong = []
    with ProcessPoolExecutor() as pool:
        for architecture, code, log in pool.map(compiled, (*CUBINS, PTX)):
            kind = "ptx" if architecture == PTX else "cubin"
            file = COMPILED / f"{architecture}.{kind}.gz"
            spills = [name for name, *counts in SPILLS.findall(log) if counts != ["0", "0"]]
            wrong += [f"{name} spills registers on {architecture}" for name in spills]
            print(f"{architecture}: {len(code):,} bytes, {len(SPILLS.findall(log))} kernels")
            if not is_check:
                file.write_bytes(gzip.compress(code, mtime=0))
            elif not file.exists() or gzip.decompress(file.read_bytes()) != code:
                wrong.append(f"{file.name} is not what the kernels compile to: run compile.py")
    if wrong:
        sys.exit("\n".join(wrong))


def compiled(architecture):
    """The architecture, its code, and what the compiler said."""
    nvrtc = ctypes.CDLL(package("cuda_nvrtc") / "lib" / "libnvrtc.so.12")
    program = ctypes.c_void_p()
    text = source().encode()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None))
    options = [
        f"--gpu-architecture={architecture}",
        f"--include-path={package('cuda_runtime') / 'include'}",
        f"--include-path={KERNELS}",
        *OPTIONS,
    ]
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    log = output(nvrtc, program, "ProgramLog").decode()
    if failed:
        sys.exit(f"{architecture}: {log}")
    return architecture, output(nvrtc, program, "PTX" if architecture == PTX else "CUBIN"), log


def source():
    """All kernels as one file: what they have in common once, and a namespace for each."""
    lines = [f'#include "{path.name}"' for path in sorted(KERNELS.glob("*.cuh"))]
    for path in sorted(KERNELS.glob("*.cu")):
        lines.append(f'namespace {path.stem}_cu {{\n#include "{path.name}"\n}}')
    return "\n".join(lines)


def package(name):
    return Path(importlib.util.find_spec(f"nvidia.{name}").submodule_search_locations[0])


def output(nvrtc, program, kind):
    size = ctypes.c_size_t()
    check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer))
    # Texts end with a zero.
    return buffer.raw if kind == "CUBIN" else buffer.raw.rstrip(b"\0")


def check(code):
    if code:
        sys.exit(f"NVRTC: error {code}")


if __name__ == "__main__":
    main()
