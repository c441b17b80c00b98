import pytest
import torch

from ossicle.inspect.alignment import alignment_report, retrieval, similarity_matrix

AXES = torch.eye(4)


def test_similarity_is_cosine_of_any_scale():
    queries = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]], dtype=torch.float64)
    similarity = similarity_matrix(queries, keys)
    assert similarity.shape == (2, 3)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, torch.tensor([[0.6, 0.8, -1.0], [0.0, 0.0, 0.0]]))


def test_half_precision_is_compared_in_float32():
    assert similarity_matrix(AXES.bfloat16(), AXES.bfloat16()).dtype == torch.float32


def test_retrieval_by_hand():
    # query 0 finds itself first; 1 is nearer to key 0; 2 is nearer to keys 0 and 1
    queries = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.5, 0.4]])
    keys = torch.eye(3)
    assert retrieval(queries, keys, ks=(1, 2, 3)) == pytest.approx({1: 100 / 3, 2: 200 / 3, 3: 100})
    # from the keys' side: key 2 finds query 2; key 1 finds query 1; key 0 query 0
    assert retrieval(keys, queries) == {1: 100, 5: 100}


def test_equal_transcripts_are_hits():
    queries, keys = AXES, AXES[[1, 0, 2, 3]]  # 0 and 1 exchanged
    assert retrieval(queries, keys, ks=(1,)) == {1: 50}
    assert retrieval(queries, keys, ks=(1,), texts=["same", "same", "b", "c"]) == {1: 100}


def test_collapsed_vectors_score_nothing():
    same = torch.ones(4, 3)
    assert retrieval(same, same, ks=(1, 3, 4)) == {1: 0, 3: 0, 4: 100}


def test_retrieval_checks_the_transcripts():
    with pytest.raises(ValueError, match="4 vectors but 2 transcripts"):
        retrieval(AXES, AXES, texts=["a", "b"])


def test_report_has_a_row_per_shared_layer():
    text = {2: AXES, 0: AXES, 7: AXES}
    speech = {0: AXES, 2: AXES[[1, 0, 2, 3]]}
    first, second = alignment_report(text, speech, ["a", "b", "c", "d"])
    assert (first.layer, second.layer) == (0, 2)
    assert (first.matched, first.mismatched, first.speech_to_text_r1, first.text_to_speech_r1) == (1, 0, 100, 100)
    assert (first.speech_to_text_r10, first.text_to_speech_r10) == (100, 100)
    assert (first.modality_gap, second.modality_gap) == pytest.approx((0, 0))  # the same vectors in another order
    assert first.cka is None  # each axis is as far from any other: there are no neighbours to compare
    assert second.matched == 0.5
    assert second.mismatched == pytest.approx(2 / 12)
    assert (second.speech_to_text_r1, second.speech_to_text_r5) == (50, 100)


def test_report_holds_cka():
    x, y = (torch.tensor(signs)[:, None] for signs in ([1.0, -1, 1, -1], [1.0, 1, -1, -1]))
    [row] = alignment_report({0: x}, {0: y}, ["a", "b", "c", "d"])
    assert row.cka == pytest.approx(-0.5)  # by hand in test_geometry


def test_report_tells_the_directions_apart():
    # both texts are nearest to speech 0, each speech is nearest to its own text
    speech = torch.tensor([[1.0, 0.0], [-1.0, 0.2]])
    text = torch.tensor([[1.0, 0.0], [0.2, 1.0]])
    [row] = alignment_report({1: text}, {1: speech}, ["a", "b"])
    assert row.speech_to_text_r1 == 100
    assert row.text_to_speech_r1 == 50


def test_report_leaves_equal_transcripts_out_of_the_mismatched():
    [row] = alignment_report({0: AXES[:3]}, {0: AXES[[0, 0, 2]]}, ["same", "same", "other"])
    assert row.mismatched == 0
    assert row.cka is None  # three utterances are too few
    with pytest.raises(ValueError, match="two different transcripts"):
        alignment_report({0: AXES}, {0: AXES}, ["same"] * 4)
