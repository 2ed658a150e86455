"""The torch side of the storage types of `memgraft.bank.dtypes`."""

import torch

from memgraft.bank.dtypes import DTYPES, AnyArray, ValueDtype


def torch_dtype(dtype: ValueDtype) -> torch.dtype:
    """The torch dtype of stored values."""
    found: torch.dtype = getattr(torch, dtype.torch)
    return found


_BY_TORCH = {torch_dtype(dtype): dtype for dtype in DTYPES.values()}


def stored_tensor(stored: AnyArray, dtype: ValueDtype) -> torch.Tensor:
    """Stored values as a tensor of the same shape that shares their memory."""
    tensor = torch.from_numpy(stored)
    wanted = torch_dtype(dtype)
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


def stored_array(values: torch.Tensor, dtype: ValueDtype) -> AnyArray:
    """Float values as a bank's writer takes them with the fewest bytes: bfloat16 bits, or float32 to be encoded."""
    if dtype.torch == "bfloat16":
        bits: AnyArray = values.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
        return bits
    floats: AnyArray = values.float().cpu().numpy()
    return floats


def to_floats(values: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Stored values ``(U, taps, value_dim)`` as ``dtype``, on their device.

    Args:
        values: of a storage type.
        scales: fp32 ``(U, taps)`` or ``(taps, value_dim)``, for types that have them.
        dtype: the result's.
    """
    if scales is None:
        return values.to(dtype)
    if _BY_TORCH[values.dtype].scales == "row":
        scales = scales[..., None]
    return (values.to(torch.float32) * scales).to(dtype)
