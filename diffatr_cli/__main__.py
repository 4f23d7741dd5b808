"""`python -m diffatr_cli` is `diffatr`."""

from .cli import signals


def main() -> None:
    """Run the command line. A signal is handled from here on, before anything that takes long to load."""
    signals.install()
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
