#!/bin/sh
# Makes run.lock and test.lock anew from pyproject.toml, run.in and overrides.txt. Needs uv. Usage: requirements/lock.sh [--upgrade]
set -eu
cd -- "$(dirname -- "$0")/.."
lock() {
    name=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
        --override requirements/overrides.txt "$@" pyproject.toml requirements/run.in --output-file "requirements/$name.lock"
}
lock run "$@"
lock test --extra test --constraint requirements/run.lock "$@"
echo 'openai<3' | uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links "$@" - --output-file requirements/openai2.lock
