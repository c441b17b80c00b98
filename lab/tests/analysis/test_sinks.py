"""The measurement of attention sinks, against states of transformers and a made-up sink."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import typer
from typer.testing import CliRunner

from ossicle.batch import HiddenStates
from ossicle.errors import DataError
from ossicle.models.llm import load_llm
from ossicle_lab.analysis import sinks
from ossicle_lab.analysis.sinks import measure_sinks

IDS = [[5, 9, 30, 7], [12, 4], [9, 8, 7, 6, 5, 40, 41]]


def mean_and_spread(pooled: torch.Tensor) -> tuple[float, float]:
    unit = F.normalize(pooled, dim=-1)
    pairs = [float(unit[i] @ unit[j]) for i in range(len(unit)) for j in range(len(unit)) if i != j]
    return float(torch.tensor(pairs).mean()), float(torch.tensor(pairs).std())


def test_each_column_by_hand(folders):
    llm = load_llm(str(folders["llama"]))
    rows = measure_sinks(llm, IDS)
    assert [row.layer for row in rows] == list(range(llm.num_layers + 1))
    bos = llm.tokenizer.bos_token_id
    for layer in (0, 2):
        states, after = [], []
        for ids in IDS:
            plain, started = (
                llm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0].detach()
                for tokens in (ids, [bos, *ids])
            )
            states.append(plain)
            after.append(started[1:])
        row = rows[layer]
        first = torch.stack([s[0].norm() for s in states]).mean()
        rest = torch.cat([s[1:].norm(dim=-1) for s in states])
        assert row.first == pytest.approx(float(first / rest.median()), rel=1e-4)
        for found, pooled in (
            (row.plain, [s.mean(0) for s in states]),
            (row.skip_first, [s[1:].mean(0) for s in states]),
            (row.bos, [s.mean(0) for s in after]),
        ):
            assert (found.mean, found.spread) == pytest.approx(mean_and_spread(torch.stack(pooled)), abs=1e-5)


def test_a_large_first_position_hides_the_text_and_standardising_then_compares_lengths():
    lengths = torch.arange(3, 23)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(20, 22, 16, generator=generator)
    states[:, 0] = 500.0
    llm = SimpleNamespace(
        num_layers=0,
        parameters=lambda: iter([torch.zeros(1)]),
        embed=lambda ids: states,
        tokenizer=SimpleNamespace(bos_token_id=None),
        hidden_states=lambda embeds, layers: HiddenStates({0: states}, embeds.mask),
    )
    (row,) = measure_sinks(llm, [[1] * int(length) for length in lengths])
    assert row.bos is None and row.first > 100
    assert row.plain.mean > 0.99 and row.plain.spread < 0.01
    assert abs(row.skip_first.mean) < 0.1 and row.skip_first.spread > 0.1
    assert row.length > 0.95 and row.standardised.spread > 2 * row.both.spread


def test_the_command_prints_a_row_for_each_layer(folders, manifest):
    app = typer.Typer()
    app.command()(sinks.main)
    result = CliRunner().invoke(app, [str(folders["llama"]), str(manifest), "--count", "4"], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["layer", "---", "0", "1", "2", "3"]
    assert len({line.count("|") for line in lines}) == 1
    with pytest.raises(DataError, match="at least two"):
        measure_sinks(load_llm(str(folders["llama"])), [[1, 2]])
