"""AdamW with row-wise state for hash tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memgraft.errors import ArgumentError


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW for most groups, row-wise Adagrad for groups with ``rowwise=True``.

    A hash table's state is one float32 per row instead of two per weight, and rows without a gradient are neither read
    nor moved. The rule is that of FBGEMM's exact row-wise Adagrad: ``state += mean(g^2); row -= lr * g / (sqrt(state)
    + eps)``. torch's own lazy choices keep full-size state (``SparseAdam``) or want every gradient dense (``Adagrad``).

    Row-wise groups take dense or sparse gradients of 2-D parameters and no weight decay.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; ``rowwise`` defaults to ``False``.

        Raises:
            ArgumentError: a row-wise group with weight decay or a parameter that is not 2-D.
        """
        param_group.setdefault("rowwise", False)
        if param_group["rowwise"]:
            param_group.setdefault("weight_decay", 0.0)
            if param_group["weight_decay"] != 0.0:
                raise ArgumentError(f"a row-wise group takes no weight decay, found {param_group['weight_decay']}")
        super().add_param_group(param_group)
        if param_group["rowwise"]:
            for param in param_group["params"]:
                if param.dim() != 2:
                    raise ArgumentError(f"a row-wise parameter must be (rows, width), found shape {tuple(param.shape)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; rows keep float32 sums, which torch would cast to the parameter's dtype."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(saved, params, strict=True):
            sums = state_dict["state"].get(number, {}).get("row_square_sum")
            if sums is not None:
                self.state[param]["row_square_sum"] = sums.to(param.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every group."""
        groups = self.param_groups
        dense = [group for group in groups if not group["rowwise"]]
        # AdamW.step walks param_groups: show it its own.
        self.param_groups = dense
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["rowwise"]:
                for param in group["params"]:
                    if param.grad is not None:
                        self._step_rows(param, param.grad, group)
        return loss

    def _step_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "row_square_sum" not in state:
            # From a zeros_like, so that a DTensor table gets a state with the same sharding.
            state["row_square_sum"] = torch.zeros_like(param[:, :1], dtype=torch.float32)
            # Adam's own loading looks for it.
            state["step"] = torch.zeros(())
        state["step"] += 1
        squares = state["row_square_sum"]
        lr, eps = float(group["lr"]), float(group["eps"])
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values().float()
            touched = squares.index_select(0, rows) + values.square().mean(dim=1, keepdim=True)
            squares.index_copy_(0, rows, touched)
            param.index_add_(0, rows, (-lr * values / (touched.sqrt() + eps)).to(param.dtype))
            return
        # One pass for the norms, one for the update: a table is larger than all that a step reads of it.
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True, dtype=torch.float32)
        squares.add_(norms.square_(), alpha=1.0 / grad.shape[1])
        factors = squares.sqrt().add_(eps).reciprocal_().mul_(-lr)
        if param.dtype == grad.dtype == torch.float32:
            param.addcmul_(grad, factors)
        else:
            param.add_((grad.float() * factors).to(param.dtype))
