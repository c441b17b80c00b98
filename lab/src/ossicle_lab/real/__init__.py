"""The method on recorded speech and on real text in generated voices."""
