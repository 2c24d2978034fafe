"""Listening sockets for mail, by TCP or on a unix path; and who is at the other end."""

import asyncio
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from service.errors import SettingsError

#: Connections that wait to be accepted.
BACKLOG = 128


def peer_group(transport: asyncio.Transport) -> str | None:
    """Return what counts as one peer: an IPv4 address, an IPv6 /64; None for a unix socket."""
    name = transport.get_extra_info("peername")
    return group_of(str(name[0])) if isinstance(name, tuple) else None


def group_of(host: str) -> str:
    """Return what counts as one peer for the IP address `host`."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def bind_path(setting: str, path: Path) -> socket.socket:
    """Return a socket that listens on `path`, which owner and group may connect to.

    A socket that nobody listens on any more is replaced. Raises SettingsError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and _deserted(path):
            path.unlink()
        # Made for nobody first: between bind and chmod no one else can connect.
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        path.chmod(0o660)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise SettingsError(setting, f"{path} {_problem(exc)}") from exc
    sock.setblocking(False)
    return sock


def _deserted(path: Path) -> bool:
    if not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def bind_tcp(setting: str, host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for every address of ``host``, all on one port. Raises SettingsError."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise SettingsError(setting, f"{shown} names no address of this machine") from exc
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        wanted = sockets[0].getsockname()[1] if sockets else port
        sock = socket.socket(family, kind, protocol)
        try:
            # A restart must not wait for the connections of its predecessor to be forgotten.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], wanted, *address[2:]))
            sock.listen(BACKLOG)
        except OSError as exc:
            sock.close()
            if exc.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                # 'localhost' names ::1 even where IPv6 is off.
                missing = exc
                continue
            for other in sockets:
                other.close()
            raise SettingsError(setting, f"{shown} {_problem(exc)}") from exc
        sock.setblocking(False)
        sockets.append(sock)
    if not sockets:
        raise SettingsError(setting, f"{shown} is no address of this machine") from missing
    return sockets


def _problem(exc: OSError) -> str:
    match exc.errno:
        case errno.EADDRINUSE:
            return "is already in use; stop the program that has it, or choose another"
        case errno.EACCES:
            return "needs a permission that this process lacks; a port above 1023 needs none"
        case _:
            return f"can't be listened on: {exc.strerror}"
