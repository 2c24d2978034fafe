"""compose.yaml and the Dockerfile keep to the specification's schema and to what the service asks of them."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: A version with a number for each part, at least two: ``latest`` and ``3`` move.
PINNED = re.compile(r"[a-z0-9./-]+:v?[0-9]+(\.[0-9]+)+(-[a-z0-9.-]+)?")


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_compose_keeps_to_the_specification() -> None:
    """The compose specification's own schema accepts the file."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run(  # noqa: S603 - our own interpreter and file
        [*command, ROOT / "compose.yaml"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_image_is_pinned() -> None:
    """No image moves under its tag's feet by a whole version."""
    images = [service["image"] for service in SERVICES.values()]
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert images
    assert bases
    assert [image for image in images + bases if not PINNED.fullmatch(image)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_little(name: str) -> None:
    """Read-only, without capabilities, on loopback alone, and started again after a fall."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert [port for port in service["ports"] if not port.startswith("127.0.0.1:")] == []


def test_the_service_runs_as_the_images_user() -> None:
    """Not root, and the same user in both files: the volume takes its owner from the image's folder."""
    user = SERVICES["service"]["user"]
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == [user]
    uid, gid = user.split(":")
    assert f"--uid {uid}" in DOCKERFILE
    assert f"--gid {gid}" in DOCKERFILE
    assert int(uid) > 0


def test_the_service_starts_with_these_settings(tmp_path: Path) -> None:
    """`approvals serve` accepts every setting, and needs no other."""
    service = SERVICES["service"]
    env: dict[str, str] = dict(service["environment"])
    mounted = {f"/run/secrets/{name}" for name in service["secrets"]}
    for name, value in env.items():
        if name.endswith("_FILE"):
            assert value in mounted
            secret = tmp_path / Path(value).name
            secret.write_text("k" * 43)
            env[name] = str(secret)
    settings = load_settings("serve", env, tmp_path)
    ports = {int(port.rsplit(":", 1)[1]) for port in service["ports"]}
    assert {settings.http.port, settings.mailbox.port} == ports
    assert settings.smtp.host in SERVICES
    assert f"http://127.0.0.1:{settings.http.port}/healthz" in service["healthcheck"]["test"][-1]


def test_the_database_is_on_the_volume() -> None:
    """What is promised outlives the container; the secrets are files that git does not take."""
    (volume,) = SERVICES["service"]["volumes"]
    source, target = volume.split(":")
    assert source in COMPOSE["volumes"]
    assert SERVICES["service"]["environment"]["APPROVALS_ENGINE"].startswith(f"sqlite:///{target}/")
    assert [s["file"] for s in COMPOSE["secrets"].values() if not s["file"].endswith(".keys")] == []
    assert "*.keys" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_health_check_needs_nothing_but_python() -> None:
    """The image has no curl; what is run is Python that can be read."""
    command = SERVICES["service"]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "python", "-c"]
    compile(command[3], "healthcheck", "exec")


def test_the_build_is_given_all_that_it_copies() -> None:
    """.dockerignore lets in what the Dockerfile copies, and all of it is there."""
    copied = [
        name
        for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for name in line.split()
    ]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert set(copied) == let_in
    assert [name for name in copied if not (ROOT / name).exists()] == []
