"""Token corpora: reading what training code writes, and writing one from a folder of text."""

from memgraft.corpus.documents import is_text
from memgraft.corpus.overlapping import Overlap, overlap, refuse_overlap
from memgraft.corpus.reader import Corpus
from memgraft.corpus.sample import CorpusSample, Shard, corpora_of, join_samples, joint_name, sample_of, write_sample
from memgraft.corpus.split import write_split
from memgraft.corpus.text import tokenize_folder
from memgraft.corpus.writer import CorpusWriter

__all__ = [
    "Corpus",
    "CorpusSample",
    "CorpusWriter",
    "Overlap",
    "Shard",
    "corpora_of",
    "is_text",
    "join_samples",
    "joint_name",
    "overlap",
    "refuse_overlap",
    "sample_of",
    "tokenize_folder",
    "write_sample",
    "write_split",
]
