"""Run a grid of pretrainings, fine-tuning fractions and seeds, and compare them (`ossicle study`)."""
