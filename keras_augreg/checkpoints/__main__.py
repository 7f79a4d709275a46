"""Downloads checkpoints: `python -m keras_augreg.checkpoints NAME...`.

Prints the path of each file, one a line. Example:

    python -m keras_augreg.checkpoints --variant=ViT_Ti16 augreg-in21k
"""

from __future__ import annotations

import argparse
import sys

from keras_augreg.checkpoints import names
from keras_augreg.checkpoints.download import download


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_augreg.checkpoints",
        description="Downloads checkpoints of the AugReg release into the "
        "cache (KERAS_AUGREG_CACHE) and prints their paths.",
    )
    parser.add_argument(
        "name",
        nargs="+",
        help="a full name, hf://OWNER/NAME or, with --variant, an alias such "
        "as augreg-in21k",
    )
    parser.add_argument("--variant", help="an architecture: ViT_B16 or B/16")
    parser.add_argument(
        "--resolution", type=int, help="which file of an alias: 224 or 384"
    )
    args = parser.parse_args(argv)
    status = 0
    for name in args.name:
        try:
            if args.variant is not None:
                name = names.resolve(args.variant, name, args.resolution)
            print(download(name), flush=True)
        except (ValueError, OSError, ImportError) as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
