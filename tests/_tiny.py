"""Runs a script on architectures of two blocks, which compile quickly.

    python tests/_tiny.py recipes/pretrain.py --epochs=1
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
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
