"""The arms of an experiment: one recipient, one token order, and what is grafted onto it in each.

Every arm starts from the same recipient weights and reads the same batches; arms differ in the graft alone. The table
of arms is in `memgraft.controls`; docs/METHOD.md, section 7, says what each answers. Graft minus shuffled is the first
number: it asks whether it matters *which* donor value a key has.
"""

from memgraft.controls import ARMS, DEFAULT_ARMS, Arm, Source, arms_named

__all__ = ["ARMS", "DEFAULT_ARMS", "Arm", "Source", "arms_named"]
