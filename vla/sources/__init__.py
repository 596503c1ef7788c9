"""Policies of other projects: who wrote a folder, what its files say, and how to load it."""
