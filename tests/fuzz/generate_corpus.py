"""Writes tests/fuzz/corpus: small valid files of each format (names begin with good) and broken ones. Needs numpy."""
import gzip
import io
import pathlib
import struct
import zipfile

import numpy as np
from numpy.lib import format as npy

corpus = pathlib.Path(__file__).parent / "corpus"


def write(kind, name, content):
    folder = corpus / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def idx(code, shape, elements):
    return struct.pack(">BBBB", 0, 0, code, len(shape)) + b"".join(struct.pack(">I", n) for n in shape) + elements


def packed(content):
    return gzip.compress(content, mtime=0)


images = idx(0x08, (3, 2, 2), bytes(range(12)))
labels = idx(0x08, (4,), bytes([0, 2, 1, 2]))
floats = idx(0x0D, (2, 3), np.arange(6, dtype=">f4").tobytes())
for name, content in {
        "good_images": images, "good_labels": labels, "good_floats": floats,
        "good_shorts": idx(0x0B, (2, 2), struct.pack(">hhhh", 1, -2, 3, -4)),
        "good_doubles": idx(0x0E, (1, 2), struct.pack(">dd", 0.5, -1)),
        "empty": b"", "magic_only": images[:4], "wrong_magic": b"\x89PNG" + images[4:], "bad_type": b"\0\0\x0a\x03" + images[4:],
        "rank_0": b"\0\0\x08\0", "rank_255": b"\0\0\x08\xff" + bytes(1020), "truncated_header": images[:9],
        "truncated": images[:-1], "tail": images + b"x", "no_examples": idx(0x08, (0, 2, 2), b""),
        "overflow": idx(0x0E, (0xFFFFFFFF,) * 5, b"x"), "exceeds_file": idx(0x08, (0x7FFFFFFF, 28, 28), b"x"),
        "not_finite": idx(0x0D, (1, 2), struct.pack(">ff", 1, float("nan"))),
}.items():
    write("idx", name, content)
    write("idx", name + ".gz", packed(content))
write("idx", "bomb.gz", packed(idx(0x08, (2, 2), bytes(1 << 20))))
write("idx", "tail_behind.gz", packed(images) + b"x")
write("idx", "bad_checksum.gz", packed(images)[:-8] + bytes(8))
write("idx", "truncated_stream.gz", packed(images)[:-12])

record = bytes([3]) + bytes(i % 251 for i in range(3072))
write("cifar10", "good_one", record)
write("cifar10", "good_two", record + record)
write("cifar10", "empty", b"")
write("cifar10", "truncated", record[:-1])
write("cifar10", "tail", record + b"x")
write("cifar10", "bad_label", record + bytes([10]) + record[1:])

for name, content in {
        "good_numbers": "a,b,y\n1,2.5,0.5\n-3,4e-2,1.5\n", "good_classes": 'x,"the, kind"\r\n1,cat\r\n2,"a ""dog"""\r\n',
        "good_semicolons": "a;b\n1;2\n3;4\n", "good_mark": "\ufeffa\tb\n1\t2\n", "good_newline": 'a,"b\nc"\n1,x\n',
        "empty": "", "blank": "\n\r\n \n", "header_only": "a,b\n", "no_header": "1,2\n3,4\n", "one_column": "a\n1\n",
        "nameless": "a,,b\n1,2,3\n", "repeated": "a,a\n1,2\n", "missing_columns": "a,b,c\n1,2,3\n4,5\n",
        "extra_columns": "a,b\n1,2,3\n", "not_a_number": "a,b\n1,2.5\nx,3\n", "not_finite": "a,b\nnan,2.5\n",
        "infinite_target": "a,b\n1,inf\n", "huge": "a,b\n1e400,2\n", "blank_field": "a,b,c\n1,,2\n",
        "open_quote": 'a,b\n1,"2\n', "behind_quote": 'a,b\n1,"2"x\n', "binary": bytes(range(256)),
        "separators": "," * 500,
}.items():
    write("csv", name, content)


def array(values, version=(1, 0)):
    buffer = io.BytesIO()
    npy.write_array(buffer, values, version=version)
    return buffer.getvalue()


def header(text, data=b"", version=b"\1\0"):
    length = struct.pack("<H", len(text)) if version == b"\1\0" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode() + data


dict_text = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }\n"
x = np.arange(6, dtype="<f4").reshape(2, 3)
for name, content in {
        "good_f4": array(x), "good_fortran": array(np.asfortranarray(x)), "good_version2": array(x, (2, 0)),
        "good_version3": array(x, (3, 0)), "good_images": array(np.arange(24, dtype="u1").reshape(2, 3, 2, 2)),
        "good_i8": array(x.astype("<i8")), "scalar": array(np.float64(1)), "vector": array(x[0]),
        "no_examples": array(x[:0]), "empty": b"", "magic_only": b"\x93NUMPY", "wrong_magic": b"\x92NUMPY" + array(x)[6:],
        "version4": array(x)[:6] + b"\4\0" + array(x)[8:], "truncated": array(x)[:-1], "tail": array(x) + b"x",
        "truncated_header": array(x)[:40], "not_finite": array(np.array([[1, np.nan]], "<f4")),
        "big_endian": array(x.astype(">f4")), "complex": array(x.astype("<c8")), "text": array(np.array([["ab"]])),
        "overflow": header(dict_text % ("<f8", "False", "(4294967296, 4294967296, 16)"), bytes(8)),
        "extent_overflow": header(dict_text % ("<f8", "False", "(99999999999999999999,)"), bytes(8)),
        "exceeds_file": header(dict_text % ("<f8", "True", "(1099511627776, 2)"), bytes(16)),
        "rank6": header(dict_text % ("<f8", "False", "(1, 1, 1, 1, 1, 1)"), bytes(8)),
        "negative": header(dict_text % ("<f8", "False", "(-1, 2)"), bytes(8)),
        "long_header": b"\x93NUMPY\2\0\xff\xff\xff\xff{", "no_dict": header("[]"), "code": header("__import__('os')"),
}.items():
    write("npy", name, content)


def archive(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for entry, content in entries:
            info = zipfile.ZipInfo(entry)
            info.compress_type = compression
            file.writestr(info, content)
    return buffer.getvalue()


y = np.array([1, 0], "<i4")
good = [("x.npy", array(x)), ("y.npy", array(y))]
deflated = archive(good, zipfile.ZIP_DEFLATED)
for name, content in {
        "good_stored": archive(good), "good_deflated": deflated, "good_targets": archive([good[0], ("y.npy", array(y / 2))]),
        "empty": b"", "not_zip": b"PK but no archive", "no_entries": archive([]), "no_x": archive([("a.npy", array(x))]),
        "truncated": deflated[:-10], "damaged": deflated[:60] + b"\xff\xff\xff" + deflated[63:],
        "not_npy": archive([("x.txt", "hello")]), "broken_entry": archive([("x.npy", array(x)[:-1])]),
        "entry_tail": archive([("x.npy", array(x) + b"x")], zipfile.ZIP_DEFLATED),
        "empty_entry": archive([("x.npy", b"")]), "bzip2": archive(good, zipfile.ZIP_BZIP2),
        "bomb": archive([("x.npy", header(dict_text % ("<f8", "False", "(1, 2)"), bytes(1 << 20)))], zipfile.ZIP_DEFLATED),
        "declares_too_much": archive([("x.npy", header(dict_text % ("<f8", "False", "(1073741824, 1024)"), bytes(64)))],
                                     zipfile.ZIP_DEFLATED),
        "labels_do_not_fit": archive([good[0], ("y.npy", array(np.arange(3)))]),
}.items():
    write("npz", name, content)
# Two entries of the directory over the same packed bytes: labels of the shape of images.
shared = bytearray(archive([(name, array(np.zeros((64, 64), dtype=np.uint8))) for name in ("x.npy", "y.npy")],
                           zipfile.ZIP_DEFLATED))
second = shared.rfind(b"PK\1\2")
shared[second + 42:second + 46] = struct.pack("<I", 0)
write("npz", "shared_bytes", bytes(shared))
