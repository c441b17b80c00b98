"""Train and test on published models and recorded speech (`python -m ossicle_lab.real`)."""
