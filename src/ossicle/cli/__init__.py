"""The command line, `ossicle COMMAND`. One file holds the commands of one group; `main` assembles them."""
