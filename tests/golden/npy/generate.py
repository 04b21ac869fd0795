"""Writes the .npy and .npz files beside this script; needs numpy. The values are 1/64ths, so they are exact."""
import io
import pathlib
import zipfile

import numpy as np
from numpy.lib import format as npy

here = pathlib.Path(__file__).parent


def ramp(shape, dtype):
    count = int(np.prod(shape))
    values = np.arange(count) - (0 if dtype == "|u1" else 3)
    if np.dtype(dtype).kind == "f":
        values = values / 64
    return values.astype(dtype).reshape(shape)


def write(name, array, version=(1, 0)):
    with open(here / name, "wb") as file:
        npy.write_array(file, array, version=version)


for dtype in ["<f4", "<f8", "|u1", "<i4", "<i8"]:
    write(f"c_{dtype[1:]}.npy", ramp((2, 3, 5), dtype))
    write(f"fortran_{dtype[1:]}.npy", np.asfortranarray(ramp((2, 3, 5), dtype)))
write("rank5_fortran.npy", np.asfortranarray(ramp((2, 3, 1, 5, 2), "<f8")))
write("scalar.npy", np.float64(0.25).reshape(()))
write("vector.npy", ramp((7,), "<f4"))
write("empty.npy", np.zeros((0, 4)))
write("version2.npy", ramp((2, 3), "<f8"), (2, 0))
write("version3.npy", ramp((2, 3), "<f8"), (3, 0))
# Refused: each is a valid file of a kind that is not read.
write("big_endian.npy", ramp((2, 3), ">f8"))
write("complex.npy", ramp((2, 3), "<c16"))
write("boolean.npy", np.ones((2, 3), bool))
write("record.npy", np.zeros(3, [("a", "<f4"), ("b", "<i4")]))
write("rank6.npy", ramp((1, 1, 1, 1, 1, 2), "<f8"))

arrays = {"0.weight": ramp((4, 3), "<f4"), "0.bias": ramp((4,), "<f4"), "y": np.arange(4, dtype="<i8"),
          "order": np.asfortranarray(ramp((3, 4), "<f8")), "zeros": np.zeros((64, 64))}
np.savez(here / "stored.npz", **arrays)
np.savez_compressed(here / "compressed.npz", **arrays)
buffer = io.BytesIO()
npy.write_array(buffer, ramp((4, 3), "<f4"))
with zipfile.ZipFile(here / "bzip2.npz", "w", zipfile.ZIP_BZIP2) as archive:
    archive.writestr("x.npy", buffer.getvalue())
with zipfile.ZipFile(here / "text.npz", "w") as archive:
    archive.writestr("readme.txt", "hello")
