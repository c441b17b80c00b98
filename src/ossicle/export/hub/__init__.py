"""The code of exported models: files that `ossicle export` copies, and that import nothing of Ossicle."""
