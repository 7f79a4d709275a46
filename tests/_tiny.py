"""Runs a script or module on architectures of two blocks: quickly compiled.

python tests/_tiny.py recipes/pretrain.py --epochs=1
python tests/_tiny.py -m keras_augreg pretrain --epochs=1
"""

import dataclasses
import pathlib
import runpy
import sys

from keras_augreg.variants import VARIANTS

for variant in VARIANTS.values():
    sizes = dataclasses.replace(variant.sizes, depth=2)
    object.__setattr__(variant, "sizes", sizes)
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
