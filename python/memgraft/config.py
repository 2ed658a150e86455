"""Frozen configurations with JSON round trips; validated when they are made, torch-free."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from memgraft.controls import CONTROLS as CONTROLS
from memgraft.controls import Control as Control
from memgraft.controls import RowSource as RowSource
from memgraft.errors import ConfigError

CONFIG_FORMAT_VERSION = 1
MAX_ORDER = 16
"""The longest key; the core's limit, which this file does not read from it, because it needs no compiled module."""

MAX_VOCAB_SIZE = 1 << 20
"""Ids are below this, whatever the vocabulary; the core's limit too."""

Gate = Literal["plain", "signed_sqrt", "none"]
Into = Literal["residual", "values"]
Init = Literal["zero", "scalar", "scratch"]
Precision = Literal["float32", "recipient"]


def _require(holds: bool, what: str, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"{what} must be {expected}, found {found!r}")


def _is_int(value: object, low: int, high: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class FallbackConfig:
    """The hashed n-gram embedding that stands in at a miss (Engram; docs/METHOD.md, section 4).

    Attributes:
        orders: n-gram lengths that are hashed, ascending.
        num_heads: hash heads per order.
        table_size: slots a head aims at; each head takes the next free prime from ``table_size - 1``. One number, or
            one per order.
        dim: embedding width per order, shared evenly by its heads.
        compress: hash compressed token ids (decode, normalise, lowercase); needs the recipient's tokenizer at the
            graft. ``False`` hashes raw ids.
        pad_token_id: raw id that stands left of a segment; ``None`` takes the recipient's pad token, else 0.
        sparse_gradients: give the table sparse gradients (for ``torch.optim.SparseAdam`` or ``RowwiseAdamW``).
    """

    orders: tuple[int, ...] = (2, 3)
    num_heads: int = 8
    table_size: int | tuple[int, ...] = 32768
    dim: int = 256
    compress: bool = True
    pad_token_id: int | None = None
    sparse_gradients: bool = False

    def __post_init__(self) -> None:
        """Validates; lists become tuples.

        Raises:
            ConfigError: a field is out of range or contradicts another.
        """
        object.__setattr__(self, "orders", _as_tuple(self.orders))
        object.__setattr__(self, "table_size", _as_tuple(self.table_size))
        orders_fit = isinstance(self.orders, tuple) and all(_is_int(n, 1, MAX_ORDER) for n in self.orders)
        _require(
            orders_fit and len(self.orders) > 0 and list(self.orders) == sorted(set(self.orders)),
            "fallback.orders",
            f"distinct ascending n-gram lengths in 1..{MAX_ORDER}",
            self.orders,
        )
        _require(_is_int(self.num_heads, 1, 64), "fallback.num_heads", "an integer in 1..64", self.num_heads)
        sizes = self.table_size if isinstance(self.table_size, tuple) else (self.table_size,) * len(self.orders)
        _require(
            len(sizes) == len(self.orders) and all(_is_int(size, 2, 2**31) for size in sizes),
            "fallback.table_size",
            f"one size from 2 up, or one for each of the {len(self.orders)} orders",
            self.table_size,
        )
        _require(
            _is_int(self.dim, 1) and self.dim % self.num_heads == 0,
            "fallback.dim",
            f"a positive multiple of num_heads={self.num_heads}",
            self.dim,
        )
        for name in ("compress", "sparse_gradients"):
            _require(isinstance(getattr(self, name), bool), f"fallback.{name}", "a bool", getattr(self, name))
        pad = self.pad_token_id
        _require(pad is None or _is_int(pad, 0), "fallback.pad_token_id", "a token id or None", pad)

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """The size aimed at, one per order."""
        return self.table_size if isinstance(self.table_size, tuple) else (self.table_size,) * len(self.orders)

    @property
    def embedding_dim(self) -> int:
        """Width of the concatenated embedding e_t: ``len(orders) * dim``."""
        return len(self.orders) * self.dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """What is attached to a recipient, and where (docs/METHOD.md, section 5).

    Attributes:
        sites: decoder blocks where the memory is added; 0 is the first block.
        into: ``"residual"`` adds it to the residual stream before the block, ``"values"`` to the values of the block's
            attention, which then go into its cache with it.
        taps: for each site the donor depth (one of ``bank.taps``) it reads. ``None``: in order, or one tap for all.
        gate: ``"plain"`` is a sigmoid, ``"signed_sqrt"`` is Engram's released form, ``"none"`` has no gate and no keys:
            what is added is multiplied by one learned scalar.
        conv: add the causal depthwise convolution over the gated values.
        conv_kernel: taps of that convolution.
        conv_dilation: its dilation.
        normalize_values: RMS-normalise bank rows before they are projected.
        streams: residual streams of a hyper-connection recipient, 1 elsewhere.
        fallback: the hashed embedding for misses; ``None`` adds nothing at a miss.
        init: ``"zero"`` attaches with an output of exactly 0 through zero value projections, ``"scalar"`` through one
            zero scalar, ``"scratch"`` draws everything for training from scratch.
        init_std: standard deviation of drawn weights.
        control: a control arm instead of the real memory; see :data:`Control`.
        seed: seeds the init, the fallback's hashes and the controls.
        eos_token_id: ids that end a segment; ``"recipient"`` takes the recipient's, ``None`` none.
        dtype: ``"float32"`` keeps graft weights in float32, ``"recipient"`` follows the model.
    """

    sites: tuple[int, ...]
    into: Into = "residual"
    taps: tuple[int, ...] | None = None
    gate: Gate = "plain"
    conv: bool = True
    conv_kernel: int = 4
    conv_dilation: int = 3
    normalize_values: bool = True
    streams: int = 1
    fallback: FallbackConfig | None = dataclasses.field(default_factory=FallbackConfig)
    init: Init = "zero"
    init_std: float = 0.02
    control: Control | None = None
    seed: int = 0
    eos_token_id: int | tuple[int, ...] | Literal["recipient"] | None = "recipient"
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        """Validates; lists become tuples.

        Raises:
            ConfigError: a field is out of range or contradicts another.
        """
        for name in ("sites", "taps", "eos_token_id"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        sites_fit = isinstance(self.sites, tuple) and all(_is_int(site, 0) for site in self.sites)
        _require(
            sites_fit and len(self.sites) > 0 and list(self.sites) == sorted(set(self.sites)),
            "sites",
            "a tuple of distinct ascending block numbers from 0",
            self.sites,
        )
        if self.taps is not None:
            taps_fit = isinstance(self.taps, tuple) and all(_is_int(tap, 0) for tap in self.taps)
            _require(
                taps_fit and len(self.taps) == len(self.sites),
                "taps",
                f"None or one donor depth for each of the {len(self.sites)} sites",
                self.taps,
            )
        for name, choices in (("into", Into), ("gate", Gate), ("init", Init), ("dtype", Precision)):
            _require(getattr(self, name) in get_args(choices), name, f"one of {get_args(choices)}", getattr(self, name))
        _require(
            self.control is None or self.control in get_args(Control),
            "control",
            f"None or one of {get_args(Control)}",
            self.control,
        )
        for name in ("conv", "normalize_values"):
            _require(isinstance(getattr(self, name), bool), name, "a bool", getattr(self, name))
        _require(_is_int(self.conv_kernel, 2, 64), "conv_kernel", "an integer in 2..64", self.conv_kernel)
        _require(_is_int(self.conv_dilation, 1, 64), "conv_dilation", "an integer in 1..64", self.conv_dilation)
        _require(_is_int(self.streams, 1, 64), "streams", "an integer in 1..64", self.streams)
        _require(_is_int(self.seed, 0, 2**62), "seed", "an integer from 0", self.seed)
        _require(
            isinstance(self.init_std, int | float) and not isinstance(self.init_std, bool) and 0 < self.init_std < 10,
            "init_std",
            "a number in (0, 10)",
            self.init_std,
        )
        _require(
            self.fallback is None or isinstance(self.fallback, FallbackConfig),
            "fallback",
            "a FallbackConfig or None",
            self.fallback,
        )
        if self.into == "values" and self.streams > 1:
            raise ConfigError(f'into="values" needs a recipient with one residual stream, found streams={self.streams}')
        if self.row_source == "none" and self.fallback is None:
            raise ConfigError(f'control="{self.control}" needs a fallback: pass fallback=FallbackConfig(...)')
        eos = self.eos_token_id
        eos_ids = eos if isinstance(eos, tuple) else (eos,)
        _require(
            eos is None or eos == "recipient" or (len(eos_ids) > 0 and all(_is_int(token, 0) for token in eos_ids)),
            "eos_token_id",
            'a token id, a tuple of them, "recipient" or None',
            eos,
        )

    @property
    def row_source(self) -> RowSource:
        """What a hit reads under this control (:data:`memgraft.controls.CONTROLS`)."""
        return CONTROLS[self.control].rows

    @property
    def active_fallback(self) -> FallbackConfig | None:
        """The fallback that is built: none under ``control="no_fallback"`` or ``"no_memory"``."""
        return self.fallback if CONTROLS[self.control].fallback else None

    @property
    def conv_reach(self) -> int:
        """Positions the convolution looks back: ``(kernel - 1) * dilation``, 0 without it."""
        return (self.conv_kernel - 1) * self.conv_dilation if self.conv else 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping with ``format_version``."""
        return {"format_version": CONFIG_FORMAT_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """The same as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GraftConfig:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            ConfigError: another format version, an unknown field, or a value that does not validate.
        """
        fields = dict(data)
        version = fields.pop("format_version", None)
        if version != CONFIG_FORMAT_VERSION:
            raise ConfigError(
                f"graft config format_version must be {CONFIG_FORMAT_VERSION}, found {version!r}: "
                "read it with the memgraft version that wrote it"
            )
        fallback = fields.get("fallback")
        if isinstance(fallback, Mapping):
            fields["fallback"] = _build(FallbackConfig, fallback, "fallback config")
        config: GraftConfig = _build(cls, fields, "graft config")
        return config

    @classmethod
    def from_json(cls, text: str) -> GraftConfig:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ConfigError: not JSON, or as :meth:`from_dict`.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the graft config is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"the graft config must be a JSON object, found {type(data).__name__}")
        return cls.from_dict(data)


def _build(kind: type[Any], fields: Mapping[str, Any], what: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(f"unknown fields in the {what}: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"incomplete {what}: {error}") from error


def taps_of_sites(depths: tuple[int, ...], sites: tuple[int, ...], taps: tuple[int, ...] | None) -> tuple[int, ...]:
    """The donor depth that each of ``sites`` reads of a bank harvested at ``depths``.

    Raises:
        ConfigError: the bank has no such tap, or ``taps`` is None and it is open which feeds which site.
    """
    if taps is None:
        if len(depths) not in (1, len(sites)):
            raise ConfigError(
                f"the bank has taps {depths} for {len(sites)} sites: say which feeds which, GraftConfig(taps=(...))"
            )
        taps = depths if len(depths) == len(sites) else depths * len(sites)
    if missing := sorted(set(taps) - set(depths)):
        raise ConfigError(f"taps {missing} are not in the bank, which was harvested at {depths}")
    return taps
