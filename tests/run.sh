#!/usr/bin/env bash
# Sets everything up in .venv, then checks and tests everything.
#
#   bash tests/run.sh         everything but the large models: what .ci/run runs
#   bash tests/run.sh quick   without clean installations, too, and only on the
#                             backend of KERAS_BACKEND (or JAX)
#   bash tests/run.sh large   only the large models, on JAX
set -euo pipefail
cd "$(dirname "$0")/.."

mode="${1:-all}"
case "$mode" in
  all | quick | large) ;;
  *) echo "tests/run.sh: expected 'quick', 'large' or nothing, received" \
       "'$mode'" >&2
     exit 2 ;;
esac

failed=()
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
section() { # NAME COMMAND...: continues if the command fails.
  local name="$1"; shift
  printf '\n=== %s\n' "$name"
  "$@" 2>&1 | tee "$logs/$name" || failed+=("$name")
}

printf '=== set-up (some minutes)\n'
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# One command: with torch's version named, pip can take a CPU build from its
# --find-links folders instead of the CUDA build that extras alone would pull.
# Most of the modules are never imported, so none is compiled here.
.venv/bin/python -m pip install -qq --no-compile --editable \
  ".[jax,tpu,tensorflow,torch,data,docs,export,keras-cv,study,tensorboard,test]" torch==2.13.0
export PATH="$PWD/.venv/bin:$PATH"
# Where the environment forbids keeping bytecode, each program that tests start
# compiles all that it imports: 20 seconds instead of 7 for a script.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$PWD/.venv/bytecode"

section format ruff format --check .
section lint ruff check .
section types mypy
section imports lint-imports

run_tests() { # BACKEND MARKERS: two processes, as CI has two cores.
  # One thread for each: with more threads than cores, PyTorch is five times
  # slower. The cache saves JAX from compiling the same programs again in the
  # processes that tests start, and tests/conftest.py says where it optimizes
  # what it compiles. It orders the modules, too. With libtpu installed, JAX
  # would look for a TPU in every process.
  env KERAS_BACKEND="$1" OMP_NUM_THREADS=1 PJRT_NPROC=1 \
    TF_NUM_INTRAOP_THREADS=1 JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 \
    JAX_COMPILATION_CACHE_DIR="$PWD/.venv/jax-cache" \
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
    JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
    python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
    --durations=15 -m "$2"
}
if [ "$mode" = quick ]; then
  section "tests" run_tests "${KERAS_BACKEND:-jax}" "not large and not venv"
elif [ "$mode" = large ]; then
  section "large models" run_tests jax large
else
  # Only the last backend runs the tests that do not depend on the backend.
  once="not large and not venv and not once"
  section "tests on tensorflow" run_tests tensorflow "$once"
  section "tests on torch" run_tests torch "$once"
  section "tests on jax, clean installations" run_tests jax "not large"
fi

# The whole output is long: what failed is said again where it ends.
for name in "${failed[@]}"; do
  printf '\nFAILED: %s\n' "$name"
  grep -E '^(FAILED|ERROR|E  )|Error|error:' "$logs/$name" | tail -n 40 || true
done
[ "${#failed[@]}" -eq 0 ]
