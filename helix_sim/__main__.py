"""The command line, as `helix-sim` and as `python -m helix_sim`."""

from __future__ import annotations


def main() -> None:
    """Entry point; a command line that cannot even be imported ends as a bug does, for Python's own 1 means moved."""
    try:
        from helix_sim.cli import main as run
    except Exception:
        import contextlib
        import sys
        import traceback

        from helix_sim.core.errors import Exit

        with contextlib.suppress(OSError):
            traceback.print_exc()
        sys.exit(int(Exit.BUG))
    run()


if __name__ == "__main__":  # a spawned worker process imports this file, too
    main()
