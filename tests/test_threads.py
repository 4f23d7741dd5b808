"""Parts of the work on threads of their own."""

import os
import signal
import threading
import time

import pytest
import torch

from diffatr_cli.core.threads import parallel_for


def test_two_parts_run_at_once_each_with_one_thread_of_torch(two_threads):
    met, seen = threading.Barrier(2), []

    def work(part):
        met.wait(10)  # nobody passes alone
        seen.append((part, torch.get_num_threads()))

    parallel_for(work, range(2))
    assert sorted(seen) == [(0, 1), (1, 1)]
    assert torch.get_num_threads() == 2


def test_parts_within_parts_do_not_wait_for_one_another(two_threads):
    seen = []
    parallel_for(lambda outer: parallel_for(lambda inner: seen.append((outer, inner)), range(3)), range(4))
    assert sorted(seen) == [(outer, inner) for outer in range(4) for inner in range(3)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_autograd_is_as_it_was_outside(two_threads, mode):
    weight, out, flags = torch.ones(3, requires_grad=True), [], []
    with mode():
        kept = torch.zeros(2)

        def work(part):
            out.append((weight * part).requires_grad)
            flags.append(torch.is_inference_mode_enabled())
            kept[part] = 1  # of an inference tensor allowed in that mode only

        parallel_for(work, range(2))
    assert out == [mode is torch.enable_grad] * 2
    assert flags == [mode is torch.inference_mode] * 2
    assert kept.tolist() == [1, 1]


def test_an_error_reaches_the_caller(two_threads):
    def work(part):
        if part == 3:
            raise ValueError("part 3")

    with pytest.raises(ValueError, match="part 3"):
        parallel_for(work, range(5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_starts_threads_of_its_own(two_threads):
    parallel_for(lambda part: None, range(2))
    child = os.fork()
    if not child:
        seen = []
        parallel_for(seen.append, range(5))
        os._exit(0 if sorted(seen) == list(range(5)) else 1)
    for _ in range(200):  # a child that waits for threads which it does not have would wait for ever
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits")
    assert os.waitstatus_to_exitcode(status) == 0
