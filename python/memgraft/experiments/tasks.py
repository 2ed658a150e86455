"""Tasks of the lm-evaluation-harness that lie on the disk, run on every arm of an experiment."""

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from memgraft.errors import ConfigError


def check_tasks(folder: Path) -> str:
    """Fingerprint of a folder's task files, which decide what is asked.

    Raises:
        ConfigError: it holds none, or the harness is not installed.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"tasks: expected a folder with task files of the lm-evaluation-harness (.yaml), found {folder}"
        )
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError("tasks: expected the lm-evaluation-harness, found none; pip install lm_eval") from error
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def run_tasks(model: nn.Module, folder: Path, tokenizer: Any, eos_id: int | None, batch_size: int) -> dict[str, Any]:
    """The harness's figures by task and metric, of a model as it is, its memory on where it has one."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, (str, Path)):
        fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    else:
        fast = PreTrainedTokenizerFast(tokenizer_object=getattr(tokenizer, "backend_tokenizer", tokenizer))
    if eos_id is not None:
        fast.eos_token = fast.convert_ids_to_tokens(eos_id)
    was_training = model.training
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    adapter = HFLM(model.eval(), tokenizer=fast, batch_size=batch_size)
    found = simple_evaluate(model=adapter, tasks=sorted(manager.all_tasks), task_manager=manager, bootstrap_iters=0)
    model.train(was_training)
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        for task, metrics in found["results"].items()
    }
