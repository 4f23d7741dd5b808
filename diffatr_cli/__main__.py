"""`python -m diffatr_cli` is `diffatr`."""


def main() -> None:
    """Run the command line. A signal is handled from here on, before anything that takes long to load."""
    import _signal  # type: ignore[import-not-found]  # built in, unlike `signal`, which loads others

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # it ends what has not begun, without a traceback
    from .cli import signals

    signals.install()
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
