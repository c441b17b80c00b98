"""The command line: `ossicle COMMAND`."""
