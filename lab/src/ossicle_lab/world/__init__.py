"""The generated world: a grammar in three languages, its tasks, and its speech."""
