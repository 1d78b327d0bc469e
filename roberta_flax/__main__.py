"""`python -m roberta_flax`: the command line."""

from roberta_flax.cli import main

if __name__ == "__main__":
    main()
