"""`python -m gradlab` is the `gradlab` command."""

from gradlab.cli.main import main

main(prog_name="gradlab")
