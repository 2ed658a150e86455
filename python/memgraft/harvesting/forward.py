"""The donor's truncated run: only the blocks up to the deepest tap, the state at the last real token.

Tap r is the residual stream after r blocks, 0 the embeddings, always before a final norm. It is read by a hook on block
r - 1 (tap 0: at the door of block 0), and the deepest tap's hook ends the run, so that no later block, norm or
vocabulary projection is computed, whatever the architecture's forward looks like.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memgraft.errors import DonorError
from memgraft.harvesting.causal import input_device
from memgraft.harvesting.donor import Donor
from memgraft.harvesting.packing import IntArray, Ragged, TreeBatch, sorted_order, tree_batches


class _DeepestTapReached(Exception):
    """Ends the donor's forward once nothing more is needed; never leaves this module."""


def donor_blocks(donor: Donor) -> nn.ModuleList:
    """The donor's decoder blocks: the outermost ModuleList of the configured length.

    Raises:
        DonorError: there is none, or the outermost level has two.
    """
    found = [
        (name.count("."), name, module)
        for name, module in donor.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == donor.num_blocks
    ]
    outermost = [entry for entry in found if entry[0] == min(depth for depth, _, _ in found)] if found else []
    if len(outermost) != 1:
        names = [name for _, name, _ in outermost]
        raise DonorError(
            f"donor {donor.name} ({donor.architecture}): expected one list of {donor.num_blocks} blocks, "
            f"found {names or 'none'}; this architecture is not supported as a donor"
        )
    blocks: nn.ModuleList = outermost[0][2]
    return blocks


def check_taps(donor: Donor, taps: Sequence[int]) -> tuple[int, ...]:
    """Validates taps: distinct, ascending, between 0 and the number of blocks.

    Raises:
        DonorError: a tap lies outside the donor, or they are not ascending.
    """
    taps = tuple(int(tap) for tap in taps)
    if not taps or any(tap < 0 for tap in taps) or list(taps) != sorted(set(taps)):
        raise DonorError(f"taps: expected distinct ascending numbers of blocks, found {taps}")
    if taps[-1] > donor.num_blocks:
        raise DonorError(
            f"tap {taps[-1]}: donor {donor.name} has {donor.num_blocks} blocks, "
            f"so taps run from 0 (embeddings) to {donor.num_blocks}"
        )
    return taps


def run_donor(donor: Donor, taps: Sequence[int], tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """States at the last real token: (B, K, V) in the donor's compute type.

    Args:
        donor: the donor.
        taps: K checked taps, ascending.
        tokens_BT: int64 donor tokens, padded on the right with any valid id.
        lengths_B: int64 numbers of real tokens, each at least 1.
    """
    lanes_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
    mask_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
    return _states(donor, taps, lanes_B, lengths_B - 1, input_ids=tokens_BT, attention_mask=mask_BT.long())


def run_trees(donor: Donor, taps: Sequence[int], batch: TreeBatch) -> Tensor:
    """States at each key's last node, computed once for every prefix in ``batch``: (N, K, V) in the compute type."""
    device = input_device(donor.model)
    sees_B1TT = torch.from_numpy(batch.sees)[:, None].to(device)
    if donor.model.config.get_text_config()._attn_implementation != "sdpa":
        # Only sdpa reads booleans; the others add the mask to the scores.
        dtype = getattr(torch, donor.compute_dtype)
        sees_B1TT = torch.zeros(sees_B1TT.shape, dtype=dtype, device=device).masked_fill_(
            ~sees_B1TT, torch.finfo(dtype).min
        )
    return _states(
        donor,
        taps,
        torch.from_numpy(batch.lanes).to(device),
        torch.from_numpy(batch.places).to(device),
        input_ids=torch.from_numpy(batch.tokens).to(device),
        attention_mask=sees_B1TT,
        position_ids=torch.from_numpy(batch.positions).to(device),
    )


@torch.inference_mode()
def _states(donor: Donor, taps: Sequence[int], lanes_N: Tensor, places_N: Tensor, **inputs: Tensor) -> Tensor:
    """States at ``places_N`` of the sequences ``lanes_N``: (N, K, V)."""
    blocks = donor_blocks(donor)
    states: list[Tensor] = []

    def keep(hidden_BTV: Tensor, tap: int) -> None:
        # Blocks may lie on several cards.
        state_NV = hidden_BTV[lanes_N.to(hidden_BTV.device), places_N.to(hidden_BTV.device)]
        states.append(state_NV.to(states[0].device if states else state_NV.device))
        if tap == taps[-1]:
            raise _DeepestTapReached

    def at_door(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"], 0)

    handles = []
    for tap in taps:
        if tap == 0:
            handles.append(blocks[0].register_forward_pre_hook(at_door, with_kwargs=True))
        else:

            def after(_module: nn.Module, _args: Any, output: Any, tap: int = tap) -> None:
                keep(output[0] if isinstance(output, tuple) else output, tap)

            handles.append(blocks[tap - 1].register_forward_hook(after))
    try:
        donor.model(**inputs, use_cache=False)
    except _DeepestTapReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states, dim=1)


def batches_by_length(lengths: IntArray, max_tokens: int) -> Iterator[IntArray]:
    """Batches of positions 0..N-1, alike in length, of at most ``max_tokens`` padded tokens (or one key).

    The split depends on ``lengths`` and ``max_tokens`` alone, so that a resumed chunk is computed in the same batches.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(lengths[order[stop]]) <= max_tokens:
            stop += 1
        yield order[start:stop]
        start = stop


def donor_values(
    donor: Donor, taps: Sequence[int], keys: Ragged | Sequence[Sequence[int]], *, max_tokens: int, shared: bool = False
) -> Tensor:
    """Values of ``keys`` (donor tokens, none empty) in their order: (N, K, V) on the CPU, in the compute type.

    With ``shared`` each distinct prefix is run once (see `memgraft.harvesting.sharing`), else every key is run alone
    in a batch of keys alike in length.

    Raises:
        DonorError: no keys.
    """
    keys = keys if isinstance(keys, Ragged) else Ragged.of(keys)
    if not len(keys):
        raise DonorError("expected at least one key to run the donor on, found none")
    run = _shared_values if shared else _single_values
    values_NKV: Tensor | None = None
    for places, states_BKV in run(donor, taps, keys, max_tokens):
        if values_NKV is None:
            values_NKV = torch.empty((len(keys), *states_BKV.shape[1:]), dtype=states_BKV.dtype)
        values_NKV[torch.from_numpy(places)] = states_BKV.cpu()
    assert values_NKV is not None
    return values_NKV


def _shared_values(
    donor: Donor, taps: Sequence[int], keys: Ragged, max_tokens: int
) -> Iterator[tuple[IntArray, Tensor]]:
    order = sorted_order(keys)
    done = 0
    for batch in tree_batches(keys.take(order), max_tokens):
        yield order[done : done + len(batch.lanes)], run_trees(donor, taps, batch)
        done += len(batch.lanes)


def _single_values(
    donor: Donor, taps: Sequence[int], keys: Ragged, max_tokens: int
) -> Iterator[tuple[IntArray, Tensor]]:
    device = input_device(donor.model)
    lengths = keys.lengths
    for batch in batches_by_length(lengths, max_tokens):
        tokens = keys.take(batch).padded(int(lengths[batch].max()), 0).astype(np.int64)
        yield (
            batch,
            run_donor(donor, taps, torch.from_numpy(tokens).to(device), torch.from_numpy(lengths[batch]).to(device)),
        )
