"""Each architecture, drawn with random sizes and flags, against Hugging Face's own forward with hooks of the test's."""

import pytest
import torch
import transformers as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jsae_core import load_language_model
from jsae_core.model_files import layer_count
from tests.jsae_core.architectures import ARCHITECTURES, CONTEXT, N_VOCABULARY, Architecture, saved

PRECISION = {torch.float32: 1e-5, torch.bfloat16: 0.03}  # of the norm

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
drawn = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
tokens = torch.randint(1, 90, (3, 12), generator=torch.Generator().manual_seed(3))


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    assert (ours - theirs).norm() <= PRECISION[theirs.dtype] * theirs.norm()


class HuggingFace:
    """Hugging Face's own model, with hooks at the linear maps of one layer's MLP."""

    def __init__(self, directory, architecture: Architecture, dtype: torch.dtype):
        self.model = T.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self.architecture = architecture

    @torch.no_grad()
    def run(self, layer: int, mlp_output=None):
        """The MLP's input and output [row, position, d_model], and the logits; with another output if one is given."""
        caught = {}

        def read(module, args):
            caught["input"] = args[0].clone().view(*tokens.shape, -1)

        def write(module, args, output):
            caught["output"] = output.clone().view(*tokens.shape, -1)
            return None if mlp_output is None else mlp_output.clone().view_as(output)

        into, down = (
            self.model.get_submodule(path.format(layer)) for path in (self.architecture.into, self.architecture.down)
        )
        handles = [into.register_forward_pre_hook(read), down.register_forward_hook(write)]
        logits = self.model(tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return caught["input"], caught["output"], logits


def logits_of(language_model, blocks_output):
    return language_model.logits(blocks_output.flatten(0, 1)).view(*tokens.shape, -1)


@each_architecture
@given(data=st.data())
@drawn
def test_whatever_its_sizes_and_flags_a_model_says_here_what_it_says_in_hugging_face(architecture, data):
    config = architecture.config(data.draw)
    dtype = data.draw(st.sampled_from(list(PRECISION)))
    with saved(config) as directory:
        language_model = load_language_model(directory, dtype=dtype)
        assert layer_count(directory) == language_model.n_layers
        hugging_face = HuggingFace(directory, architecture, dtype)
    text_config = config.get_text_config(decoder=True)
    assert language_model.n_layers == getattr(text_config, "decoder_layers", text_config.num_hidden_layers)
    assert (language_model.d_model, language_model.n_vocabulary) == (text_config.hidden_size, N_VOCABULARY)
    for layer in range(language_model.n_layers):
        expected_input, expected_output, expected_logits = hugging_face.run(layer)
        mlp_input, mlp_output = language_model.mlp_activations(tokens, layer)
        assert_same(mlp_input, expected_input)
        assert_same(mlp_output, expected_output)
        assert_same(language_model.mlp(layer)(mlp_input), expected_output)
        clean = language_model.clean_pass(tokens, layer)
        assert_same(clean.mlp_input, expected_input)
        assert_same(clean.mlp_output, expected_output)
        assert_same(logits_of(language_model, clean.blocks_output), expected_logits)
        other = 2 - expected_output.flip(-1)
        assert_same(logits_of(language_model, clean.resumed(other)), hugging_face.run(layer, other)[2])


@pytest.mark.parametrize("name", ["GPT-NeoX", "GPT-2", "OPT", "BLOOM", "MPT", "Gemma 3 with images"])
@given(data=st.data())
@settings(max_examples=1, deadline=None)
def test_the_context_is_the_one_that_the_config_names(name, data):
    with saved(ARCHITECTURES[name].config(data.draw)) as directory:
        assert load_language_model(directory).context_size == CONTEXT
