"""Procfile, compose and image run the same processes, and the front door keeps keys from most."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def procfile() -> dict[str, list[str]]:
    rows = (ROOT / "Procfile").read_text().splitlines()
    pairs = (row.split(":", 1) for row in rows if row.strip())
    return {name: shlex.split(command) for name, command in pairs}


def compose() -> dict[str, dict[str, object]]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services: dict[str, dict[str, object]] = loaded["services"]
    return services


def test_compose_runs_the_processes_of_the_procfile_beside_redis() -> None:
    services = compose()
    assert set(services) == {*procfile(), "redis"}
    for name, command in procfile().items():
        listed = services[name]["command"]
        assert isinstance(listed, list)
        assert command[0] == "./aegis"
        assert listed[0] == command[1] == name


def test_compose_gives_every_process_time_to_drain_and_room_for_a_ring() -> None:
    for name, service in compose().items():
        assert service["stop_grace_period"] == "30s", name
        if name != "redis":
            assert service["shm_size"] == "256m", name


def test_compose_redis_keeps_what_it_is_told() -> None:
    command = str(compose()["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_only_risk_is_given_exchange_keys() -> None:
    for name, service in compose().items():
        environment = service.get("environment", {})
        assert isinstance(environment, dict)
        assert ("BINANCE_API_SECRET" in environment) == (name == "risk"), name


def test_every_command_that_is_run_anywhere_exists() -> None:
    """Procfile, compose and image name commands of the front door."""
    from maintenance import cli

    parser = cli.build()
    commands = next(a.choices for a in parser._actions if isinstance(a.choices, dict))
    image = (ROOT / "Dockerfile").read_text()
    named = {command[1] for command in procfile().values()}
    named |= {str(s["command"][0]) for n, s in compose().items() if n != "redis"}  # type: ignore[index]
    named |= set(re.findall(r"\./aegis (\w+)", image)) | {"up"}
    assert named <= set(commands), named - set(commands)
    assert 'ENTRYPOINT ["./aegis"]' in image and 'CMD ["up"]' in image


def test_requirements_are_pinned_and_name_no_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for row in (ROOT / name).read_text().splitlines():
            row = row.split("#")[0].strip()
            assert not row or row.startswith("-r ") or "==" in row, row
            assert "://" not in row and "index" not in row, row


def test_the_front_door_drops_keys_before_python_starts(tmp_path: Path) -> None:
    """A Python that shows its environment stands in for the real one."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\nif [ "$1" = -m ]; then env; fi\nexit 0\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BINANCE_API_SECRET": "s3"}
    for command, kept in [("status", False), ("node", False), ("risk", True), ("up", True)]:
        shown = subprocess.run(
            [ROOT / "aegis", command], env=env, capture_output=True, text=True, check=True
        ).stdout
        assert ("BINANCE_API_SECRET=s3" in shown) == kept, command


def test_the_front_door_is_posix_shell() -> None:
    assert subprocess.run(["sh", "-n", ROOT / "aegis"], check=False).returncode == 0
    assert (ROOT / "aegis").read_text().rstrip().splitlines()[-1].strip().startswith("exec ")
