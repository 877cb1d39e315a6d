"""Artifacts for the tests of sources: pairs on a tiny language model, and on one whose weights were randomised; files
that change while they are read; and publishing a pair."""

import dagster as dg
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from jsae_assets.partitions import cell_key
from jsae_core import SAEPair, load_language_model
from jsae_core.pair_format import LANGUAGE_MODEL_FILE, WEIGHTS_FILE, PairConfig
from tests.jsae_assets.conftest import failures
from tests.jsae_core.builders import mlp_tensors, random_sae_tensors, write_artifact


def artifact_files(folder, lm, seed: int = 0, **config) -> dict[str, bytes]:
    tensors = random_sae_tensors(lm.d_model, 40, torch.float32, seed) | mlp_tensors(lm.mlp(1))
    settings = {"model_name": "tiny", "layer": 1, "d_in": lm.d_model, "d_sae": 40, "k": 5, "jacobian_coefficient": 0.5}
    written = PairConfig(**settings, **config).to_artifact()
    del written["mlp_activation"]
    write_artifact(folder, tensors, written)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused_if_it_changes_while_it_is_read(tiny, monkeypatch) -> None:
    """Another program overwrites the weights of the JSAE at layer 1 in place, by as many other bytes, once they were
    read: the pair is refused, and one that is stored stays."""
    stored = tiny.file("jsae/sae_pair")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"the pair of last week")
    load = SAEPair.load

    def loading(directory, *arguments):
        pair = load(directory, *arguments)
        path = directory / WEIGHTS_FILE
        other = bytes(byte ^ 1 for byte in path.read_bytes())
        with path.open("r+b") as file:
            file.write(other)
        return pair

    with monkeypatch.context() as patch:
        patch.setattr(SAEPair, "load", loading)
        (message,) = failures(tiny.measure(1, "jsae/sae_pair")).values()
    assert "another program changed the files of the pair while they were read" in message
    assert stored.read_bytes() == b"the pair of last week"


def randomised_artifact_files(folder, language_model) -> dict[str, bytes]:
    """An artifact whose language model was randomised, and which brings its weights along."""
    model = AutoModelForCausalLM.from_pretrained(language_model)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    weights = folder.with_suffix(".safetensors")
    save_file(transformer_lens_weights(model), weights)
    lm = load_language_model(language_model, randomised_weights=weights)
    return artifact_files(folder, lm, randomize_llm_weights=True) | {LANGUAGE_MODEL_FILE: weights.read_bytes()}


def transformer_lens_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A Hugging Face GPT-NeoX's weights in TransformerLens's names, written out slowly."""
    config = model.config
    heads, d_head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    state = {
        "embed.W_E": model.gpt_neox.embed_in.weight,
        "unembed.W_U": model.embed_out.weight.T if hasattr(model, "embed_out") else model.lm_head.weight.T,
        "unembed.b_U": torch.zeros(config.vocab_size),
        "ln_final.w": model.gpt_neox.final_layer_norm.weight,
        "ln_final.b": model.gpt_neox.final_layer_norm.bias,
    }
    for number, layer in enumerate(model.gpt_neox.layers):
        block = f"blocks.{number}."
        fused = layer.attention.query_key_value
        for place, part in enumerate("QKV"):
            rows = [range(h * 3 * d_head + place * d_head, h * 3 * d_head + (place + 1) * d_head) for h in range(heads)]
            state[f"{block}attn.W_{part}"] = torch.stack([fused.weight[list(r)].T for r in rows])
            state[f"{block}attn.b_{part}"] = torch.stack([fused.bias[list(r)] for r in rows])
        dense = layer.attention.dense
        state[f"{block}attn.W_O"] = torch.stack(
            [dense.weight[:, h * d_head : (h + 1) * d_head].T for h in range(heads)]
        )
        state[f"{block}attn.b_O"] = dense.bias
        for ours, theirs in (("in", layer.mlp.dense_h_to_4h), ("out", layer.mlp.dense_4h_to_h)):
            state[f"{block}mlp.W_{ours}"], state[f"{block}mlp.b_{ours}"] = theirs.weight.T, theirs.bias
        for ours, theirs in (("ln1", layer.input_layernorm), ("ln2", layer.post_attention_layernorm)):
            state[f"{block}{ours}.w"], state[f"{block}{ours}.b"] = theirs.weight, theirs.bias
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def publish(graph, **config) -> dg.ExecuteInProcessResult:
    return graph.definitions.resolve_job_def("publish_pair").execute_in_process(
        instance=graph.instance,
        partition_key=cell_key("tiny", 1),
        run_config={"ops": {"publish": {"config": {"project": "lab/pairs", "offline": True} | config}}},
        raise_on_error=False,
    )
