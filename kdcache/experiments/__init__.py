"""Many students from one cache: a grid of settings over seeds, each with its baseline."""
