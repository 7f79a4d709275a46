"""Adapters of `to_peft` in timm and peft: the logits, compared.

python -m pip install --no-deps --target /tmp/peft \\
    peft accelerate transformers typer annotated-doc shellingham
PYTHONPATH=$PWD:tests/checkpoints:/tmp/peft \\
    python tests/benchmarks/peft_adapters.py

CPU, 20 seconds. peft needs transformers, which CI does without; its log is
logs/peft_adapters.txt.
"""

import tempfile

import keras
import numpy as np
import torch
from _timm import import_timm

timm = import_timm()
import peft  # noqa: E402

import keras_augreg  # noqa: E402
from keras_augreg import checkpoints  # noqa: E402

model = keras_augreg.ViT_Ti16(
    weights=None, classes=10, classifier_activation=None
)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (4, 224, 224, 3)).astype("uint8")
folder = tempfile.mkdtemp()
checkpoints.to_timm(model, f"{folder}/base.safetensors")
model.enable_lora(rank=4, alpha=8)
for weight in model.trainable_variables:  # as if it had been trained
    weight.assign(rng.normal(0, 0.02, weight.shape))
checkpoints.to_peft(model, folder)

base = timm.create_model(
    "vit_tiny_patch16_224",
    num_classes=10,
    act_layer="gelu_tanh",
    checkpoint_path=f"{folder}/base.safetensors",
)
adapted = peft.PeftModel.from_pretrained(base, folder).eval()
pixels = torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)
with torch.no_grad():
    theirs = adapted(pixels).numpy()
    merged = adapted.merge_and_unload()(pixels).numpy()
ours = model.predict(images, verbose=0)
error, after_merge = (np.abs(ours - y).max() for y in (theirs, merged))
print(
    f"{keras.backend.backend()}, keras {keras.__version__}, timm "
    f"{timm.__version__}, peft {peft.__version__}: logits up to "
    f"{np.abs(ours).max():.2f}; largest difference {error:.1e}, "
    f"{after_merge:.1e} after peft's merge"
)
assert max(error, after_merge) < 1e-4 < np.abs(ours).max()
