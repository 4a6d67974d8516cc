"""InstaHide in an ordinary PyTorch loop: MNIST digits, mixed with photographs."""

import torch
from torch.utils.data import DataLoader

from instahide_fl import (
    Config,
    EncoderConfig,
    InstaHideEncoder,
    MixingPool,
    soft_cross_entropy,
)
from instahide_fl.data.datasets import load_dataset
from instahide_fl.rng import operating_system_stream

torch.manual_seed(0)  # the model's weights; keys do not come from here
digits = load_dataset(Config().data)
split, test = digits.train, digits.test
pool = MixingPool.photos(image_size=28, channels=1)
encoder = InstaHideEncoder(EncoderConfig(num_mixed=4), pool)
# A linear model would learn nothing: signs are flipped at random.
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 32, 5, stride=2),
    torch.nn.ReLU(),
    torch.nn.Conv2d(32, 64, 5, stride=2),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(1024, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
rng = operating_system_stream()

for epoch in range(15):
    for index in DataLoader(range(len(split)), batch_size=32, shuffle=True):
        batch, _ = encoder.encode(index, split, rng)  # whoever has the key can decode
        loss = soft_cross_entropy(model(batch.images), batch.soft_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images = split.statistics.normalise(test.images)
    accuracy = (model(images).argmax(dim=1) == test.targets).float().mean()
    print(f"epoch {epoch + 1}: accuracy on clean digits {accuracy:.1%}")
