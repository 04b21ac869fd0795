"""Golden infinite-width kernels in f64 from neural-tangents: tests/golden/infinite/{cases.txt,kernels.npz}.

Versions that work together (Python 3.11):
    pip install neural-tangents==0.6.5 jax==0.4.30 jaxlib==0.4.30 tf2jax==0.3.6 'numpy<2' 'ml_dtypes<0.5'
Run from the root of the tree: python tests/golden/make_infinite.py

Each line of cases.txt: name|input|weight variance|bias variance|model text. For each case kernels.npz holds
<name>.nngp and <name>.ntk (not for sign) between the first and the second half of the input's examples, and
<name>.self.ntk of the first half with itself. (On that diagonal neural-tangents itself is good to 1e-8 only,
since it takes the square root of a rounded difference.)
"""

import os

os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax.numpy as jnp
import numpy as np
from neural_tangents import stax
import jax

INPUTS = {}
rng = np.random.default_rng(20240501)
INPUTS["vector"] = rng.standard_normal((7, 13))
INPUTS["image"] = rng.standard_normal((5, 6, 5, 3))
INPUTS["gray"] = rng.uniform(0, 1, (4, 8, 8, 1))


def split(text):
    """Layers of a text at nesting depth 0."""
    parts, depth, word = [], 0, ""
    for c in text + " ":
        if c == "(":
            depth += 1
        if c == ")":
            depth -= 1
        if c == " " and depth == 0:
            if word:
                parts.append(word)
            word = ""
        else:
            word += c
    return parts


def serial(text, w2, b2):
    layers = [one(part, w2, b2) for part in split(text)]
    return stax.serial(*layers)


def one(part, w2, b2):
    name, _, rest = part.partition("(")
    arguments = rest[:-1] if rest else ""
    if name == "residual":
        depth, at = 0, None
        for i, c in enumerate(arguments):
            depth += (c == "(") - (c == ")")
            if c == "|" and depth == 0:
                at = i
        body, shortcut = (arguments[:at], arguments[at + 1:]) if at is not None else (arguments, "identity")
        return stax.serial(stax.FanOut(2), stax.parallel(serial(body, w2, b2), serial(shortcut, w2, b2)),
                           stax.FanInSum())
    options, order = {}, []
    for item in filter(None, arguments.split(",")):
        key, equals, value = item.partition("=")
        (options.__setitem__(key, value) if equals else order.append(key))
    sigma_w = float(options.get("sigma_w", np.sqrt(w2)))
    sigma_b = float(options.get("sigma_b", np.sqrt(b2)))
    sigma_b = 0.0 if options.get("bias") == "false" else sigma_b
    pair = lambda v: tuple(int(p) for p in v.split("x")) if "x" in v else (int(v), int(v))
    if name == "dense":
        return stax.Dense(int(order[0]), sigma_w, sigma_b if sigma_b else None)
    if name == "conv":
        return stax.Conv(int(order[0]), pair(order[1]), pair(options.get("stride", "1")),
                         options.get("pad", "same").upper(), sigma_w, sigma_b if sigma_b else None)
    if name == "avgpool":
        return stax.AvgPool(pair(order[0]), pair(options.get("stride", order[0])), "VALID")
    simple = {"gap": stax.GlobalAvgPool, "flatten": stax.Flatten, "relu": stax.Relu, "abs": stax.Abs,
              "erf": stax.Erf, "gelu": stax.Gelu, "sin": stax.Sin, "cos": stax.Cos, "sign": stax.Sign,
              "identity": stax.Identity}
    if name in simple:
        return simple[name]()
    if name == "leakyrelu":
        return stax.LeakyRelu(float(order[0]))
    if name == "monomial":
        return stax.Monomial(int(order[0]))
    if name == "layernorm":
        return stax.LayerNorm(axis=-1, eps=0.0)
    if name == "dropout":
        return stax.Dropout(1 - float(order[0]), mode="train")
    numeric = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus}
    return stax.ElementwiseNumerical(numeric[name], deg=140)


def repeated(unit, times):
    return " ".join([unit] * times)


CASES = [
    ("relu1", "vector", 2, 0, "dense(8) relu dense(1)"),
    ("relu1_bias", "vector", 2, 0.3, "dense(8) relu dense(1)"),
    ("relu3_bias", "vector", 1.5, 0.1, repeated("dense(8) relu", 3) + " dense(1)"),
    ("relu50", "vector", 2, 0, repeated("dense(8) relu", 50) + " dense(1)"),
    ("relu50_growing", "vector", 2.5, 0.1, repeated("dense(8) relu", 50) + " dense(1)"),
    ("leaky5", "vector", 1.9, 0.05, repeated("dense(8) leakyrelu(0.2)", 5) + " dense(1)"),
    ("leaky_negative", "vector", 1.9, 0, "dense(8) leakyrelu(-0.4) dense(8) leakyrelu(3.5) dense(1)"),
    ("abs4", "vector", 1, 0.1, repeated("dense(8) abs", 4) + " dense(1)"),
    ("erf4", "vector", 1.8, 0.1, repeated("dense(8) erf", 4) + " dense(1)"),
    ("erf50", "vector", 2, 0.2, repeated("dense(8) erf", 50) + " dense(1)"),
    ("gelu3", "vector", 1.8, 0.1, repeated("dense(8) gelu", 3) + " dense(1)"),
    ("sin3", "vector", 1.8, 0.1, repeated("dense(8) sin", 3) + " dense(1)"),
    ("cos3", "vector", 1.8, 0.1, repeated("dense(8) cos", 3) + " dense(1)"),
    ("monomial2", "vector", 0.7, 0.1, "dense(8) monomial(2) dense(1)"),
    ("monomial3", "vector", 0.5, 0.1, "dense(8) monomial(3) dense(8) relu dense(1)"),
    ("monomial5", "vector", 0.4, 0, "dense(8) monomial(5) dense(1)"),
    ("sign2", "vector", 1.3, 0.1, "dense(8) sign dense(8) sign dense(1)"),
    ("tanh2", "vector", 1.0, 0.1, "dense(8) tanh dense(8) tanh dense(1)"),
    ("sigmoid2", "vector", 2.0, 0.1, "dense(8) sigmoid dense(8) sigmoid dense(1)"),
    ("softplus2", "vector", 1.2, 0.1, "dense(8) softplus dense(8) softplus dense(1)"),
    ("identity", "vector", 1.1, 0.2, "dense(8) identity dense(8) dense(1)"),
    ("scales", "vector", 2, 0.3, "dense(8,sigma_w=1.4,sigma_b=0.1) relu dense(8,bias=false) erf dense(1,sigma_b=0.7)"),
    ("layernorm", "vector", 2, 0.1, "dense(8) layernorm relu dense(8) layernorm dense(1)"),
    ("dropout", "vector", 2, 0.1, "dense(8) relu dropout(0.25) dense(8) relu dense(1)"),
    ("residual_dense", "vector", 1.5, 0.1,
     "dense(8) residual(relu dense(8) relu dense(8)) residual(erf dense(8)) relu dense(1)"),
    ("residual_shortcut", "vector", 1.5, 0.1, "dense(8) residual(relu dense(9)|dense(9)) relu dense(1)"),
    ("mixed", "vector", 1.5, 0.1, "dense(8) erf dense(8) relu dense(8) gelu dense(8) sin dense(1)"),
    ("flatten_same", "image", 2, 0.1, "conv(8,3) relu conv(8,3) relu flatten dense(1)"),
    ("flatten_valid", "image", 2, 0, "conv(8,3,pad=valid) relu conv(8,2,pad=valid) relu flatten dense(1)"),
    ("flatten_stride", "image", 1.7, 0.1, "conv(8,3,stride=2) relu conv(8,2,stride=2x1) erf flatten dense(8) relu dense(1)"),
    ("flatten_residual", "image", 1.7, 0.1,
     "conv(8,3) residual(relu conv(8,3) relu conv(8,3)|conv(8,1)) relu flatten dense(1)"),
    ("flatten_tanh", "image", 1.0, 0.1, "conv(8,3) tanh conv(8,3) tanh flatten dense(1)"),
    ("flatten_first", "image", 2, 0.1, "flatten dense(8) relu dense(1)"),
    ("gap_same", "image", 2, 0.1, "conv(8,3) relu conv(8,3) relu gap dense(1)"),
    ("gap_valid", "image", 2, 0, "conv(8,3,pad=valid) relu conv(8,2x3,pad=valid) relu gap dense(1)"),
    ("gap_stride", "image", 2, 0.1, "conv(8,3,stride=2) relu conv(8,3) gelu gap dense(1)"),
    ("gap_tail", "image", 2, 0.1, "conv(8,3) relu gap dense(8) relu dense(1)"),
    ("gap_residual", "image", 1.7, 0.1,
     "conv(8,3) residual(relu conv(8,3) relu conv(8,3)) residual(relu conv(8,3,stride=2)|conv(8,1,stride=2)) relu gap dense(1)"),
    ("gap_deep", "image", 2, 0, repeated("conv(8,3) relu", 21) + " gap dense(1)"),
    ("gap_softplus", "image", 1.0, 0.1, "conv(8,3) softplus conv(8,3) relu gap dense(1)"),
    ("gap_layernorm", "image", 2, 0.1, "conv(8,3) layernorm relu conv(8,3) relu gap dense(1)"),
    ("gap_dropout", "image", 2, 0.1, "conv(8,3) relu dropout(0.3) conv(8,3) relu gap dense(1)"),
    ("myrtle_like", "gray", 2, 0.1,
     "conv(8,3) relu avgpool(2) conv(8,3) relu avgpool(2) conv(8,3) relu avgpool(2) flatten dense(1)"),
    ("pool_overlap", "gray", 2, 0.1, "conv(8,3) relu avgpool(3,stride=2) conv(8,3) erf flatten dense(8) relu dense(1)"),
    ("pool_residual", "gray", 1.5, 0.1,
     "conv(8,3) residual(relu conv(8,3)) avgpool(2) relu conv(8,3) relu gap dense(1)"),
    ("pool_input", "gray", 1.5, 0.1, "avgpool(2) conv(8,3) relu gap dense(1)"),
]


def main():
    arrays, lines = {}, []
    for name, values in INPUTS.items():
        arrays["input." + name] = values
    for name, source, w2, b2, text in CASES:
        x = INPUTS[source]
        half = len(x) // 2
        a, b = jnp.asarray(x[:half]), jnp.asarray(x[half:])
        kernel = serial(text, w2, b2)[2]
        arrays[name + ".nngp"] = np.asarray(kernel(a, b, "nngp"))
        if "sign" not in text:
            arrays[name + ".ntk"] = np.asarray(kernel(a, b, "ntk"))
            arrays[name + ".self.ntk"] = np.asarray(kernel(a, None, "ntk"))
        assert all(np.isfinite(v).all() for v in arrays.values()), name
        lines.append(f"{name}|{source}|{w2}|{b2}|{text}")
        print(name, flush=True)
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "infinite")
    os.makedirs(folder, exist_ok=True)
    np.savez_compressed(os.path.join(folder, "kernels.npz"), **arrays)
    with open(os.path.join(folder, "cases.txt"), "w") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
