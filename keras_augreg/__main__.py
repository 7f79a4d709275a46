"""Runs a script of `recipes/`: `python -m keras_augreg finetune --help`."""

from __future__ import annotations

import ast
import pathlib
import runpy
import sys

COMMANDS = (
    "predict",
    "export",
    "finetune",
    "pretrain",
    "evaluate",
    "sweep",
    "benchmark",
    "flight_check",
    "show_augmentation",
)


def folder() -> pathlib.Path:
    """The scripts: in the package if it is installed, beside it in a clone."""
    here = pathlib.Path(__file__).parent
    inside = here / "recipes"
    return inside if inside.is_dir() else here.parent / "recipes"


def main(arguments: list[str]) -> int:
    """Runs the command as Python would run its file; returns the status."""
    command, *rest = arguments or ["--help"]
    if command not in COMMANDS:
        help_wanted = command in ("-h", "--help", "help")
        if not help_wanted:
            print(f"Unknown command: {command!r}\n", file=sys.stderr)
        print("python -m keras_augreg COMMAND, where COMMAND is one of\n")
        for name in COMMANDS:
            tree = ast.parse((folder() / f"{name}.py").read_text())
            line = (ast.get_docstring(tree) or "").partition("\n")[0]
            print(f"  {name:18} {line}")
        print("\nWith --help, a command explains itself.")
        return 0 if help_wanted else 2
    script = folder() / f"{command}.py"
    sys.argv = [str(script), *rest]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
