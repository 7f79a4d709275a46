"""Runs scripts whose only arguments are flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import app


def run(main: Callable[[list[str]], Any]) -> None:
    """As `app.run`; refuses what is not a flag, which absl would ignore."""

    def checked(argv: list[str]) -> Any:
        if argv[1:]:
            raise app.UsageError(
                f"Expected flags only. Received: {' '.join(argv[1:])}. Write "
                "--flag=value, and of a switch --flag or --noflag."
            )
        return main(argv)

    app.run(checked)
