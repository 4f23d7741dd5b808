"""`python -m diffatr_cli` is `diffatr`."""

from .cli.main import main

if __name__ == "__main__":
    main()
