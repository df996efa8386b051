"""The command line, as `helix-sim` and as `python -m helix_sim`."""

from __future__ import annotations


def main() -> None:
    """Entry point. Where the command line itself cannot be imported, that is a bug's exit code: Python's own 1 means moved."""
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
