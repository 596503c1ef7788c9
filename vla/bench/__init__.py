"""How fast things are, measured beside another implementation in the same run."""
