"""PaliGemmas of other projects: who wrote a file, and where in it each weight stands."""
