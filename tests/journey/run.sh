#!/usr/bin/env bash
# A newcomer's first hour in a clean environment: bash tests/journey/run.sh
#
# From the built wheel, with JAX and without TensorFlow, then from a clone.
# Only the installations have a network. By hand, because it takes minutes; the
# last run's log is tests/benchmarks/logs/journey.txt.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset KERAS_BACKEND PYTHONPATH
export HOME="$work" TERM=dumb OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
python="$work/venv/bin/python"

offline() { # COMMAND...: runs it without a network and shows its results
  printf '\n$ %s\n' "$*" | sed "s#$work/venv/bin/##"
  # Without the progress bars.
  unshare -rn "$@" 2> errors.txt | grep -v "s/step" || {
    cat errors.txt
    exit 1
  }
}

date -u +"%F %H:%M, $(git -C "$root" rev-parse --short HEAD)"
git clone -q "$root" "$work/clone"
cd "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$python" -m pip install -q build
"$python" -m build -q --outdir "$work/dist" "$work/clone" > build.txt 2>&1
wheel="$(echo "$work"/dist/*.whl)"
"$python" -m pip install -q --no-compile "$wheel[jax,study]"
"$python" -m pip list 2> /dev/null | grep -iE "^(jax|keras|numpy|tensorflow) "
if "$python" -c "import tensorflow" 2> /dev/null; then exit 1; fi

mkdir "$work/wheel" && cd "$work/wheel"
"$python" - <<'PYTHON'
import pathlib

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images

rng = np.random.default_rng(0)
sample = load_sample_images()
for name, image in zip(("temple", "flower"), sample.images, strict=True):
    folder = pathlib.Path("photos", name)
    folder.mkdir(parents=True)
    for i in range(40):
        top, left = rng.integers(0, 200, 2)
        crop = image[top : top + 200, left : left + 300]
        PIL.Image.fromarray(crop).save(folder / f"{i}.jpg")
PYTHON

echo; echo "--- from the wheel"
offline "$python" -m keras_augreg pretrain --epochs=1 "--train_split=train[:40%]"
tune=(--dataset=~/wheel/photos --image_size=48 --steps=10 --learning_rate=0.03)
tune+=(--weights=runs/pretrain/model.keras)
offline "$python" -m keras_augreg finetune "${tune[@]}"
offline "$python" -m keras_augreg evaluate --dataset=photos --image_size=48 \
  --weights=runs/finetune/model.keras
offline "$python" -m keras_augreg predict --top=2 runs/finetune/model.keras \
  photos/temple/0.jpg photos/flower/0.jpg
ls runs/finetune runs/evaluate

echo; echo "--- another try with other settings is told of a fresh directory"
if unshare -rn "$python" -m keras_augreg finetune "${tune[@]}" --steps=30 \
  > output.txt 2>&1; then exit 1; fi
grep -A 3 "another experiment" output.txt | tail -n 3

echo; echo "--- from the clone"
"$python" -m pip uninstall -qy keras_augreg
"$python" -m pip install -q --no-deps --editable "$work/clone"
cd "$work/clone"
offline "$python" recipes/finetune.py "${tune[@]/#--weights=/--weights=../wheel/}"
offline "$python" recipes/predict.py --top=2 runs/finetune/model.keras \
  ../wheel/photos/flower/0.jpg
echo; echo "The journey is over: all of it worked."
