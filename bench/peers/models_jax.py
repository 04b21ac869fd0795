"""The networks in JAX, on the arrays of gradgram's weight files; and their infinite width in neural-tangents' stax."""

import jax
import jax.numpy as jnp
from jax import lax


def dense(p, name, x):
    return x @ p[name + ".weight"] + p[name + ".bias"]


def conv(p, name, x, stride=1):
    y = lax.conv_general_dilated(x, p[name + ".weight"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + p[name + ".bias"]


def max_pool(x):
    # Twice as fast as reduce_window here, whose derivative is slow on CPUs.
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def cnn3(p, x):
    x = max_pool(jax.nn.relu(conv(p, "0", x)))
    x = max_pool(jax.nn.relu(conv(p, "3", x)))
    x = jax.nn.relu(conv(p, "6", x))
    return dense(p, "9", x.mean(axis=(1, 2)))


def mlp(p, x):
    for name in ("0", "2", "4"):
        x = jax.nn.relu(dense(p, name, x))
    return dense(p, "6", x)


def resnet18(p, x):
    x = jax.nn.relu(conv(p, "0", x))
    for i in range(2, 18, 2):
        stride = 2 if f"{i}.shortcut.0.weight" in p else 1
        y = conv(p, f"{i}.2", jax.nn.relu(conv(p, f"{i}.0", x, stride)))
        x = jax.nn.relu(y + (x if stride == 1 else conv(p, f"{i}.shortcut.0", x, stride)))
    return dense(p, "19", x.mean(axis=(1, 2)))


NETWORKS = {"cnn3": cnn3, "mlp": mlp, "resnet18": resnet18}


def parameters(weights):
    """Dense [out, in] -> [in, out]; conv [out, in, kh, kw] -> [kh, kw, in, out]."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
    return {name: jnp.asarray(weights[name].transpose(order[weights[name].ndim])) for name in weights.files}


def infinite(network, stax):
    layers = []
    for _ in range(21):
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu()]
    head = stax.GlobalAvgPool() if network == "cntk21-gap" else stax.Flatten()
    return stax.serial(*layers, head, stax.Dense(1, W_std=2**0.5))[2]
