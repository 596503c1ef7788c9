"""`python -m vla …` is the `vla` command; `torchrun … -m vla train …` starts it on many devices."""

from vla.cli import main

if __name__ == "__main__":
    main()
