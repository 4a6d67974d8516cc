"""Your own data set: anything with a length that gives (image, class) by number."""

import numpy as np
import torch
from PIL import Image

from instahide_fl import EncoderConfig, InstaHideEncoder, MixingPool, PrivateSplit
from instahide_fl.rng import operating_system_stream


class Scans:
    """Stands for pictures that you read from anywhere: a PIL picture and a class."""

    classes = ("healthy", "ill")

    def __len__(self):
        return 40

    def __getitem__(self, number):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return Image.fromarray(pixels), number % 2


split = PrivateSplit.from_dataset(Scans())
encoder = InstaHideEncoder(EncoderConfig(num_mixed=4), MixingPool.photos())
batch, key = encoder.encode(torch.arange(8), split, operating_system_stream())
print(f"{len(split)} images of {split.num_classes} classes")
print(f"encodings {tuple(batch.images.shape)}, labels {batch.soft_targets[0].tolist()}")
