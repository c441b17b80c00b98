"""Run the command line with `python -m ossicle`."""

from ossicle.cli import main

main()
