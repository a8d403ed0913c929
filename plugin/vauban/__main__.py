"""`python -m vauban`: the `vauban` command of this interpreter."""

from vauban.cli import main

main()
