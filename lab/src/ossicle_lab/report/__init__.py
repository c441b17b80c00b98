"""`ossicle report`: studies and runs as one HTML page that needs no other file."""
