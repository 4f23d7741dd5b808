"""`diffatr serve` by real processes without a trained model: python fake_service.py ARGUMENTS. Its workers are this file too."""

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from fake_retriever import FakeRetriever  # noqa: E402

from diffatr_cli.cli import answering, serve, serve_worker, signals  # noqa: E402


class Retriever(FakeRetriever):
    """Texts that begin with `slow` take a second."""

    def embed_text(self, captions):
        if "slow" in captions[0]:
            Path(os.environ["DIFFATR_TEST_BEGUN"]).touch()
            time.sleep(1)
        return super().embed_text([caption.replace("slow ", "") for caption in captions])


def load(*_):
    if os.environ.get("DIFFATR_TEST_FAILS") == "model":
        from diffatr_cli.errors import UsageError

        raise UsageError("there is no such model")
    if os.environ.get("DIFFATR_TEST_FAILS") == "always":
        os._exit(7)
    return Retriever(phase_two=True)


answering.load_model = load

if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve_worker.main()
    else:
        signals.install()
        serve._WORKER = "fake_service"
        from diffatr_cli.cli.main import main

        main()
