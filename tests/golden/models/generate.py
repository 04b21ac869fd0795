"""Writes the weights, inputs and outputs beside this script; needs torch and numpy.

The networks are torch.nn.Sequential; their state dicts go out as numpy saves them. Inputs are written channels-last, as
this project takes images.
"""
import pathlib

import numpy as np
import torch
from torch import nn

here = pathlib.Path(__file__).parent
torch.manual_seed(5)
torch.set_default_dtype(torch.float64)


class Residual(nn.Sequential):
    """y = body(x) + shortcut(x); the body's layers are numbered directly."""

    def __init__(self, *body, shortcut=None):
        super().__init__(*body)
        self.depth = len(body)
        if shortcut is not None:
            self.shortcut = shortcut

    def forward(self, x):
        y = x
        for i in range(self.depth):
            y = self[i](y)
        return y + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Sin(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


# The model texts stand in tests/models/weights_test.cpp.
networks = {
    # conv(4,3x5) relu maxpool(2) conv(6,3,stride=2,pad=1,bias=false) tanh
    # residual(conv(6,3) gelu conv(6,1) | conv(6,1)) avgpool(2,stride=1,pad=1) flatten dense(5) softplus dense(3)
    "image": (
        nn.Sequential(
            nn.Conv2d(2, 4, (3, 5), padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
            nn.Tanh(),
            Residual(
                nn.Conv2d(6, 6, 3, padding="same"), nn.GELU(), nn.Conv2d(6, 6, 1),
                shortcut=nn.Sequential(nn.Conv2d(6, 6, 1)),
            ),
            nn.AvgPool2d(2, stride=1, padding=1),
            nn.Flatten(),
            nn.Linear(4 * 4 * 6, 5),
            nn.Softplus(),
            nn.Linear(5, 3),
        ),
        (2, 13, 11),
    ),
    # dense(7) sigmoid residual(dense(5) leakyrelu(0.1) dense(7)) sin dense(6,bias=false) erf dense(4) logsoftmax
    "vector": (
        nn.Sequential(
            nn.Linear(9, 7),
            nn.Sigmoid(),
            Residual(nn.Linear(7, 5), nn.LeakyReLU(0.1), nn.Linear(5, 7)),
            Sin(),
            nn.Linear(7, 6, bias=False),
            Erf(),
            nn.Linear(6, 4),
            nn.LogSoftmax(dim=1),
        ),
        (9,),
    ),
}

for name, (network, shape) in networks.items():
    x = torch.randn(5, *shape)
    with torch.no_grad():
        y = network(x)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    np.savez(here / f"{name}_f8.npz", **state)
    np.savez_compressed(here / f"{name}_f4.npz", **{key: value.astype("<f4") for key, value in state.items()})
    channels_last = x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x
    np.save(here / f"{name}_x.npy", channels_last.numpy())
    np.save(here / f"{name}_y.npy", y.numpy())
