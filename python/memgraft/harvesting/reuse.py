"""What the keys of a harvest share: whether prefixes run once, and how many donor tokens that spares."""

from collections.abc import Mapping
from typing import Any

from memgraft.harvesting.prefix import Prefix
from memgraft.harvesting.selecting import Selection
from memgraft.harvesting.setup import Setup
from memgraft.harvesting.sharing import Sharing, find_sharing


def sharing_of(setup: Setup, selection: Selection, asked: bool, recorded: Mapping[str, Any]) -> Sharing:
    """Whether prefixes are shared: what the harvest that is taken up found, else what is found now."""
    if not asked:
        return Sharing(shared=False, reason="share_prefixes is off")
    before = recorded.get("shared_prefixes")
    if isinstance(before, bool) and recorded.get("fingerprint") == setup.donor.fingerprint:
        return Sharing(shared=before, reason="as the harvest began")
    return find_sharing(setup.donor, setup.taps, selection.tokens, setup.prefix.ids)


def token_counts(selection: Selection, prefix: Prefix) -> dict[str, int]:
    """Donor tokens of all keys, each behind the prefix, and the distinct beginnings among them."""
    num_tokens = len(selection.tokens.tokens) + len(prefix.ids) * len(selection.tokens)
    return {"num_donor_tokens": num_tokens, "num_prefixes": selection.num_prefixes + len(prefix.ids)}


def describe(facts: Mapping[str, Any], sharing: Sharing) -> str:
    """A line for the person who watches: donor tokens, distinct prefixes, and whether each runs once."""
    tokens, prefixes = facts["num_donor_tokens"], facts["num_prefixes"]
    text = f"{tokens:,} donor tokens in all keys, {prefixes:,} distinct prefixes ({tokens / prefixes:.2f} to one"
    if sharing.shared:
        return f"{text}): each prefix runs once, {1 - prefixes / tokens:.0%} of the tokens are reused; {sharing.reason}"
    return f"{text}): every key runs alone, since {sharing.reason}"
