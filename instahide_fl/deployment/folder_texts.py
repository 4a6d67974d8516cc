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
# A run that goes beyond one of these is refused whole. Tighten them as you like; where
# a sound run needs more, the operator reads the name of the setting, and you decide.
#
# Over time. Distinct encodings that one image may take part in, over all runs; 0 for no
# limit. The run has to set the same limit or a lower one.
max-exposures = 0
# Updates that you send in 24 hours, over all runs; 0 for no limit.
max-rounds-a-day = 2000
#
# Encodings. How images are hidden: "instahide", "mixup" (no masks), "none" (plain).
methods = ["instahide"]
# Images in one encoding (k): at least, and at most (more only costs memory).
min-num-mixed = 4
max-num-mixed = 32
# Private images among them (p), at least. With 1, each of your images stands alone
# among public ones, which the server has too.
min-num-private = 2
# Largest coefficient of an image (c1): a larger bound lets one image stand out.
max-coefficient = 0.65
# Largest bound from below on your images' share of an encoding (c2).
max-private-weight = 0.3
# How coefficients are drawn; "dirichlet" favours the encoded image.
coefficient-laws = ["abs-normal"]
# The server names the mean and the standard deviation to normalise with. They may be
# this many times your own images' standard deviation away, and as many times larger or
# smaller: far from yours, your images outweigh the public ones.
max-statistics-factor = 2.0
# In its place, fixed ranges [LOW, HIGH] of both, for pixels from 0 to 1; [] for none.
mean-range = []
std-range = []
# Largest side of images in pixels: larger images show more, and cost more.
max-image-size = 256
#
# Training. What you send: "gradient" (one gradient) or "update" (after local training).
modes = ["gradient", "update"]
# Images in a batch, and behind an update, at least: small batches are inverted best.
min-batch-size = 8
# Passes over your images in a round, at most (mode update).
max-local-epochs = 20
# Learning rate of local training (mode update): outside, an update is that of one
# batch.
min-learning-rate = 1e-5
max-learning-rate = 1.0
# Networks that you train, for instance ["resnet-18"]; [] for all.
models = []
# Channels of a network's first layer, at most: very wide layers separate images.
max-width = 128
# Largest absolute value of a parameter that the server sends.
max-parameter = 1000.0
# Whether BatchNorm's running statistics may be sent: they are means of your encodings.
allow-batch-statistics = false
#
# Secure aggregation: whether it is required, so that the server reads sums only.
require-secure-aggregation = false
# Clients in such a sum, you among them, at least.
min-cohort = 3
# Whether you take part only with clients whose keys are in peers/, so that the server
# cannot invent any. Add the key of a client that joins later, from somebody you trust.
pinned-peers = true
# How much more than your update another client's may weigh, and the largest entry of an
# update that the run may allow for: beyond, small updates vanish in rounding.
max-weight-ratio = 1000.0
max-largest-value = 1024.0
#
# Differential privacy: the epsilon (at this delta) that you spend over all runs, by
# your own count. A run must then use dp-sgd or local; 0 requires none. dp-sgd needs
# min-num-private = 1.
max-epsilon = 0.0
max-delta = 1e-5
#
# The next two are for rehearsals with public images: whether a run may store originals
# and keys in your folder, and whether seeded-client may be set.
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

`peers/` holds the public keys of the other clients, as they were when this folder was
made. Compare them with the others, not with the operator (`ssh-keygen -lf FILE` prints
a fingerprint; for your own, `ssh-keygen -lf node.key`): then the server cannot put
invented clients beside you in secure aggregation.

What it keeps (counters of exposures, updates and privacy) is in `state/`: keep it, or
the counting begins anew.

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

- another client: `instahide-fl deploy add {folder} NAME`. For secure aggregation the
  others need its public key, `server/clients/NAME.pub`, in their `peers/`
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
