"""Golden predictions in f64 from neural-tangents: tests/golden/predict/{cases.txt,predictions.npz}.

The versions are those of make_infinite.py, and scipy 1.13 (max_learning_rate passes what later ones refuse). Run from the root of the tree: python tests/golden/make_predictions.py

predictions.npz holds x_train, x_test, y, initial outputs and, of the network in cases.txt's first line, the kernels
<nngp|ntk>.<train|cross|test>. Then, one line each in cases.txt, results under the line's name:
    ensemble|name|time|get     <name>.<train|test>.<mean|cov> of predict.gradient_descent_mse_ensemble, rate 1
    gp|name|ridge|get          <name>.test.<mean|cov> of predict.gp_inference
    mse|name|time              <name>.<train|test> of predict.gradient_descent_mse from the initial outputs, rate 1
    max_rate|get|momentum|v    v = predict.max_learning_rate of <get>.train
    stable|descent|get|momentum|ridge|v
                               v = the largest rate of 1/2 sum r^2 at which the recursions of docs/predict.md do not grow
                               along any eigenvector of <get>.train (numpy.linalg.eigvalsh), found by bisection of the
                               spectral radius: no formula for it is used
Time inf is neural-tangents' None. Its loss is 1/2 mean r^2 over examples and outputs.
"""

import os

os.environ["JAX_ENABLE_X64"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import jax.numpy as jnp
from neural_tangents import predict, stax

TRAIN, TEST, OUTPUTS = 13, 5, 3
# From (r_t, r_{t-1}) to (r_{t+1}, r_t) along an eigenvector, where x = rate (eigenvalue + ridge).
RECURSIONS = {"Steps": lambda x, m: [[1 - x, 0], [1, 0]],
              "HeavyBall": lambda x, m: [[1 + m - x, -m], [1, 0]],
              "Nesterov": lambda x, m: [[(1 - x) * (1 + m), -(1 - x) * m], [1, 0]]}

TEXT, W2, B2 = "dense(8) erf dense(8) erf dense(3)", 1.6, 0.1


def largest_stable(descent, kernel, momentum, ridge):
    values = np.linalg.eigvalsh(kernel) + ridge

    def stable(rate):
        return all(np.abs(np.linalg.eigvals(RECURSIONS[descent](rate * s, momentum))).max() <= 1 for s in values)
    low, high = 0.0, 8 / values.max()
    assert stable(1e-3 * high) and not stable(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def main():
    rng = np.random.default_rng(20240502)
    x_train = rng.standard_normal((TRAIN, 6))
    x_test = rng.standard_normal((TEST, 6))
    y = rng.standard_normal((TRAIN, OUTPUTS))
    initial_train = rng.standard_normal((TRAIN, OUTPUTS))
    initial_test = rng.standard_normal((TEST, OUTPUTS))
    dense = lambda width: stax.Dense(width, np.sqrt(W2), np.sqrt(B2))
    kernel_fn = stax.serial(dense(8), stax.Erf(), dense(8), stax.Erf(), dense(OUTPUTS))[2]
    arrays = {"x_train": x_train, "x_test": x_test, "y": y, "initial_train": initial_train,
              "initial_test": initial_test}
    for get in ("nngp", "ntk"):
        arrays[get + ".train"] = kernel_fn(x_train, None, get)
        arrays[get + ".cross"] = kernel_fn(x_test, x_train, get)
        arrays[get + ".test"] = kernel_fn(x_test, None, get)
    lines = [f"network|{W2}|{B2}|{TEXT}"]

    evolve = predict.gradient_descent_mse_ensemble(kernel_fn, x_train, y, learning_rate=1.0)
    for get in ("ntk", "nngp"):
        for time in (0.0, 3.0, 50.0, 1e4, None):
            if get == "nngp" and time != 50.0 and time is not None:
                continue
            name = f"ensemble{len(lines)}"
            for part, inputs in (("train", None), ("test", x_test)):
                law = evolve(t=time, x_test=inputs, get=get, compute_cov=True)
                arrays[f"{name}.{part}.mean"], arrays[f"{name}.{part}.cov"] = law.mean, law.covariance
            lines.append(f"ensemble|{name}|{'inf' if time is None else time}|{get}")

    whole = kernel_fn(x_train, None, ("nngp", "ntk"))
    cross = kernel_fn(x_test, x_train, ("nngp", "ntk"))
    for ridge in (0.0, 0.2):
        infer = predict.gp_inference(whole, y, diag_reg=ridge, diag_reg_absolute_scale=True)
        for get in ("nngp", "ntk"):
            name = f"gp{len(lines)}"
            law = infer(get=get, k_test_train=cross, k_test_test=kernel_fn(x_test, None, ("nngp", "ntk")).nngp)
            arrays[f"{name}.test.mean"], arrays[f"{name}.test.cov"] = law.mean, law.covariance
            lines.append(f"gp|{name}|{ridge}|{get}")

    move = predict.gradient_descent_mse(whole.ntk, y, learning_rate=1.0)
    for time in (0.0, 2.0, 70.0, None):
        name = f"mse{len(lines)}"
        arrays[f"{name}.train"], arrays[f"{name}.test"] = move(time, initial_train, initial_test, cross.ntk)
        lines.append(f"mse|{name}|{'inf' if time is None else time}")

    for get in ("nngp", "ntk"):
        kernel = np.asarray(arrays[get + ".train"], np.float64)
        for momentum in (0.0, 0.5, 0.9):
            rate = float(predict.max_learning_rate(kernel, y_train_size=y.size, momentum=momentum))
            lines.append(f"max_rate|{get}|{momentum}|{rate!r}")
        for descent, momentum in (("Steps", 0.0), ("HeavyBall", 0.0), ("HeavyBall", 0.5), ("HeavyBall", 0.9),
                                  ("HeavyBall", 0.99), ("Nesterov", 0.5), ("Nesterov", 0.9), ("Nesterov", 0.99)):
            for ridge in (0.0, 0.2):
                rate = largest_stable(descent, kernel, momentum, ridge)
                lines.append(f"stable|{descent}|{get}|{momentum}|{ridge}|{float(rate)!r}")

    arrays = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    np.savez_compressed("tests/golden/predict/predictions.npz", **arrays)
    with open("tests/golden/predict/cases.txt", "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
