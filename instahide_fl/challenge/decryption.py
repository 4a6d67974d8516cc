"""From what an attack recovered to a submission: one image for each encoding.

Two things are decided here, neither of them by looking at the truth:

- **Which image.** Each encoding gets the recovered image that weighs most in it, by the
  links that the attack found or by the key if the adversary was given it. Without
  either, it gets the image x for which |e| is closest to a + b |x|, with the best a and
  b >= 0: signs are folded away on both sides, and the other images in the encoding only
  raise a and add noise.
- **Which sign.** Signs of pixels are lost in encodings, so all images of an attack may
  come out negative together. Of the two, the one is taken that leaves [0, 1] less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.metrics.correction import in_likelier_sign
from instahide_fl.transcript.view import AdversaryView, KnownMapping


def decryption_of(reconstruction: Reconstruction, view: AdversaryView) -> Tensor | None:
    """Return one image for each encoding of a challenge.

    Args:
        reconstruction: What an attack on the challenge returned.
        view: The view that the attack had.

    Returns:
        f32[E,C,H,W] in [0, 1]; None if no private images were recovered.
    """
    if reconstruction.target != "private":
        return None
    observation = view.observations[0]
    encodings = observation.encodings
    for recovered in reconstruction.recovered:
        images = recovered.images
        if images is None or not len(images) or encodings is None:
            continue
        images = images.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)
        chosen = assign(recovered, images, encodings, observation.mapping)
        likelier = in_likelier_sign(images, view.statistics)
        return view.statistics.restore(likelier).clamp(0, 1)[chosen]
    return None


def assign(
    recovered: Recovered,
    images: Tensor,
    encodings: Tensor,
    mapping: KnownMapping | None,
) -> Tensor:
    """Return which recovered image each encoding shows most of.

    Args:
        recovered: What the attack recovered, with weights or rows or without them.
        images: f32[M,C,H,W], normalised.
        encodings: f32[E,C,H,W], normalised.
        mapping: The mapping of the key; None if the adversary was not given it.

    Returns:
        i64[E] in 0..M-1.
    """
    weights = recovered.weights
    if weights is None and recovered.rows is not None and mapping is not None:
        private = mapping.private_index
        coefficients = mapping.coefficients[:, : private.shape[1]]
        same = private[:, :, None] == recovered.rows[None, None, :]  # [E,p,M]
        weights = (coefficients[:, :, None] * same).sum(dim=1)  # [E,p,M] -> [E,M]
    folded = folded_similarity(encodings, images)
    if weights is None:
        return folded.argmax(dim=1)
    # Encodings behind the last one that the attack knows of have no weights.
    beyond = len(encodings) - len(weights)
    weights = F.pad(weights.detach().cpu(), (0, 0, 0, beyond))
    linked = weights.amax(dim=1) > 0
    return torch.where(linked, weights.argmax(dim=1), folded.argmax(dim=1))


def folded_similarity(encodings: Tensor, images: Tensor) -> Tensor:
    """Return the correlation of |e| and |x| over pixels, for each pair.

    The residual of the fit |e| = a + b |x| falls as it rises.

    Args:
        encodings: f32[E,C,H,W], normalised.
        images: f32[M,C,H,W], normalised.

    Returns:
        f32[E,M] in [-1, 1]; 0 for images without any contrast.
    """
    return _standardised(encodings) @ _standardised(images).T


def _standardised(images: Tensor) -> Tensor:
    folded = images.abs().flatten(1)  # [n,C,H,W] -> [n,D]
    centred = folded - folded.mean(dim=1, keepdim=True)
    length = centred.square().sum(dim=1, keepdim=True).sqrt()
    return centred / length.clamp_min(1e-12)
