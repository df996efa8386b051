"""`python -m helix_sim` is the command line."""

from helix_sim.cli import main

if __name__ == "__main__":  # a spawned worker process imports this file, too
    main()
