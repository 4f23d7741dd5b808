"""Completion in bash, as a person who presses Tab gets it."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from command_line import ROOT, typed

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")

PRESS_TAB = """
eval "$(diffatr --show-completion bash)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
spec=$(complete -p diffatr) || exit 3
name=${spec#*-F }
"${name%% *}" diffatr
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def tab(tmp_path):
    """What Tab offers after some words."""
    program = tmp_path / "bin" / "diffatr"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffatr_cli "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SHELL": BASH}

    def press(*words):
        command = [BASH, "--norc", "-c", PRESS_TAB, "bash", "diffatr", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return [line for line in done.stdout.splitlines() if line]

    return press


def test_commands_and_options_are_completed(tab):
    assert tab("qu") == ["query"]
    assert {"tag", "train-diffusion", "trajectory"} == set(tab("t"))
    assert tab("query", "dog", "--cor") == ["--corpus"]
    assert set(tab("serve", "--wo")) == {"--workers"}
    assert tab("nonsense", "--x") == []
    assert tab("query", "--corpus", "b") == []  # then bash completes names of files itself


def test_the_script_is_shown_and_nothing_else():
    result = typed(["--show-completion", "bash"])
    assert result.code == 0
    assert result.err == ""
