"""torch.func and nngeometry."""

import models_torch
import torch
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap


def blocks(n, batch):
    return [slice(i, min(i + batch, n)) for i in range(0, n, batch)]


def prepare(method, case, x, weights, threads, batch):
    torch.set_num_threads(threads)
    x = torch.from_numpy(x)
    model = models_torch.build(case.network, case.outputs, weights)
    if method == "nngeometry":
        return nngeometry(model, x, case.outputs, batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    p = dict(model.named_parameters())

    def f(p, x):
        return functional_call(model, p, (x.unsqueeze(0),)).squeeze(0)

    if case.outputs == 1:
        gradient = vmap(grad(lambda p, x: f(p, x)[0]), (None, 0))
    else:
        gradient = vmap(jacrev(f), (None, 0))

    def jacobian(x):
        """Per parameter [n, outputs * size]: the trace over outputs is one product."""
        return [j.flatten(1) for j in gradient(p, x).values()]

    def add_product(k, u, v):
        # A single f32 sum over all parameters is off by 1e-3 at 10^8 of them: in parts of 2^20.
        for a, b in zip(u.split(1 << 20, 1), v.split(1 << 20, 1)):
            k.addmm_(a, b.T)

    def kernel(n):
        size = sum(v.numel() for v in p.values()) * case.outputs * 4
        if n * size <= 4 << 30:  # the Jacobian fits: one product
            rows = [jacobian(x[b]) for b in blocks(n, batch or n)]
            k = torch.zeros(n, n)
            for pieces in zip(*rows):
                j = torch.cat(pieces)
                add_product(k, j, j)
            return (k / case.outputs).numpy()
        k = torch.empty(n, n)
        parts = blocks(n, batch or n)
        for i, a in enumerate(parts):
            left = jacobian(x[a])
            for b in parts[: i + 1]:  # the lower triangle of blocks
                right = left if a == b else jacobian(x[b])
                tile = torch.zeros(a.stop - a.start, b.stop - b.start)
                for u, v in zip(left, right):
                    add_product(tile, u, v)
                k[a, b] = tile / case.outputs
                k[b, a] = k[a, b].T.clone()
        return k.numpy()

    def diagonal(n):
        return torch.cat([sum((j * j).sum(1) for j in jacobian(x[b])) for b in blocks(n, batch or n)]).numpy()

    def entry(a, b):
        """trace of J(a) J(b)^T / outputs as a vjp and a jvp for each output (PyTorch's tutorial)."""
        _, pull = vjp(lambda p: f(p, a), p)

        def column(v):
            return jvp(lambda p: f(p, b), (p,), pull(v))[1]

        return torch.diagonal(vmap(column)(torch.eye(case.outputs))).mean()

    pairs = vmap(vmap(entry, (None, 0)), (0, None))

    def vector_products(n):
        k = torch.empty(n, n)
        parts = blocks(n, batch or n)
        for i, a in enumerate(parts):
            for b in parts[: i + 1]:
                k[a, b] = pairs(x[a], x[b])
                k[b, a] = k[a, b].T.clone()
        return k.numpy()

    if case.job == "diagonal":
        return diagonal
    return vector_products if method == "torch-vector-products" else kernel


def kernel_in_f64(case, x, weights):
    """The trace-mean kernel of a few examples, one gradient after the other."""
    model = models_torch.build(case.network, case.outputs, weights).double()
    examples = torch.from_numpy(x).double()
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for output in range(case.outputs):
        gradients = [torch.autograd.grad(model(e.unsqueeze(0))[0, output], list(model.parameters())) for e in examples]
        for of_parameter in zip(*gradients):
            j = torch.stack(of_parameter).flatten(1)
            total += j @ j.T
    return (total / case.outputs).numpy()


def nngeometry(model, x, outputs, batch):
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection
    from torch.utils.data import DataLoader, TensorDataset

    layers = LayerCollection.from_model(as_plain_convolutions(model))

    def kernel(n):
        loader = DataLoader(TensorDataset(x[:n]), batch_size=batch or n, shuffle=False)
        with torch.enable_grad():
            gram = GramMatrix(model, loader, function=lambda *d: model(d[0]), layer_collection=layers).to_torch()
        return (torch.einsum("anam->nm", gram) / outputs).detach().numpy()

    return kernel


def as_plain_convolutions(model):
    """nngeometry knows layers by the name of their class, so the padding becomes a layer of its own."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, models_torch.HalvingConv):
                plain = torch.nn.Conv2d(child.in_channels, child.out_channels, 3, stride=2)
                plain.weight, plain.bias = child.weight, child.bias
                setattr(module, name, torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), plain))
    return model
