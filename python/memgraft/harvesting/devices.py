"""What a donor runs on: the best device there is, and the type that a device multiplies natively."""

import importlib.util

from memgraft.errors import ArgumentError


def best_device(asked: str | None) -> str:
    """``asked``, if it is there; for None the best there is: ``"cuda"``, else ``"cpu"``; ``"auto"`` is several.

    Raises:
        ArgumentError: no such device on this machine, or ``"auto"`` without accelerate.
    """
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked is None:
        return "cuda" if cards else "cpu"
    if asked == "auto":
        if importlib.util.find_spec("accelerate") is None:
            raise ArgumentError("device: auto needs accelerate, which is not installed: pip install accelerate")
        return asked
    try:
        wanted = torch.device(asked)
    except RuntimeError:
        raise ArgumentError(f"device: expected cpu, cuda or cuda:0, got {asked!r}") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= cards:
        found = f"{cards} cards" if cards else "none that torch can use"
        raise ArgumentError(f"device: expected a CUDA card for {asked}, found {found}; leave the device out, or cpu")
    if wanted.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, device=wanted)
        except Exception as error:  # each backend refuses in its own way
            raise ArgumentError(f"device: {asked} cannot be used here ({error}); leave it out, or cpu") from None
    return asked


COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_compute_dtype(asked: str) -> None:
    """Refuses a type that no donor runs in.

    Raises:
        ArgumentError: it is none of `COMPUTE_DTYPES`.
    """
    if asked not in COMPUTE_DTYPES:
        *most, last = COMPUTE_DTYPES
        raise ArgumentError(f"compute_dtype: expected {', '.join(most)} or {last}, found {asked!r}")


def native_compute_dtype(device: str | None) -> str:
    """``"bfloat16"`` where the device (None: the CPU) multiplies it natively, else ``"float32"``."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else None
    if device is not None and torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if probe is not None and probe() else "float32"
