"""Show studies and runs as one HTML page (`ossicle report`)."""
