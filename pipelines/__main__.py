"""``python -m pipelines COMMAND ...``"""

from __future__ import annotations

import sys


def main() -> int:
    """The console script: signals are handled before anything heavy is imported."""
    from pipelines import stopping

    stopping.install()
    from pipelines.cli import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
