"""Writes the sample beside this script: the first 200 training images of each class of Fashion-MNIST, in their order.

Usage: generate.py FOLDER, where FOLDER holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
"""
import gzip
import pathlib
import struct
import sys

PER_CLASS = 200
here = pathlib.Path(__file__).parent
source = pathlib.Path(sys.argv[1])
images = gzip.decompress((source / "train-images-idx3-ubyte.gz").read_bytes())
labels = gzip.decompress((source / "train-labels-idx1-ubyte.gz").read_bytes())
pixels = 28 * 28
kept = []
counts = [0] * 10
for row, label in enumerate(labels[8:]):
    if counts[label] < PER_CLASS:
        counts[label] += 1
        kept.append(row)


def write(name, header, parts):
    content = header + b"".join(parts)
    # No time stamp and no name: the same input gives the same bytes.
    (here / name).write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


write("train-images-idx3-ubyte.gz", struct.pack(">IIII", 0x803, len(kept), 28, 28),
      [images[16 + row * pixels:16 + (row + 1) * pixels] for row in kept])
write("train-labels-idx1-ubyte.gz", struct.pack(">II", 0x801, len(kept)), [labels[8 + row:9 + row] for row in kept])
