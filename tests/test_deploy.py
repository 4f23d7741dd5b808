"""The files of deploy/ say what is there: commands and options of the program, paths, extras, and one user without rights."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from diffatr_cli.cli.main import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
VARIABLE = re.compile(r"\$\{\w+\}")


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, with their lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def of_dockerfile(name: str) -> list[str]:
    return [rest for instruction, rest in dockerfile() if instruction == name]


def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def unit() -> dict[str, dict[str, list[str]]]:
    """Sections, and all values of each setting: systemd lets one stand several times."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / "diffatr.service").read_text(encoding="utf-8").splitlines():
        if section := re.fullmatch(r"\[(\w+)\]", line):
            settings = found.setdefault(section[1], {})
        elif line and not line.startswith("#"):
            name, value = re.fullmatch(r"(\w+)=(.*)", line).groups()  # type: ignore[union-attr]
            settings.setdefault(name, []).append(value)
    return found


def image_command() -> list[str]:
    (entry,), (command,) = of_dockerfile("ENTRYPOINT"), of_dockerfile("CMD")
    return [*json.loads(entry), *json.loads(command)]


def compose_command() -> list[str]:
    (entry,) = of_dockerfile("ENTRYPOINT")
    return [*json.loads(entry), *compose()["services"]["diffatr"]["command"]]


def unit_command() -> list[str]:
    (line,) = unit()["Service"]["ExecStart"]
    return shlex.split(line)


COMMANDS = {"Dockerfile": image_command, "compose.yaml": compose_command, "diffatr.service": unit_command}


@pytest.mark.parametrize("file", COMMANDS)
def test_every_command_is_one_of_the_program(file: str, tmp_path: Path) -> None:
    """It is parsed as the program parses it, with values that exist here in the place of paths and variables."""
    program, *arguments = COMMANDS[file]()
    assert Path(program).name == "diffatr"
    command, *options = [argument for argument in arguments if argument != "--offline"]
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    context = found.make_context(command, [VARIABLE.sub(str(tmp_path), option) for option in options])
    assert str(context.params["port"]) == "8765"
    assert context.params["workers"] >= 2
    assert context.params["open_browser"] is False


@pytest.mark.parametrize("path", [ROOT / ".ci" / "image", *sorted(DEPLOY.iterdir())], ids=lambda path: path.name)
def test_extras_and_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= EXTRAS.keys()
        assert "service" in extras.split(",")
    for name in re.findall(r"\bdeploy/[\w.]+\w", text):
        assert (ROOT / name).is_file() or name == "deploy/key", name


def test_the_image_runs_as_nobody_in_particular_and_is_watched() -> None:
    users = of_dockerfile("USER")
    assert users
    assert users[-1] not in ("root", "0")
    (made,) = [rest for rest in of_dockerfile("RUN") if "useradd" in rest]
    assert users[-1] in made
    instructions = [name for name, _ in dockerfile()]
    last_user = len(instructions) - 1 - instructions[::-1].index("USER")
    assert not {"RUN", "COPY", "ADD"} & set(instructions[last_user:])  # what is installed, the user cannot change
    (check,) = of_dockerfile("HEALTHCHECK")
    assert "/health" in check
    assert all(":latest" not in base and ":" in base for base in of_dockerfile("FROM"))
    compile(json.loads(check[check.index("CMD") + 4 :])[2], "healthcheck", "exec")


def test_what_the_image_copies_is_what_its_context_has() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert needed | set(wheel["packages"]) | set(wheel["force-include"]) <= kept


def test_compose_mounts_the_recordings_to_be_read_and_a_volume_for_the_index() -> None:
    document = compose()
    service = document["services"]["diffatr"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    options = dict(option.split("=", 1) for option in compose_command() if "=" in option)
    (recordings,) = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert (recordings["target"], recordings["read_only"]) == (options["--corpus"], True)
    (index,) = [volume for volume in service["volumes"] if isinstance(volume, str)]
    name, target = index.split(":")
    assert target == options["--index"]
    assert name in document["volumes"]
    (secret,) = service["secrets"]
    assert options["--key-file"] == f"/run/secrets/{secret}"
    assert secret in document["secrets"]
    (port,) = service["ports"]
    assert port.startswith("127.0.0.1:")
    assert port.endswith(f":{options['--port']}")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service


def test_the_unit_is_hardened_and_waits_for_answers() -> None:
    service = unit()["Service"]
    for name in ("NoNewPrivileges", "DynamicUser", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "RestrictSUIDSGID"):
        assert service[name] == ["yes"], name
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    line = " ".join(unit_command())
    assert service["ReadOnlyPaths"][0] in line
    credential, _ = service["LoadCredential"][0].split(":")
    assert f"${{CREDENTIALS_DIRECTORY}}/{credential}" in line
    assert ("${STATE_DIRECTORY}" in line) == ("StateDirectory" in service)


def test_stopping_leaves_the_time_that_answers_may_take() -> None:
    from diffatr_cli.cli.serve import _UNWINDING
    from diffatr_cli.web.server import LIMITS

    longest = LIMITS.stop_seconds + _UNWINDING
    assert int(unit()["Service"]["TimeoutStopSec"][0]) > longest
    assert int(compose()["services"]["diffatr"]["stop_grace_period"].removesuffix("s")) > longest


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    # The program need not be where the unit has it; `true` stands in for it.
    text = (DEPLOY / "diffatr.service").read_text(encoding="utf-8").replace("/opt/diffatr/bin/diffatr", "/bin/true")
    path = tmp_path / "diffatr.service"
    path.write_text(text, encoding="utf-8")
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_script_of_the_image_skips_where_there_is_no_docker(tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run([ROOT / ".ci" / "image"], capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stdout
