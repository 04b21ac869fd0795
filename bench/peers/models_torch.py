"""The networks in PyTorch, with the names of gradgram's weight files."""

import torch
from torch import nn


class Gap(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


class Residual(nn.Module):
    """Parameters are named `4.0.weight` in the body and `4.shortcut.0.weight` in the shortcut."""

    def __init__(self, body, shortcut=None):
        super().__init__()
        for i, layer in enumerate(body):
            self.add_module(str(i), layer)
        self.body = [str(i) for i in range(len(body))]
        self.shortcut = nn.Sequential(*shortcut) if shortcut else None

    def forward(self, x):
        y = x
        for name in self.body:
            y = getattr(self, name)(y)
        return y + (x if self.shortcut is None else self.shortcut(x))


class HalvingConv(nn.Conv2d):
    """3 x 3, stride 2: the zero row and column that `same` needs stand at the bottom and right."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def conv3(c_in, c_out):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def block(c_in, c_out):
    if c_in == c_out:
        return [Residual([conv3(c_in, c_out), nn.ReLU(), conv3(c_out, c_out)]), nn.ReLU()]
    return [
        Residual([HalvingConv(c_in, c_out, 3, stride=2), nn.ReLU(), conv3(c_out, c_out)], [nn.Conv2d(c_in, c_out, 1, stride=2)]),
        nn.ReLU(),
    ]


def build(network, outputs, weights):
    width = len(weights["0.bias"])
    if network == "cnn3":
        layers = [
            conv3(3, width), nn.ReLU(), nn.MaxPool2d(2), conv3(width, width), nn.ReLU(), nn.MaxPool2d(2), conv3(width, width),
            nn.ReLU(), Gap(), nn.Linear(width, outputs),
        ]
    elif network == "mlp":
        layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                  nn.Linear(width, outputs)]
    elif network == "resnet18":
        layers = [conv3(3, width), nn.ReLU()]
        for c_in, c_out in ((1, 1), (1, 2), (2, 4), (4, 8)):
            layers += block(c_in * width, c_out * width) + block(c_out * width, c_out * width)
        layers += [Gap(), nn.Linear(8 * width, outputs)]
    else:
        raise ValueError(network)
    model = nn.Sequential(*layers)
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return model.eval()
