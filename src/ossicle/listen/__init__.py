"""Listen with a trained model: recordings of any length, in the forms that other programs read."""
