"""What is compared: models, sizes, and which implementation runs which case with which batch."""

from dataclasses import dataclass, field

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Case:
    title: str
    model: str  # gradgram's text; the peers build the same in models_*.py by `network`
    network: str
    shape: tuple
    outputs: int
    job: str  # kernel, diagonal or infinite
    n: dict  # examples by mode: full, quick, smoke
    smoke_model: str  # narrower, of the same layers
    # method -> examples at a time (0: all at once). The best of those that `run.py --tune` tries.
    methods: dict = field(default_factory=dict)


CNTK = "conv(8,3) relu " * 21

CASES = {
    "cnn3-1000": Case(
        "CNN3, 64 channels, 1,000 images, whole kernel", "cnn3:channels=64", "cnn3", IMAGE, 1, "kernel",
        {"full": 1000, "quick": 256, "smoke": 16}, "cnn3:channels=8",
        {"torch-jacobian": 64, "torch-vector-products": 16, "nt-jacobian": 0, "nt-structured": 0, "nt-vector-products": 10,
         "nngeometry": 0},
    ),
    "cnn3-5000": Case(
        "CNN3, 64 channels, 5,000 images, whole kernel", "cnn3:channels=64", "cnn3", IMAGE, 1, "kernel",
        {"full": 5000, "quick": 1024, "smoke": 32}, "cnn3:channels=8",
        {"torch-jacobian": 64, "nt-jacobian": 0, "nt-structured": 0, "nngeometry": 500},
    ),
    "cnn3-diagonal": Case(
        "CNN3, 64 channels, 10,000 images, diagonal alone", "cnn3:channels=64", "cnn3", IMAGE, 1, "diagonal",
        {"full": 10000, "quick": 1024, "smoke": 32}, "cnn3:channels=8",
        {"torch-jacobian": 64, "nt-jacobian": 16, "nt-structured": 16},
    ),
    "fc": Case(
        "MLP 784-4096-4096-4096-1, 2,000 examples, whole kernel", "mlp:width=4096,depth=3", "mlp", (784,), 1, "kernel",
        {"full": 2000, "quick": 256, "smoke": 8}, "mlp:width=128,depth=3",
        {"torch-jacobian": 8, "torch-vector-products": 4, "nt-jacobian": 8, "nt-structured": 0, "nt-vector-products": 4,
         "nngeometry": 0},
    ),
    "fc-10": Case(
        "the same with 10 outputs, trace-mean", "mlp:width=4096,depth=3", "mlp", (784,), 10, "kernel",
        {"full": 2000, "quick": 128, "smoke": 4}, "mlp:width=128,depth=3",
        {"torch-jacobian": 2, "nt-jacobian": 2, "nt-structured": 0, "nngeometry": 0},
    ),
    "resnet18": Case(
        "ResNet-18 without normalization, 256 images, 10 outputs, trace-mean", "resnet18-plain", "resnet18", IMAGE, 10,
        "kernel", {"full": 256, "quick": 32, "smoke": 2}, "resnet18-plain:width=8",
        {"torch-jacobian": 4, "nt-jacobian": 4, "nt-structured": 4, "nt-vector-products": 2, "nngeometry": 16},
    ),
    "cntk21-gap": Case(
        "CNTK-21, global average pooling, infinite width", CNTK + "gap dense(1)", "cntk21-gap", IMAGE, 1, "infinite",
        {"full": 6, "quick": 4, "smoke": 2}, CNTK + "gap dense(1)", {"nt-stax": 0},
    ),
    "cntk21-flatten": Case(
        "CNTK-21, flatten, infinite width", CNTK + "flatten dense(1)", "cntk21-flatten", IMAGE, 1, "infinite",
        {"full": 256, "quick": 64, "smoke": 4}, CNTK + "flatten dense(1)", {"nt-stax": 0},
    ),
}

# What `run.py --tune` tries in place of a method's batch.
TUNING = {"kernel": (0, 4, 8, 16, 32, 64, 125, 250), "diagonal": (1, 8, 16, 32, 64, 128, 256), "infinite": (0, 2, 4, 8, 16, 32)}

METHOD_NAMES = {
    "torch-jacobian": "torch.func, Jacobian contraction",
    "torch-vector-products": "torch.func, NTK-vector products",
    "nt-jacobian": "neural-tangents, Jacobian contraction",
    "nt-vector-products": "neural-tangents, NTK-vector products",
    "nt-structured": "neural-tangents, structured derivatives",
    "nt-stax": "neural-tangents, stax",
    "nngeometry": "nngeometry, FMatDense",
}
