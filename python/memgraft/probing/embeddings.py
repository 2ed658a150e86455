"""What input embeddings know of a key: the mean over its tokens, of the recipient or of a donor."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgraft.errors import ArgumentError
from memgraft.harvesting.gguf import quiet_transformers
from memgraft.harvesting.packing import Ragged
from memgraft.keyset import KeySet
from memgraft.probing.softmax import FloatArray


def mean_embeddings(model: Any, tokens: Ragged) -> FloatArray:
    """(N, D) means of the input embeddings of ``model`` over each list of tokens."""
    weight = model.get_input_embeddings().weight
    ids = torch.from_numpy(tokens.tokens.astype(np.int64)).to(weight.device)
    offsets = torch.from_numpy(tokens.offsets[:-1].astype(np.int64)).to(weight.device)
    with torch.no_grad():
        means = torch.nn.functional.embedding_bag(ids, weight.float(), offsets, mode="mean")
    found: FloatArray = means.cpu().numpy()
    return found


def recipient_embeddings(recipient: str | Path, keys: KeySet) -> FloatArray:
    """(N, D) means of the recipient's input embeddings over each key.

    Raises:
        ArgumentError: transformers cannot load the recipient, or it has too few embeddings.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                recipient, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except Exception as error:  # damaged weights and configs raise whatever their readers do
        raise ArgumentError(
            f"recipient {recipient}: expected a transformers folder, found {type(error).__name__}: {error}"
        ) from error
    arrays = keys.arrays()
    found = int(model.get_input_embeddings().weight.shape[0])
    if int(arrays.tokens.max()) >= found:
        raise ArgumentError(
            f"recipient {recipient}: has embeddings of {found} tokens, the keys are of a vocabulary of "
            f"{keys.vocab_size}; name the recipient whose tokenizer made the keys"
        )
    return mean_embeddings(model, Ragged(arrays.tokens.astype(np.int32), arrays.offsets.astype(np.int64)))
