"""LPIPS, where its package and its weights are on this machine. Nothing is downloaded.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
CVPR 2018, with AlexNet.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIDE = 64  # pixels; smaller images vanish in AlexNet and are enlarged
BATCH = 64
BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's name for it


def lpips_absent() -> str | None:
    """Return why LPIPS cannot be computed here; None if it can."""
    if importlib.util.find_spec("lpips") is None:
        return "the package lpips is not installed (pip install 'instahide-fl[lpips]')"
    weights = _backbone_file()
    if not weights.is_file():
        return f"the weights of AlexNet are not at {weights}; nothing is downloaded"
    return None


@torch.no_grad()
def lpips(first: Tensor, second: Tensor) -> Tensor:
    """Return the perceptual distance; call it only where `lpips_absent` gives None.

    Args:
        first: f32[R,C,H,W] in [0, 1], C 1 or 3.
        second: f32[R,C,H,W] in [0, 1], the images to compare them with.

    Returns:
        f64[R], 0 for identical images. Images with a side below 64 are enlarged, which
        LPIPS was not calibrated on.
    """
    network = _network()
    parts = zip(torch.split(first, BATCH), torch.split(second, BATCH), strict=True)
    distances = [network(_prepared(a), _prepared(b), normalize=True) for a, b in parts]
    return torch.cat(distances).flatten().double()  # [R,1,1,1] -> [R]


def _prepared(images: Tensor) -> Tensor:
    images = images.float().expand(-1, 3, -1, -1)  # [R,1 or 3,H,W] -> [R,3,H,W]
    height, width = images.shape[-2:]
    factor = max(1.0, MIN_SIDE / min(height, width))
    if factor == 1.0:
        return images
    size = round(height * factor), round(width * factor)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _backbone_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def _network() -> nn.Module:
    """Build LPIPS around a random AlexNet, then put the weights of the file in.

    Asking the package for weights would download them where they are missing.
    """
    from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in an old way
        network = cast(nn.Module, LPIPS(net="alex", pnet_rand=True, verbose=False))
    stored = torch.load(_backbone_file(), map_location="cpu", weights_only=True)
    weights = network.state_dict()
    for name in weights:
        parts = name.split(".")  # net, slice1, 0, weight
        if parts[0] == "net":
            weights[name] = stored[".".join(["features", *parts[2:]])]
    network.load_state_dict(weights)
    return network.eval()
