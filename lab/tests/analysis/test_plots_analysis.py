import numpy as np
import pytest
import torch

from ossicle_lab.analysis.components import principal_components
from ossicle_lab.analysis.plots_analysis import (
    TOKENS_SHOWN,
    TokenAlignment,
    _printable,
    plot_alignment,
    plot_components,
    plot_geometry,
    plot_probes,
)

pytest.importorskip("matplotlib")
PNG = b"\x89PNG"


def layer(number, cka):
    pairs = {"matched": 0.9, "mismatched": 0.1, "wasserstein_matched": -0.2, "wasserstein_mismatched": None}
    return {"layer": number, "modality_gap": 1.0, "cka": cka, **pairs}


def test_what_is_missing_leaves_a_hole(tmp_path):
    stages = {"untrained": [layer(0, None), layer(1, 0.1)], "trained": [layer(0, 0.5), layer(1, None)]}
    assert plot_geometry(stages, tmp_path / "geometry.png").read_bytes().startswith(PNG)


def test_components_of_one_stage(tmp_path):
    found = {3: principal_components(torch.eye(6))}
    assert plot_components({"only": found}, tmp_path / "pca.png").read_bytes().startswith(PNG)


def test_more_probes_than_fit_a_line(tmp_path):
    result = {"accuracy": 60.0, "sd": 2.0}
    row = {"layer": 0, "before": result, "after": result, "transcript": result}
    probes = [
        {"field": name, "classes": {"a": 1, "b": 1}, "majority": 50.0, "encoder": result, "layers": [row]}
        for name in ("gender", "age", "speaker", "emotion", "speaking rate")
    ]
    assert plot_probes(probes, ("one", "two"), tmp_path / "probes.png").read_bytes().startswith(PNG)


def test_a_long_transcript_is_cut(tmp_path):
    count = TOKENS_SHOWN + 20
    plans = {"trained": {0: np.eye(count, 2 * count)}}
    shown = TokenAlignment("title", ["token"] * count, 0.08, plans, words=[("token", 0.1, 0.2)])
    svg = plot_alignment(shown, tmp_path / "tokens.svg").read_text()
    assert svg.count(">token</text>") == TOKENS_SHOWN


def test_tokens_are_written_so_that_they_can_be_read():
    assert [_printable(token) for token in (" the", "\n", "", "$x$")] == ["the", "␣", "␣", r"\$x\$"]
