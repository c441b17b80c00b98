"""Run the command line with `python -m ossicle`."""

from ossicle.cli.main import main

main()
