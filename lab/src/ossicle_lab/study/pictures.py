"""What the report draws of each pretraining's alignment: made once a study has run, and kept beside its projector."""

from __future__ import annotations

from pathlib import Path

from ossicle.data.manifest import read_manifest
from ossicle_lab.study import measure
from ossicle_lab.study.job import write_json
from ossicle_lab.study.plan import Plan

TOKENS = "tokens.json"


def picture_tokens(plan: Plan) -> dict[str, str]:
    """Row -> the file, in the study's folder, with the token alignment of its first seed on one test utterance.

    The first of the alignment manifests, the same for all rows; what is there already stays.
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
