"""`python -m varsr_engine`: the same as the command `varsr`."""

from varsr_engine.cli import main

main()
