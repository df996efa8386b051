"""`python -m helix_sim` is the command line."""

from helix_sim.cli import main

main()
