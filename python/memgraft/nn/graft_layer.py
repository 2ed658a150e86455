"""One site: projections, gate, convolution, and the write (docs/METHOD.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from memgraft.config import Gate
from memgraft.errors import ArgumentError
from memgraft.nn import path
from memgraft.nn.conv import SegmentConv
from memgraft.nn.fallback import HashFallback
from memgraft.nn.gate import NormWeight, rms_normalize, rms_scale, widened
from memgraft.nn.mix import gate_and_mix

# Called with hidden_BTSD, alpha_BTS1, update_BTSD (float32), written_BTSD (hidden's dtype).
Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class ProjectedRows:
    """Projected rows: keys with both norms' weights in them, the keys' RMS scales, values; and each position's row.

    Without a gate there are no keys.
    """

    keys_NSD: Tensor | None
    scales_NS: Tensor | None
    values_ND: Tensor
    picked_BT: Tensor


class GraftLayer(nn.Module):
    """Adds the memory of each position to the hidden state, or to a target of another width.

    Bank rows are projected once per unique row, the fallback once per miss, and both are spread over the positions.
    Gate, convolution and the final addition run in float32 under any narrower dtype of the model.

    Args:
        hidden_dim: recipient width D.
        value_dim: bank width V; ``None`` leaves the memory path out (``fallback`` alone).
        fallback: the embedding used at misses; ``None`` adds nothing there.
        gate: gate form; ``"none"`` leaves out keys and gate and always has the learned scalar.
        conv: whether the convolution is there.
        conv_kernel: its taps.
        conv_dilation: its dilation.
        streams: residual streams S of a hyper-connection recipient.
        normalize_values: RMS-normalise bank rows first.
        output_scale: multiply the update by one learned scalar.
        num_trainable_rows: replace the bank's values by a trained table of so many rows (a control).
        target_dim: width E of what is written into, where that is not the hidden state: calls then give a target. One
            stream only.

    Attributes:
        kernel: gate and mix as one Triton kernel (`memgraft.nn.kernel`). ``None``: where the tensors are on a card that
            it suits (`memgraft.nn.path`), torch operations elsewhere. ``True``: the kernel, or an error that says why
            not. ``False``: torch operations. Calls with an observer or with a trained history take those in any case,
            and so do layers whose weights are brought for each call. The layer's ``repr`` says what is taken and why.
    """

    kernel: bool | None = None

    def __init__(
        self,
        hidden_dim: int,
        value_dim: int | None,
        *,
        fallback: HashFallback | None = None,
        gate: Gate = "plain",
        conv: bool = True,
        conv_kernel: int = 4,
        conv_dilation: int = 3,
        streams: int = 1,
        normalize_values: bool = True,
        output_scale: bool = False,
        num_trainable_rows: int | None = None,
        target_dim: int | None = None,
    ) -> None:
        super().__init__()
        if gate not in get_args(Gate):
            raise ArgumentError(f"gate: expected one of {', '.join(get_args(Gate))}, found {gate!r}")
        if value_dim is None and fallback is None:
            raise ArgumentError("a graft layer needs a memory (value_dim), a fallback, or both")
        if target_dim is not None and streams > 1:
            raise ArgumentError(f"target_dim: expected one stream beside it, found {streams}")
        self.hidden_dim, self.value_dim, self.streams = hidden_dim, value_dim, streams
        self.target_dim = target_dim
        written_dim = hidden_dim if target_dim is None else target_dim
        gated = gate != "none"
        self.gate_kind: Gate = gate
        self.normalize_values = normalize_values
        self.memory_key: nn.Linear | None = None
        self.memory_value: nn.Linear | None = None
        self.fallback_key: nn.Linear | None = None
        self.fallback_value: nn.Linear | None = None
        self.rows: nn.Embedding | None = None
        if value_dim is not None:
            self.memory_key = nn.Linear(value_dim, streams * hidden_dim, bias=False) if gated else None
            self.memory_value = nn.Linear(value_dim, written_dim, bias=False)
            if num_trainable_rows is not None:
                self.rows = nn.Embedding(num_trainable_rows, value_dim)
        self.fallback = fallback
        if fallback is not None:
            width = len(fallback.orders) * fallback.num_heads * fallback.table.embedding_dim
            self.fallback_key = nn.Linear(width, streams * hidden_dim, bias=False) if gated else None
            self.fallback_value = nn.Linear(width, written_dim, bias=False)
        self.key_norm = NormWeight(hidden_dim, streams) if gated else None
        self.query_norm = NormWeight(hidden_dim, streams) if gated else None
        self.conv = SegmentConv(written_dim, conv_kernel, conv_dilation, streams) if conv else None
        self.scale = nn.Parameter(torch.zeros(())) if output_scale or not gated else None

    @property
    def conv_reach(self) -> int:
        """Positions of history that the convolution reads."""
        return self.conv.reach if self.conv is not None else 0

    def forward(
        self,
        hidden_BTD: Tensor,
        values_UV: Tensor | None,
        inverse_BT: Tensor,
        segments_BH: Tensor,
        tokens_BH: Tensor | None = None,
        conv_state_BCSD: Tensor | None = None,
        misses_M: Tensor | None = None,
        observer: Observer | None = None,
        keep_gated: bool = True,
        target_BTE: Tensor | None = None,
        rows_U: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Injects the memory.

        ``segments_BH`` and ``tokens_BH`` may carry history in front of the T new positions (H >= T); without history
        the new positions start their sequence.

        Args:
            hidden_BTD: hidden state, (B, T, D), or (B, T, S, D) with streams.
            values_UV: values of the unique bank rows; may be empty. ``None`` with ``num_trainable_rows``.
            inverse_BT: index into the unique rows, -1 at a miss.
            segments_BH: one id per contiguous run, -1 at padding; nothing crosses a change.
            tokens_BH: raw token ids, needed by the fallback.
            conv_state_BCSD: gated values of the last C positions of history, C at least ``conv_reach``; ``None`` with
                H == T.
            misses_M: flat indices ``b * T + t`` of all positions with inverse -1, ascending: the fallback is evaluated
                there alone. ``None`` evaluates it everywhere, which needs no list of unknown length.
            observer: receives the gate and the update, for telemetry.
            keep_gated: whether a later call goes on from this one.
            target_BTE: what the memory is added to in place of the hidden state, with ``target_dim``; the gate
                reads the hidden state.
            rows_U: with ``num_trainable_rows``: the unique rows' numbers in the trained table; may be empty.

        Returns:
            The hidden state, or the target, in its dtype and shape, and the gated values of the new positions,
            (B, T, S, D or E) float32: the next call's ``conv_state_BCSD``; ``None`` where there will be none.

        Raises:
            ArgumentError: shapes that do not fit the layer or each other, or history without ``conv_state_BCSD``.
        """
        hidden_BTSD = hidden_BTD.unsqueeze(2) if hidden_BTD.dim() == 3 else hidden_BTD
        if hidden_BTSD.dim() != 4 or hidden_BTSD.shape[2:] != (self.streams, self.hidden_dim):
            raise ArgumentError(
                f"hidden state must be (B, T, {self.hidden_dim}), with {self.streams} stream(s) before the last "
                f"dimension, found {tuple(hidden_BTD.shape)}"
            )
        if (target_BTE is None) != (self.target_dim is None) or (
            target_BTE is not None and target_BTE.shape != (*hidden_BTSD.shape[:2], self.target_dim)
        ):
            found = None if target_BTE is None else tuple(target_BTE.shape)
            raise ArgumentError(f"target_BTE must be of width {self.target_dim} at each position, found {found}")
        if self.kernel and self._unfused is not None:
            raise ArgumentError(f"kernel=True: {self._unfused}")
        if values_UV is not None and self.value_dim is not None and values_UV.shape[1:] != (self.value_dim,):
            raise ArgumentError(
                f"values_UV must be (U, {self.value_dim}), the rows at one tap, found {tuple(values_UV.shape)}; of a "
                "MemoryBatch take memory.floats()[:, tap]"
            )
        num_new = hidden_BTSD.shape[1]
        if inverse_BT.shape != hidden_BTSD.shape[:2] or segments_BH.shape[1] < num_new:
            raise ArgumentError(
                f"inverse_BT must be of the {tuple(hidden_BTSD.shape[:2])} positions of the hidden state, and "
                f"segments_BH of these and their history, found {tuple(inverse_BT.shape)} and "
                f"{tuple(segments_BH.shape)}"
            )
        if self.conv is not None and conv_state_BCSD is None and segments_BH.shape[1] > num_new:
            raise ArgumentError(
                f"segments_BH carries {segments_BH.shape[1] - num_new} positions of history, which the convolution "
                "reads too: pass the gated values that the calls before returned, their last "
                f"{self.conv_reach} positions, as conv_state_BCSD"
            )
        rows = self.projected_rows(values_UV, rows_U, inverse_BT, segments_BH, tokens_BH, misses_M)
        sourced_BT = segments_BH[:, -num_new:] >= 0
        if self.fallback is None:
            sourced_BT = sourced_BT & (inverse_BT >= 0)
        state_BCSD = conv_state_BCSD
        if (
            observer is None
            and rows.keys_NSD is not None
            and rows.scales_NS is not None
            and self._fused(hidden_BTSD, rows.values_ND, state_BCSD)
        ):
            written_BTSD, gated_BTSD = self._fuse(hidden_BTSD, rows, sourced_BT, segments_BH, state_BCSD, keep_gated)
            return written_BTSD.view(hidden_BTD.shape), gated_BTSD if keep_gated else None
        target_BTSE = None if target_BTE is None else target_BTE.unsqueeze(2)
        written_BTSD, gated_BTSD, alpha_BTS1, update_BTSD = gate_and_mix(
            hidden_BTSD,
            rows.keys_NSD,
            rows.scales_NS,
            rows.values_ND,
            rows.picked_BT,
            sourced_BT,
            segments_BH,
            self.conv,
            None if self.scale is None else widened(self.scale),
            state_BCSD,
            self.gate_kind,
            target_BTSE,
        )
        if observer is not None:
            observer(hidden_BTSD if target_BTSE is None else target_BTSE, alpha_BTS1, update_BTSD, written_BTSD)
        return written_BTSD.view(
            hidden_BTD.shape if target_BTE is None else target_BTE.shape
        ), gated_BTSD if keep_gated else None

    def extra_repr(self) -> str:
        """What computes gate and mix, and why."""
        weight = self._projection.weight
        if self.kernel is False:
            why = "torch operations: switched off"
        elif self._unfused is not None:
            why = f"torch operations: {self._unfused}"
        elif reason := (path.impossible(self._shape, weight.device) if self.kernel else path.no_card(weight.device)):
            why = f"torch operations: {reason}"
        else:
            why = "fused kernel" if self.kernel else "fused kernel where its self-check agrees"
        return f"kernel={self.kernel} ({why})"

    @property
    def _projection(self) -> nn.Linear:
        """A projection that every layer has."""
        projection = self.memory_value or self.fallback_value
        assert projection is not None
        return projection

    @property
    def _unfused(self) -> str | None:
        """Why no kernel is made for such a layer, or ``None``."""
        if self.target_dim is not None:
            return "it writes into a target beside the hidden state, the kernel into the hidden state"
        if self.gate_kind == "none":
            return "it has no gate"
        return None if self.gate_kind in path.FUSED_GATES else f"the kernel has no formula for gate={self.gate_kind!r}"

    @property
    def _shape(self) -> path.SiteShape:
        taps, dilation = (0, 1) if self.conv is None else (self.conv.kernel, self.conv.dilation)
        signed = self.gate_kind == "signed_sqrt"
        return path.SiteShape(self.hidden_dim, self.streams, taps, dilation, signed, self.scale is not None)

    def _fused(self, hidden_BTSD: Tensor, values_ND: Tensor, state_BCSD: Tensor | None) -> bool:
        """Whether this call runs the kernel."""
        if self.kernel is False or self._unfused is not None or (state_BCSD is not None and state_BCSD.requires_grad):
            return False
        device = hidden_BTSD.device
        if self.conv is not None and self.conv.weight.device != device:
            # Offloaded: a hook brings the weight for the convolution's own call, which the kernel does not make.
            return False
        if self.kernel:
            if reason := path.impossible(self._shape, device):
                raise ArgumentError(f"kernel=True: {reason}")
            return True
        found: str | None = path.refusal(
            tuple(self._shape), device, hidden_BTSD.dtype, values_ND.dtype, torch.is_grad_enabled()
        )
        return found is None

    def _fuse(
        self,
        hidden_BTSD: Tensor,
        rows: ProjectedRows,
        sourced_BT: Tensor,
        segments_BH: Tensor,
        state_BCSD: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        from memgraft.nn import kernel

        history = 0 if state_BCSD is None else state_BCSD.shape[1]
        written, gated, _ = kernel.gate_and_mix(
            hidden_BTSD,
            rows.keys_NSD,
            rows.scales_NS,
            rows.values_ND,
            rows.picked_BT,
            sourced_BT,
            segments_BH[:, -hidden_BTSD.shape[1] - history :],
            None if self.conv is None else self.conv.taps(),
            None if self.scale is None else widened(self.scale),
            state_BCSD,
            1 if self.conv is None else self.conv.dilation,
            self.gate_kind == "signed_sqrt",
            keep,
        )
        return written, gated

    def projected_rows(
        self,
        values_UV: Tensor | None,
        rows_U: Tensor | None,
        inverse_BT: Tensor,
        segments_BH: Tensor,
        tokens_BH: Tensor | None,
        misses_M: Tensor | None,
    ) -> ProjectedRows:
        """The projected rows of both sources, and which of them every position reads."""
        # One list of rows for both sources, the bank's and then those of the misses: what is projected is as short as
        # it can be, and every position picks one entry.
        picked, shape = inverse_BT.flatten().long(), inverse_BT.shape
        if self.memory_value is None:
            picked = torch.full_like(picked, -1)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        num_rows = 0
        if self.memory_value is not None:
            entered_UV = self._entered(values_UV, rows_U)
            if self.memory_key is not None:
                keys.append(self.memory_key(entered_UV))
            values.append(self.memory_value(entered_UV))
            num_rows = entered_UV.shape[0]
        if self.fallback is not None and self.fallback_value is not None:
            if tokens_BH is None:
                raise ArgumentError("this graft layer has a fallback: tokens_BH is missing")
            embedded = self.fallback(tokens_BH, segments_BH, shape[1], misses_M).to(self.fallback_value.weight.dtype)
            if self.fallback_key is not None:
                keys.append(self.fallback_key(embedded))
            values.append(self.fallback_value(embedded))
            is_miss = picked < 0
            # Without a list of misses every position has its row there.
            place = torch.arange(len(picked), device=picked.device) if misses_M is None else is_miss.cumsum(0) - 1
            picked = torch.where(is_miss, place + num_rows, picked)
        values_ND, picked_BT = torch.cat(values), picked.clamp_min(0).view(shape)
        if self.key_norm is None or self.query_norm is None:
            return ProjectedRows(None, None, values_ND, picked_BT)
        keys_NSD = torch.cat(keys).view(-1, self.streams, self.hidden_dim)
        # Weights and norms are taken per row, before the rows are spread over positions.
        return ProjectedRows(
            keys_NSD=keys_NSD * (self.query_norm() * self.key_norm()),
            scales_NS=rms_scale(keys_NSD, self.key_norm.eps).squeeze(-1),
            values_ND=values_ND,
            picked_BT=picked_BT,
        )

    def _entered(self, values_UV: Tensor | None, rows_U: Tensor | None) -> Tensor:
        """What the memory's projections read: the bank's values or those of the trained table, normalised."""
        assert self.memory_value is not None
        if self.rows is not None:
            if rows_U is None or values_UV is not None:
                raise ArgumentError("this graft layer has a trained table: it takes rows_U in place of values_UV")
            values_UV = self.rows(rows_U.long())
        elif rows_U is not None:
            raise ArgumentError("rows_U: this graft layer has no trained table (num_trainable_rows)")
        if values_UV is None:
            raise ArgumentError("this graft layer has a memory: values_UV is missing")
        if values_UV.shape[0] == 0:
            # A batch of misses: one zero row keeps the graph whole; no position reads it.
            values_UV = values_UV.new_zeros(1, values_UV.shape[1])
        if self.normalize_values:
            values_UV = rms_normalize(values_UV)
        return values_UV.to(self.memory_value.weight.dtype)
