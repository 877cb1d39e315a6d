#!/bin/sh
# What is asked first of a machine with an NVIDIA GPU, in about ten minutes; the shortest and most telling first.
#
#     benchmarks/gpu_round.sh [PYTHON] [FOLDER]
#
# PYTHON: one with the packages of pyproject.toml's extra `dev`. FOLDER: where results are kept beside those of
# benchmarks/results, which are replaced row by row where it is not named. Goes on after a failure, and ends with 1.
python=${1:-python} output=${2:-benchmarks/results} failed=0
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here" || exit 1
try() {
    echo "== $*"
    "$@" || { failed=1; echo "FAILED: $*"; }
}
# compiled kernels, those of bfloat16 among them, which the interpreter does not multiply
try env TRITON_INTERPRET=0 "$python" -m pytest -n0 -q -p no:cacheprovider tests/jsae_core/test_kernels.py
try "$python" -m benchmarks --device cuda --shape pythia-70m --quick --output "$output"
try "$python" -m benchmarks.devices --device cuda --tokens 2000 --steps 60
try "$python" -m benchmarks histogram ablation --device cuda --shape pythia-410m --quick --output "$output"
try "$python" -m benchmarks.cell --device cuda
exit $failed
