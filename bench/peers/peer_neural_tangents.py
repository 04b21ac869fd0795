"""neural-tangents: each empirical implementation, and stax for infinite width."""

import sys
import types

# The bridge to TensorFlow is not needed; without it neither TensorFlow nor tf2jax has to be installed.
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")

import jax
import jax.numpy as jnp
import models_jax
import neural_tangents as nt
import numpy as np
from jax._src import source_info_util
from jax.interpreters import ad

# Structured derivatives of 0.6.5 look for two modules where JAX no longer has them (tried: 0.4.26 to 0.5.3).
ad.source_info_util = source_info_util
ad.config = jax.config

IMPLEMENTATIONS = {
    "nt-jacobian": nt.NtkImplementation.JACOBIAN_CONTRACTION,
    "nt-vector-products": nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
    "nt-structured": nt.NtkImplementation.STRUCTURED_DERIVATIVES,
}


def prepare(method, case, x, weights, threads, batch):
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if case.job == "infinite":
        kernel_fn = jax.jit(models_jax.infinite(case.network, nt.stax), static_argnames="get")
        return lambda n: np.asarray(in_blocks(lambda a, b: kernel_fn(a, b, get="ntk"), x[:n], batch))
    p = models_jax.parameters(weights)
    f = models_jax.NETWORKS[case.network]
    ntk = nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0, implementation=IMPLEMENTATIONS[method])
    if case.job == "diagonal":
        single = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=IMPLEMENTATIONS[method])
        entries = jax.jit(jax.vmap(lambda a, p: single(a[None], None, p)[0, 0, 0, 0], (0, None)))

        def diagonal(n):
            step = batch or n
            return np.concatenate([np.asarray(entries(x[i : i + step], p)) for i in range(0, n, step)])

        return diagonal
    tile = jax.jit(ntk)
    return lambda n: np.asarray(in_blocks(lambda a, b: tile(a, b, p), x[:n], batch))


def in_blocks(tile, x, batch):
    """Square batches, the lower triangle of them (nt.batch computes all); one shape to compile for, so the last
    batch is filled up."""
    n = len(x)
    step = min(batch or n, n)
    if step == n:
        return tile(x, None)
    filled = -(-n // step) * step
    x = jnp.asarray(np.concatenate([x, x[: filled - n]])) if filled != n else jnp.asarray(x)
    k = np.empty((filled, filled), np.float32)
    for i in range(0, filled, step):
        for j in range(0, i + step, step):
            k[i : i + step, j : j + step] = tile(x[i : i + step], x[j : j + step])
            k[j : j + step, i : i + step] = k[i : i + step, j : j + step].T
    return k[:n, :n]
