"""Language models with several LoRA adapters at once, on small machines.

    import tandem

    model = tandem.Model.open("model.gguf")
    mail = model.bundle("mail.tandem").composition("reply-witty")
    session = model.session(mail)
    for piece in session.generate("A letter ..."):
        print(piece, end="", flush=True)
"""

from . import errors
from ._tandem import (
    Adapter,
    Bundle,
    Composition,
    Floats,
    Generation,
    Model,
    Session,
    Timings,
    __version__,
    calibrate,
    create_bundle,
    inspect_bundle,
    quantize,
    train_lora,
    verify_bundle,
)
from .errors import TandemError

__all__ = [
    "Adapter",
    "Bundle",
    "Composition",
    "Floats",
    "Generation",
    "Model",
    "Session",
    "TandemError",
    "Timings",
    "__version__",
    "calibrate",
    "create_bundle",
    "errors",
    "inspect_bundle",
    "quantize",
    "train_lora",
    "verify_bundle",
]
