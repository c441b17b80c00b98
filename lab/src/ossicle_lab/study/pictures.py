"""Compute the token alignments that the report draws, once for each pretraining."""

from __future__ import annotations

from pathlib import Path

from ossicle.data.manifest import read_manifest
from ossicle.files import write_json
from ossicle_lab.study import measure
from ossicle_lab.study.plan import Plan

TOKENS = "tokens.json"


def picture_tokens(plan: Plan) -> dict[str, str]:
    """Return for each row the file, relative to the study's folder, with the token alignment of one test utterance.

    The utterance is the first of the alignment manifests, read with the row's first seed. Existing files are kept.
    """
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU

    found: dict[str, str] = {}
    for name in plan.config.pretraining:
        job = plan.first_start(name)
        if job is None or not job.alignment or not job.is_done():
            continue
        path: Path = job.folder / TOKENS
        if not path.is_file():
            model = SpeechLLM.from_pretrained(job.run_folder, device=CPU)
            write_json(path, measure.token_plans(model, read_manifest(job.alignment[0])[0]))
        found[name] = str(path.relative_to(plan.folder))
    return found
