"""compose.yaml and the Dockerfile keep to the specification's schema and to what the service asks of them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.serving import roles_named
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: The containers that run our image.
OURS = [name for name, service in SERVICES.items() if "build" in service]
PROFILES = ("dev", "scale")
#: A version with a number for each part, at least two: ``latest`` and ``3`` move.
PINNED = re.compile(r"[a-z0-9./-]+:v?[0-9]+(\.[0-9]+)+(-[a-z0-9.-]+)?")


def settings_of(name: str, folder: Path) -> Settings:
    """Return what `approvals serve` reads in that container."""
    service = SERVICES[name]
    env: dict[str, str] = dict(service["environment"])
    mounted = {f"/run/secrets/{secret}" for secret in service["secrets"]}
    for variable, value in env.items():
        if variable.endswith("_FILE"):
            assert value in mounted
            secret = folder / Path(value).name
            secret.write_text("k" * 43)
            env[variable] = str(secret)
    return load_settings("serve", env, folder)


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
def test_a_container_can_do_little(name: str) -> None:
    """Read-only, without capabilities, on loopback alone, and started again after a fall."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", set(SERVICES) - {"mailhog"})
def test_nobody_is_root(name: str) -> None:
    """A user of its own, by number; MailHog's image has one."""
    uid, gid = SERVICES[name]["user"].split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_service_runs_as_the_images_user() -> None:
    """The same user in both files: the volume takes its owner from the image's folder."""
    [user] = {SERVICES[name]["user"] for name in OURS}
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == [user]
    uid, gid = user.split(":")
    assert f"--uid {uid}" in DOCKERFILE
    assert f"--gid {gid}" in DOCKERFILE


def test_each_profile_is_whole() -> None:
    """Whom a container depends on is in all its profiles; no port is given out twice in one."""
    for name, service in SERVICES.items():
        for other in service.get("depends_on", []):
            assert set(service["profiles"]) <= set(SERVICES[other]["profiles"]), (name, other)
    for profile in PROFILES:
        ports = [
            port.split(":")[1]
            for service in SERVICES.values()
            for port in service.get("ports", [])
            if profile in service["profiles"]
        ]
        assert len(ports) == len(set(ports)), profile


@pytest.mark.parametrize("name", OURS)
def test_the_service_starts_with_these_settings(name: str, tmp_path: Path) -> None:
    """`approvals serve` accepts every setting and role, and needs no other."""
    service, settings = SERVICES[name], settings_of(name, tmp_path)
    command, *roles = service.get("command", ["serve"])
    assert command == "serve"
    serves = roles_named(roles or ["gateway", "worker", "mailbox"])
    listens = {"gateway": settings.http.port, "mailbox": settings.mailbox.port}
    ports = {int(port.rsplit(":", 1)[1]) for port in service.get("ports", [])}
    assert ports == {port for role, port in listens.items() if role in serves}
    assert settings.smtp.host in SERVICES
    asked = re.findall(r"127\.0\.0\.1'?[:,] ?([0-9]+)", service["healthcheck"]["test"][-1])
    assert [port for port in map(int, asked) if port not in ports] == []


def test_each_role_has_as_many_processes_as_its_ports() -> None:
    """The published range has a port for each gateway."""
    gateway = SERVICES["gateway"]
    first, last = map(int, gateway["ports"][0].split(":")[1].split("-"))
    assert gateway["deploy"]["replicas"] == last - first + 1
    assert SERVICES["worker"]["deploy"]["replicas"] > 1


def test_promises_outlive_their_containers(tmp_path: Path) -> None:
    """What is promised is on a volume; the secrets are files that git does not take."""
    (volume,) = SERVICES["service"]["volumes"]
    source, target = volume.split(":")
    assert source in COMPOSE["volumes"]
    assert settings_of("service", tmp_path).engine.startswith(f"sqlite:///{target}/")
    (volume,) = SERVICES["postgres"]["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]
    assert [s["file"] for s in COMPOSE["secrets"].values() if not s["file"].endswith(".keys")] == []
    assert "*.keys" in (ROOT / ".gitignore").read_text().splitlines()


def test_postgres_is_reached_by_the_engine_alone(tmp_path: Path) -> None:
    """Its network has no way out and no other member; the rest reach the engine by its name and port."""
    members = [name for name, service in SERVICES.items() if "database" in service.get("networks", [])]
    assert members == ["engine", "postgres"]
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"]["internal"] is True
    for name in ("gateway", "worker", "mailbox"):
        assert settings_of(name, tmp_path).engine == "http://engine:8001"


@pytest.mark.parametrize("name", OURS)
def test_health_checks_need_nothing_but_python(name: str) -> None:
    """The image has no curl; what is run is Python that can be read."""
    command = SERVICES[name]["healthcheck"]["test"]
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
