#!/usr/bin/env python3
"""Golden kernels: PyTorch's gradients in float64, multiplied out by NumPy.

    python3 tests/golden/make_kernels.py tests/golden/kernels

Debian packages python3-torch and python3-numpy suffice. Writes one .npz of weights (names and layouts of a torch state_dict) and
one .npz of inputs, labels and kernels per network. Everything is drawn from fixed seeds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.set_default_dtype(torch.float64)
torch.use_deterministic_algorithms(True)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Gap(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


class Residual(nn.Module):
    """Parameters are named as in the library: `4.0.weight` in the body, `4.shortcut.0.weight` in the shortcut."""

    def __init__(self, body, shortcut=None):
        super().__init__()
        for i, layer in enumerate(body):
            self.add_module(str(i), layer)
        self.body = [str(i) for i in range(len(body))]
        if shortcut:
            self.shortcut = nn.Sequential(*shortcut)
        self.has_shortcut = bool(shortcut)

    def forward(self, x):
        y = x
        for name in self.body:
            y = getattr(self, name)(y)
        return y + (self.shortcut(x) if self.has_shortcut else x)


class Ntk(nn.Module):
    """sigma_w / sqrt(fan_in) W x + sigma_b b around a layer whose own weights are W and b."""

    def __init__(self, layer, weight_variance, bias_variance):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.kind = layer
        fan_in = self.weight[0].numel()
        self.weight_scale = (weight_variance / fan_in) ** 0.5
        self.bias_scale = bias_variance ** 0.5
        del self._modules["kind"]
        self.__dict__["kind"] = layer

    def forward(self, x):
        w, b = self.weight_scale * self.weight, self.bias_scale * self.bias
        if isinstance(self.kind, nn.Linear):
            return nn.functional.linear(x, w, b)
        return nn.functional.conv2d(x, w, b, self.kind.stride, self.kind.padding)


def ntk(layer):
    return Ntk(layer, 2.0, 0.25)


conv, dense = nn.Conv2d, nn.Linear
# name -> (text of the library, input in PyTorch's order, parameterization, layers)
NETWORKS = {
    "mlp_relu": ("dense(12) relu dense(9) relu dense(3)", (6,), "standard",
                 lambda: [dense(6, 12), nn.ReLU(), dense(12, 9), nn.ReLU(), dense(9, 3)]),
    "mlp_tanh_ntk": ("dense(15) tanh dense(8) tanh dense(2)", (5,), "ntk",
                     lambda: [ntk(dense(5, 15)), nn.Tanh(), ntk(dense(15, 8)), nn.Tanh(), ntk(dense(8, 2))]),
    "cnn_maxpool": ("conv(5,3) relu maxpool(2) conv(6,3) relu maxpool(2) flatten dense(3)", (2, 8, 8), "standard",
                    lambda: [conv(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(5, 6, 3, padding=1),
                             nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense(24, 3)]),
    "cnn_strided_valid": ("conv(4,3,stride=2,pad=valid) sigmoid conv(3,2,pad=valid) sin avgpool(2) flatten dense(2)",
                          (3, 11, 9), "standard",
                          lambda: [conv(3, 4, 3, stride=2), nn.Sigmoid(), conv(4, 3, 2), Function(torch.sin),
                                   nn.AvgPool2d(2), nn.Flatten(), dense(6, 2)]),
    "cnn_same_ntk": ("conv(4,5) gelu conv(5,3) erf gap dense(2)", (2, 7, 6), "ntk",
                     lambda: [ntk(conv(2, 4, 5, padding=2)), nn.GELU(), ntk(conv(4, 5, 3, padding=1)),
                              Function(torch.erf), Gap(), ntk(dense(5, 2))]),
    "residual": ("conv(4,3) softplus residual(conv(4,3) leakyrelu conv(4,3)) "
                 "residual(conv(6,3) tanh conv(6,1) | conv(6,1)) gap dense(2)", (1, 6, 6), "standard",
                 lambda: [conv(1, 4, 3, padding=1), nn.Softplus(),
                          Residual([conv(4, 4, 3, padding=1), nn.LeakyReLU(0.01), conv(4, 4, 3, padding=1)]),
                          Residual([conv(4, 6, 3, padding=1), nn.Tanh(), conv(6, 6, 1)], [conv(4, 6, 1)]),
                          Gap(), dense(6, 2)]),
    "scalar": ("dense(20) erf dense(20) sin dense(1)", (4,), "standard",
               lambda: [dense(4, 20), Function(torch.erf), dense(20, 20), Function(torch.sin), dense(20, 1)]),
    "ten_outputs": ("conv(4,3) relu conv(5,3,stride=2,pad=valid) gelu flatten dense(10)", (1, 7, 7), "standard",
                    lambda: [conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 5, 3, stride=2), nn.GELU(), nn.Flatten(),
                             dense(45, 10)]),
}


def rows(net, x, scalar):
    """Gradients of scalar(f(x_i), i) for each example, flattened."""
    result = []
    for i in range(len(x)):
        net.zero_grad()
        scalar(net(x[i : i + 1])[0], i).backward()
        result.append(np.concatenate([p.grad.numpy().ravel() for p in net.parameters()]))
    return np.stack(result)


def kernels(net, x, versus, labels, versus_labels):
    outputs = net(x[:1]).shape[1]
    jac = np.stack([rows(net, x, lambda f, i, k=k: f[k]) for k in range(outputs)], axis=1)
    jac_versus = np.stack([rows(net, versus, lambda f, i, k=k: f[k]) for k in range(outputs)], axis=1)
    full = np.einsum("ikp,jlp->ijkl", jac, jac)
    result = {
        "full": full,
        "trace_sum": np.einsum("ijkk->ij", full),
        "trace_mean": np.einsum("ijkk->ij", full) / outputs,
        "output": full[:, :, outputs - 1, outputs - 1],
        "diagonal": np.einsum("iikk->i", full) / outputs,
        "versus_full": np.einsum("ikp,jlp->ijkl", jac, jac_versus),
    }
    if outputs > 1:
        a = rows(net, x, lambda f, i: torch.softmax(f, 0)[labels[i]])
        b = rows(net, versus, lambda f, i: torch.softmax(f, 0)[versus_labels[i]])
        result["true_class"] = a @ a.T
        result["versus_true_class"] = a @ b.T
    return {name: np.ascontiguousarray(value) for name, value in result.items()}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for seed, (name, (text, shape, parameterization, layers)) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        net = nn.Sequential(*layers())
        with torch.no_grad():
            for parameter in net.parameters():
                if parameterization == "ntk":
                    parameter.normal_()
                else:
                    parameter.mul_(1.5)
        x, versus = torch.randn(7, *shape), torch.randn(5, *shape)
        outputs = net(x[:1]).shape[1]
        labels, versus_labels = torch.randint(outputs, (7,)), torch.randint(outputs, (5,))
        np.savez_compressed(folder / f"{name}.weights.npz",
                            **{key: value.detach().numpy() for key, value in net.state_dict().items()})
        np.savez_compressed(folder / f"{name}.kernels.npz", x=x.numpy(), versus=versus.numpy(),
                            labels=labels.numpy().astype(np.int32), versus_labels=versus_labels.numpy().astype(np.int32),
                            outputs=net(x).detach().numpy(), **kernels(net, x, versus, labels, versus_labels))
        index.append(f"{name}|{parameterization}|{text}\n")
    (folder / "index.txt").write_text("".join(index))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
