"""Write the settings of the nginx that stands before Flower's SuperLink.

Whoever reaches the SuperLink's Control API may start a run, which is to run code on
every node. The SuperLink therefore listens on loopback only, and nginx passes on
nothing but what clients need.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SETTINGS = "nginx.conf"
WORKING_FOLDER = "nginx"  # beside the settings: pid, log, parts of large messages
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

_TEMPLATE = """\
# Written by `instahide-fl deploy init`. Paths start in this file's folder.
# Only the fleet API and the health check of the SuperLink pass. Its Control API has no
# login: never add a location that leads to it.
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;

events {{
    worker_connections 1024;
}}

http {{
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
{temporary}

    # Flower sends a model in pieces of 5 MB, which need not go over the disk.
    client_max_body_size 64m;
    client_body_buffer_size 8m;
    client_header_timeout 30s;
    client_body_timeout 120s;
    send_timeout 120s;
    keepalive_timeout 75s;

    server {{
{listen}
        server_name _;
        ssl_certificate server.crt;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_connect_timeout 10s;
        proxy_read_timeout 300s;
        proxy_send_timeout 120s;
        proxy_ssl_trusted_certificate ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;

        # With a path after the port, nginx passes on the path that it has checked, and
        # not the one that the client wrote.
        location /v1/fleet/ {{
            proxy_pass https://127.0.0.1:{superlink_port}/v1/fleet/;
        }}
        location = /health {{
            proxy_pass https://127.0.0.1:{superlink_port}/health;
        }}
        location / {{
            return 403;
        }}
    }}
}}
"""


def nginx_settings(
    fleet_port: int, superlink_port: int, hosts: Sequence[str] = ()
) -> str:
    """Return the text of nginx.conf, for the folder of certificates and keys.

    Args:
        fleet_port: The port that clients connect to, on all interfaces.
        superlink_port: The SuperLink's port, on loopback.
        hosts: The server's names and IP addresses; nginx listens on IPv6 too if one is
            an IPv6 address.
    """
    listen = [f"        listen {fleet_port} ssl;"]
    if any(":" in host for host in hosts):
        listen.append(f"        listen [::]:{fleet_port} ssl;")
    temporary = [
        f"    {kind}_temp_path {WORKING_FOLDER}/{kind};" for kind in _TEMPORARY
    ]
    return _TEMPLATE.format(
        folder=WORKING_FOLDER,
        temporary="\n".join(temporary),
        listen="\n".join(listen),
        superlink_port=superlink_port,
    )


def nginx_command(program: str, folder: Path) -> list[str]:
    """Return the command that runs nginx in the foreground, without root's rights.

    Args:
        program: The path of nginx.
        folder: An absolute path, of the folder with nginx.conf, certificates and keys,
            and a folder `nginx`.
    """
    log = f"{WORKING_FOLDER}/error.log"
    command = [program, "-p", f"{folder}/", "-e", log, "-c", SETTINGS]
    if os.geteuid() == 0:
        # Started by root, nginx would hand its work to a user who cannot enter here.
        command += ["-g", "user root;"]
    return command
