import pytest

from ossicle.errors import ConfigError
from ossicle.models.frozen import resolve_layers


@pytest.mark.parametrize(
    ("layers", "indices"),
    [("embeddings", [0]), ("all", [0, 1, 2, 3]), (0, [0]), (3, [3]), ([2, 0], [2, 0])],
)
def test_layers_are_resolved_to_hidden_states(layers, indices):
    assert resolve_layers(layers, 3) == indices


@pytest.mark.parametrize("layers", [4, -1, [0, 7], [-1], []])
def test_a_layer_that_the_model_lacks_is_an_error(layers):
    with pytest.raises(ConfigError, match=r"objective\.layers=.* has hidden states 0\.\.3"):
        resolve_layers(layers, 3)


def test_a_repeated_layer_is_an_error():
    with pytest.raises(ConfigError, match=r"model\.encoder_layer=\[1, 1\] lists a layer twice"):
        resolve_layers([1, 1], 3, field="model.encoder_layer")
