"""Where models run and in which precision."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("told", ["default", "avx2"])
def test_a_torch_that_is_told_to_do_without_avx512_is_not_given_bf16(told):
    """Whatever the processor could do: oneDNN would emulate it, twelve times slower than float32."""
    asked = "import torch; from diffatr_cli.device import wants_bf16; cpu = torch.device('cpu'); "
    asked += "print(wants_bf16('auto', cpu), wants_bf16('bf16', cpu), wants_bf16('fp32', cpu))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": told}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
