"""`ossicle demo`: the whole method on generated speech."""
