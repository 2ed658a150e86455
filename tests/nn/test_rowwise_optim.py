"""Row-wise optimizer state."""

from __future__ import annotations

import copy

import pytest
import torch

from memgraft.nn.optim import RowwiseAdamW


def rowwise_by_hand(weight, gradients, lr, eps):
    weight = weight.clone()
    squares = torch.zeros(weight.shape[0])
    for gradient in gradients:
        for row in range(weight.shape[0]):
            if gradient[row].abs().max() > 0:
                squares[row] += (gradient[row] ** 2).mean()
                weight[row] -= lr * gradient[row] / (squares[row].sqrt() + eps)
    return weight


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_follow_the_rule_and_dense_groups_follow_adamw(sparse: bool) -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(7, 4, sparse=sparse)
    dense, twin = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    twin.load_state_dict(dense.state_dict())
    start = table.weight.detach().clone()
    ours = RowwiseAdamW(
        [{"params": dense.parameters(), "weight_decay": 0.1}, {"params": [table.weight], "rowwise": True, "lr": 0.5}],
        lr=0.01,
    )
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    gradients = []
    for step in range(4):
        rows = torch.tensor([[1, 3, 3, 1, 5]]) if step % 2 else torch.tensor([[1, 2]])
        for module, optimizer in ((dense, ours), (twin, theirs)):
            optimizer.zero_grad()
            module(table(rows)).square().sum().backward()
            if module is dense:
                gradient = table.weight.grad
                gradients.append((gradient.to_dense() if sparse else gradient).detach().clone())
                table_gradient = table.weight.grad
            else:
                table.weight.grad = table_gradient
        ours.step()
        theirs.step()
    expected = rowwise_by_hand(start, gradients, 0.5, 1e-8)
    torch.testing.assert_close(table.weight.detach(), expected)
    # Rows without a gradient do not move at all.
    assert torch.equal(table.weight[[0, 4, 6]], start[[0, 4, 6]])
    for mine, other in zip(dense.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert ours.state[table.weight]["row_square_sum"].shape == (7, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_survives_a_checkpoint(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(5, 2, dtype=dtype)

    def step(optimizer) -> None:
        optimizer.zero_grad()
        table(torch.tensor([1, 2])).square().sum().backward()
        optimizer.step()

    first = RowwiseAdamW([{"params": [table.weight], "rowwise": True}], lr=0.1)
    step(first)
    weight, state = table.weight.detach().clone(), copy.deepcopy(first.state_dict())
    step(first)
    expected = table.weight.detach().clone()
    table.weight.data.copy_(weight)
    second = RowwiseAdamW([{"params": [table.weight], "rowwise": True}], lr=0.1)
    second.load_state_dict(state)
    sums = second.state[table.weight]["row_square_sum"]
    assert sums.dtype == torch.float32
    assert torch.equal(sums, state["state"][0]["row_square_sum"])
    step(second)
    assert torch.equal(table.weight, expected)


def test_sums_of_small_gradients_do_not_stall_in_a_bf16_table() -> None:
    table = torch.nn.Embedding(2, 4, dtype=torch.bfloat16)
    optimizer = RowwiseAdamW([{"params": [table.weight], "rowwise": True}], lr=1e-3)
    for size in [1.0] + [0.03] * 100:
        table.weight.grad = torch.full_like(table.weight, size)
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state[table.weight]["row_square_sum"], torch.full((2, 1), 1.09), rtol=1e-2, atol=0
    )


def test_wrong_groups_are_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        RowwiseAdamW([{"params": [weight], "rowwise": True}])
    with pytest.raises(ValueError, match=r"weight decay, found 0\.1"):
        RowwiseAdamW([{"params": [torch.nn.Parameter(torch.zeros(3, 2))], "rowwise": True, "weight_decay": 0.1}])
