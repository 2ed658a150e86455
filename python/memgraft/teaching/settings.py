"""How facts are taught."""

from dataclasses import dataclass

from memgraft.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class TeachSettings:
    """Settings of `teach`.

    Attributes:
        min_order: the shortest end of a prompt that may become a key; 16 teaches the prompts as they are and no others.
        steps: most steps of training; 0 leaves the donor's states as they are.
        batch_size: statements a step.
        learning_rate: of Adam, as a share of a row's root mean square.
        target: training ends once each token of every completion has at least this probability.
        keep_weight: weight of the KL term that holds neutral text, where new keys match it, at what the base says.
        neutral_tokens: tokens of neutral text that keys are checked against.
        neutral_windows: windows of neutral text that damage is measured on.
        window: tokens of such a window.
        seed: orders the statements and chooses the windows.
    """

    min_order: int = 3
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 0.1
    target: float = 0.9
    keep_weight: float = 1.0
    neutral_tokens: int = 2_000_000
    neutral_windows: int = 64
    window: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            ArgumentError: a setting is out of range.
        """
        whole = {"min_order": (1, 16), "steps": (0, None), "batch_size": (1, None), "seed": (0, None)}
        whole |= {"neutral_tokens": (1, None), "neutral_windows": (1, None), "window": (2, None)}
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low or (high and value > high):
                end = f" to {high}" if high else " or more"
                raise ArgumentError(f"{name}: expected a whole number of {low}{end}, got {value!r}")
        if not self.learning_rate > 0:
            raise ArgumentError(f"learning_rate: expected more than 0, got {self.learning_rate!r}")
        if not 0 < self.target < 1:
            raise ArgumentError(f"target: expected a probability between 0 and 1, got {self.target!r}")
        if not self.keep_weight >= 0:
            raise ArgumentError(f"keep_weight: expected 0 or more, got {self.keep_weight!r}")
