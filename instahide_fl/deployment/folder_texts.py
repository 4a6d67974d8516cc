"""The texts in a federation's folders that people read and edit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

_CLIENT_SETTINGS = """\
# What {name} gives to the federation, and what it lets a run do. This file is yours:
# the server cannot change it, and a run that asks for more is refused.

name = {quoted_name}
server = {server}

# Your images: a folder with one folder per class (or any other data set, written as
# data.dataset: hf:PATH, ...). A relative path starts in this folder.
data = "imagefolder:images"
# If the data set has several parts, columns or configurations, name yours:
# train-part = "", image-column = "", label-column = "", config = "" (a line each).
# Names of all classes, in the order that the federation agreed on. Empty takes the
# names of your folders in alphabetical order: right if all clients have all classes.
classes = []
# The public images to mix with: "photos" (ship with the software), or the folder of a
# pool, the same for all clients.
pool = "photos"

# The code that may run here, as `instahide-fl deploy code-hash` prints it on your own
# installation. Empty runs whatever the server sends.
code-hash = {app_hash}

[limits]
# Distinct encodings that one image may take part in, over all runs; 0 for no limit.
max-exposures = 0
methods = ["instahide"]
min-num-mixed = 4
max-coefficient = 0.65
max-private-weight = 0.3
# The next two are for rehearsals with public images.
allow-truth = false
allow-seeded-keys = false
"""

_CLIENT_README = """\
# {name}, a client of {federation}

This folder is all that {name} needs to take part. `node.key` is its identity: keep
the folder on one machine, readable to one user, and in no mail.

1. Install the software, in the version that the operator names:
   `pip install instahide-fl`
2. Put this folder in its place and keep others out: `chmod -R go= {name}`
3. Compare the code: `instahide-fl deploy code-hash` must print the `code-hash` that is
   in `client.toml`. If it does not, ask the operator which version runs; do not just
   pin another hash.
4. Write into `client.toml` where your images are (`data`), and read the limits.
5. Check everything: `instahide-fl doctor {name}`
6. Take part: `instahide-fl deploy client {name}`. It connects to {server} and waits
   for runs. Only outgoing connections are needed. Stop it with Ctrl-C.

To keep it running, use the systemd unit `deploy/instahide-fl-client.service` of the
software's repository. A client that crashed is refused for about a minute, until the
server has noticed that it is gone; the unit tries again until it is let in.

What it keeps (counters of exposures) is in `state/`: keep it, or the counting begins
anew.

InstaHide does not protect your images from the server: encodings and gradients have
been inverted. Take part only with images that you may show to the operator.
"""

_OPERATOR_README = """\
# {name}: the operator's commands

1. Hand each folder in `clients/` to its client, over a channel that you trust (it holds
   a private key), and delete it here.
2. Move `authority/` to a safe place offline. It is needed again for a new certificate.
3. Check: `instahide-fl doctor {folder}`
4. Start the server: `instahide-fl deploy server {folder}`. Clients reach it at the
   fleet port of `federation.toml`; open no other port to them.
5. Start a run, on this machine:
   `instahide-fl deploy run CONFIG.toml --federation {folder}`
6. Watch it: `instahide-fl deploy status {folder}`
7. Stop it: `instahide-fl deploy stop {folder}`

Later:

- another client: `instahide-fl deploy add {folder} NAME`
- a certificate that ends soon: put `authority/` back,
  `instahide-fl deploy renew {folder}`, restart the server
- another version of the software: clients must install it too and pin its
  `instahide-fl deploy code-hash`

Whoever can log in to this machine as this user can run code on every client that has
not pinned its code. Back up `server/state.db` and the run folders.
"""


def client_settings(name: str, server: str, app_hash: str) -> str:
    """Return a new client's client.toml, with comments.

    Args:
        name: The client's name.
        server: HOST:PORT of the server.
        app_hash: The hash of the app that may run; empty for any.
    """
    return _CLIENT_SETTINGS.format(
        name=name,
        quoted_name=json.dumps(name),
        server=json.dumps(server),
        app_hash=json.dumps(app_hash),
    )


def client_readme(name: str, federation: str, server: str) -> str:
    """Return the README.md of a client's folder."""
    return _CLIENT_README.format(name=name, federation=federation, server=server)


def operator_readme(name: str, folder: Path) -> str:
    """Return the README.md of a federation's folder."""
    quoted = shlex.quote(str(folder.absolute()))
    return _OPERATOR_README.format(name=name, folder=quoted)
