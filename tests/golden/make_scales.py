"""Golden infinite-width kernels of unfriendly vectors: tests/golden/infinite/{scales.txt,scales.npz}.

Recursions on covariances written out, the formulas as they stand in the literature. Where there is a closed form
they are evaluated in 60 digits with mpmath, so that whatever cancels has digits enough; tanh, sigmoid and softplus are
sums over a grid in both directions, in 64-bit mantissas, of a function that is analytic in a strip.
    pip install mpmath 'numpy<2'
Run from the root of the tree: python tests/golden/make_scales.py

Each line of scales.txt: name|input|weight variance|bias variance|model text. scales.npz holds input.<input>, numbers
that f32 holds exactly, and <name>.nngp and <name>.ntk of all of them.
"""

import os

import mpmath as mp
import numpy as np

mp.mp.dps = 60
LONG = np.longdouble


def vectors(scale, ratio):
    """A direction, multiples, opposites, perturbations of it, an orthogonal one, and others, of norms within `ratio`."""
    rng = np.random.default_rng(3)
    a, b, c, noise = rng.standard_normal((4, 5))
    b -= a * (a @ b) / (a @ a)
    rows = [a, 3 * a, -a, -0.3 * a, a + 1e-6 * noise, -1.001 * a + 1e-3 * noise, 1.1 * a + 1e-2 * noise, b, c, a / ratio,
            -c / ratio, c / np.sqrt(ratio)]
    return (scale * np.array(rows)).astype(np.float32)


def images(channels):
    """The same of images 3 x 3: one, multiples, opposites, a perturbation, constants of opposite sign, another."""
    rng = np.random.default_rng(4)
    a, b, noise = rng.standard_normal((3, 3, 3, channels))
    ones = np.ones_like(a)
    return np.array([a, 3 * a, -a, -0.3 * a, a + 1e-6 * noise, 0.7 * ones, -0.2 * ones, b]).astype(np.float32)


def areas(channels):
    """Images 3 x 3 of numbers from 0 to 255: black, white, areas of one number, and one of all."""
    rng = np.random.default_rng(5)
    levels = [[[0] * 3] * 3, [[255] * 3] * 3, [[0, 0, 0], [1, 1, 1], [1, 1, 1]], [[100] * 3, [100] * 3, [30] * 3],
              [[0, 0, 255]] * 3, [[1] * 3] * 3]
    rows = [np.repeat(np.array(level)[:, :, None], channels, 2) for level in levels]
    return np.array(rows + [rng.integers(0, 256, (3, 3, channels))]).astype(np.float32)


INPUTS = {f"size{s:g}": vectors(s, 1e4) for s in (1e-3, 1e-1, 1, 10, 1e3, 1e5)}
INPUTS.update({f"variance{v:g}": vectors(np.sqrt(v), 30)[[0, 1, 2, 4, 5, 7, 9]] for v in (0.1, 10, 300)})


INPUTS.update({"behind": INPUTS["size1"][:10], "images": images(2), "gray": images(1),
               "areas": areas(3), "lit": areas(3)[1:]})


def angle(q, r, c):
    if q == 0 or r == 0:
        return mp.mpf(0)
    return mp.acos(max(mp.mpf(-1), min(mp.mpf(1), c / mp.sqrt(q * r))))


def rectifier(slope):
    def moments(q, r, c):
        a = angle(q, r, c)
        kappa0 = (mp.pi - a) / mp.pi
        kappa1 = (mp.sin(a) + (mp.pi - a) * mp.cos(a)) / mp.pi
        s = mp.mpf(slope)
        return (((1 - s) ** 2 * kappa1 * mp.sqrt(q * r) / 2 + s * c), ((1 - s) ** 2 * kappa0 / 2 + s))
    return moments


def erf(q, r, c):
    product = (1 + 2 * q) * (1 + 2 * r)
    return 2 / mp.pi * mp.asin(2 * c / mp.sqrt(product)), 4 / mp.pi / mp.sqrt(product - 4 * c * c)


def gelu(q, r, c):
    product = (1 + q) * (1 + r)
    rest = product - c * c
    density = 1 / (2 * mp.pi * mp.sqrt(rest))
    both = mp.mpf(1) / 4 + mp.asin(c / mp.sqrt(product)) / (2 * mp.pi)
    value = density * (q * r - q * c * c / (1 + q) + c * c / (1 + r)) + c * both
    slope = both + c * density * (1 / (1 + q) + 1 / (1 + r) + 1 / rest)
    return value, slope


def sin(q, r, c):
    mean = mp.exp(-(q + r) / 2)
    return mean * mp.sinh(c), mean * mp.cosh(c)


def cos(q, r, c):
    return sin(q, r, c)[::-1]


def layernorm(q, r, c):
    product = mp.sqrt(q * r)
    return c / product, 1 / product


def numeric(value, slope):
    def moments(q, r, c):
        root = mp.sqrt(q)
        across = LONG(mp.nstr(c / root, 30))
        rest = LONG(mp.nstr(mp.sqrt(max(mp.mpf(0), r - c * c / q)), 30))
        step = LONG(min(0.25, 0.22 / float(max(root, mp.sqrt(r)))))
        root = LONG(mp.nstr(root, 30))
        half = int(np.ceil(9.5 / float(step)))
        g = step * np.arange(-half, half + 1, dtype=LONG)
        weight = step * np.exp(-g * g / 2) / np.sqrt(2 * LONG(mp.nstr(mp.pi, 30)))
        sums = np.zeros(2, LONG)
        for begin in range(0, len(g), 256):
            rows = g[begin:begin + 256]
            v = across * rows[:, None] + (rest * g if rest > 0 else np.zeros(1, LONG))[None, :]
            w = weight if rest > 0 else np.ones(1, LONG)
            for k, f in enumerate((value, slope)):
                sums[k] += (weight[begin:begin + 256] * f(root * rows) * (f(v) @ w)).sum()
        return tuple(mp.mpf(np.format_float_positional(s, 25)) for s in sums)
    return moments


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FORMS = {"erf": erf, "gelu": gelu, "sin": sin, "cos": cos, "layernorm": layernorm, "relu": rectifier(0),
         "abs": rectifier(-1), "leakyrelu(0.2)": rectifier("0.2"),
         "tanh": numeric(np.tanh, lambda x: 1 / np.cosh(np.minimum(np.abs(x), 5000)) ** 2),
         "sigmoid": numeric(sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
         "softplus": numeric(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), sigmoid)}


def kernels(layers, w, b, x):
    """[n, n] of nngp and ntk, for layers that each follow a dense one."""
    n = len(x)
    exact = [[mp.mpf(float(v)) for v in row] for row in x]
    covariance = [[mp.fsum(p * q for p, q in zip(exact[i], exact[j])) / len(exact[i]) for j in range(n)] for i in range(n)]
    tangent = [[mp.mpf(0)] * n for _ in range(n)]
    w, b = mp.mpf(w), mp.mpf(b)
    for layer in layers + [None]:
        for i in range(n):
            for j in range(n):
                covariance[i][j] = w * covariance[i][j] + b
                tangent[i][j] = covariance[i][j] + w * tangent[i][j]
        if layer is None:
            break
        before = [list(row) for row in covariance]
        for i in range(n):
            for j in range(i + 1):
                value, slope = FORMS[layer](before[i][i], before[j][j], before[i][j])
                covariance[i][j] = covariance[j][i] = value
                tangent[i][j] = tangent[j][i] = slope * tangent[i][j]
    return [np.array([[float(v) for v in row] for row in m]) for m in (covariance, tangent)]


def image_kernels(text, w, b, x):
    """The same of a text of layers for images, every pixel with every pixel."""
    n, side, _, channels = x.shape
    exact = np.array([mp.mpf(float(v)) for v in x.ravel()], object).reshape(n, side * side, channels)
    covariance = {(i, j): exact[i] @ exact[j].T / channels for i in range(n) for j in range(n)}
    tangent = {key: value * 0 for key, value in covariance.items()}
    w, b = mp.mpf(w), mp.mpf(b)

    def affine(mean):
        for key in covariance:
            covariance[key] = w * mean(covariance[key]) + b
            tangent[key] = covariance[key] + w * mean(tangent[key])

    def taps(valid):
        def mean(values):
            framed = np.full((side + 2,) * 4, mp.mpf(0), object)
            framed[1:-1, 1:-1, 1:-1, 1:-1] = values.reshape((side,) * 4)
            pixels = range(1 if valid else 0, side - 1 if valid else side)
            near = range(3)
            return np.array([[sum(framed[p + t, q + u, r + t, s + u] for t in near for u in near) / 9
                              for r in pixels for s in pixels] for p in pixels for q in pixels], object)
        return mean

    for layer in text.split():
        if layer.startswith("conv(8,3"):
            valid = "valid" in layer
            affine(taps(valid))
            side -= 2 if valid else 0
        elif layer.startswith("conv(8,1") or layer.startswith("dense"):
            affine(lambda values: values)
        elif layer == "gap" or layer == "flatten":
            for which in (covariance, tangent):
                for key, values in which.items():
                    mean = values.sum() / values.size if layer == "gap" else values.trace() / len(values)
                    which[key] = np.array([[mean]], object)
        else:
            own = [[covariance[i, i][p, p] for p in range(len(covariance[i, i]))] for i in range(n)]
            for i in range(n):
                for j in range(i + 1):
                    for p in range(len(own[i])):
                        for q in range(len(own[j])):
                            value, slope = FORMS[layer](own[i][p], own[j][q], covariance[i, j][p, q])
                            tangent[i, j][p, q] *= slope
                            covariance[i, j][p, q] = value
                    covariance[j, i], tangent[j, i] = covariance[i, j].T, tangent[i, j].T
    return [np.array([[float(m[i, j][0, 0]) for j in range(n)] for i in range(n)]) for m in (covariance, tangent)]


def main():
    arrays = {"input." + name: values for name, values in INPUTS.items()}
    lines = []
    texts = [[f] for f in ("erf", "gelu", "sin", "cos", "relu", "abs", "leakyrelu(0.2)")]
    texts += [["erf", "erf"], ["gelu", "gelu"], ["sin", "sin"], ["cos", "cos"], ["layernorm", "relu"]]
    cases = [(source, layers, w, b) for source in INPUTS if source.startswith("size") for layers in texts
             for w, b in (("1", "0"), ("2", "0.1"))]
    for source in INPUTS:
        if source.startswith("variance"):
            cases += [(source, [f], "1", "0.1") for f in ("tanh", "sigmoid", "softplus")]
    cases += [("size1", [f, f], "1.5", "0.1") for f in ("tanh", "sigmoid", "softplus")]
    # A small input leaves cos with the larger variance.
    cases += [("size10", ["cos", "tanh"], "40", "0")]
    # What a kink reads behind a smooth nonlinearity.
    for layers in (["erf", "relu"], ["gelu", "relu"], ["sin", "abs"], ["cos", "relu"], ["tanh", "relu"],
                   ["sigmoid", "relu"], ["softplus", "leakyrelu(0.2)"], ["erf", "abs"], ["tanh", "abs", "relu"],
                   ["gelu", "abs", "relu"], ["layernorm", "abs", "relu"]):
        cases += [("behind", layers, w, b) for w, b in (("1.5", "0"), ("1.5", "0.1"))]
    for text in ("conv(8,3) relu conv(8,3) relu gap dense(1)", "conv(8,3,pad=valid) abs gap dense(1)",
                 "conv(8,3,pad=valid) relu conv(8,1) relu gap dense(1)",
                 "conv(8,3) abs conv(8,3) relu flatten dense(1)",
                 "conv(8,1) relu conv(8,3,pad=valid) relu flatten dense(1)",
                 "conv(8,3) gelu conv(8,3) relu gap dense(1)", "conv(8,3) erf conv(8,3) abs flatten dense(1)"):
        cases += [(source, text, w, b) for source in ("images", "gray") for w, b in (("2", "0"), ("2", "0.1"))]
    for text in ("conv(8,3) relu conv(8,3) relu gap dense(1)", "conv(8,3) relu conv(8,3) relu flatten dense(1)",
                 "conv(8,3,pad=valid) leakyrelu(0.2) conv(8,1) relu gap dense(1)", "conv(8,3,pad=valid) abs gap dense(1)"):
        cases += [("lit", text, "2", "0"), ("areas", text, "2", "0.1")]
    for source, layers, w, b in cases:
        name = f"case{len(lines)}"
        nngp, ntk = (image_kernels if isinstance(layers, str) else kernels)(layers, w, b, INPUTS[source])
        assert np.isfinite(nngp).all() and np.isfinite(ntk).all(), name
        arrays[name + ".nngp"], arrays[name + ".ntk"] = nngp, ntk
        text = layers if isinstance(layers, str) else "".join(f"dense(8) {layer} " for layer in layers) + "dense(1)"
        lines.append(f"{name}|{source}|{w}|{b}|{text}")
        print(lines[-1], flush=True)
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "infinite")
    np.savez_compressed(os.path.join(folder, "scales.npz"), **arrays)
    with open(os.path.join(folder, "scales.txt"), "w") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
