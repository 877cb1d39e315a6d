"""What is loaded is what is there: weights, tokenizer, the place that was named."""

import itertools
import json

import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jsae_core import load_language_model
from jsae_core.hub import HubError, find_hub_pair
from jsae_core.model_files import find_model
from jsae_core.text import tokenise
from tests.jsae_core.architectures import CONTEXT, TOKENS, save_random
from tests.jsae_core.builders import save_language_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture
def directory(tmp_path):
    return save_language_model(tmp_path / "model")


def rename_weights(directory, rename):
    file = directory / "model.safetensors"
    save_file(rename(load_file(file)), file, metadata={"format": "pt"})


# --- weights ---


def test_weights_under_other_names_are_refused_naming_some(directory):
    rename_weights(directory, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"GPTNeoXForCausalLM.*missing, such as .*unknown to it, such as module\."):
        load_language_model(directory)


def test_one_missing_weight_is_refused_by_name(directory):
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"
    rename_weights(directory, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(ValueError, match=f"1 missing, such as {name}"):
        load_language_model(directory)


def test_one_weight_too_many_is_refused_by_name(directory):
    rename_weights(directory, lambda tensors: tensors | {"adapter.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="1 unknown to it, such as adapter.weight"):
        load_language_model(directory)


def test_a_weight_of_another_shape_is_refused_by_name(directory):
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"
    rename_weights(directory, lambda tensors: tensors | {name: torch.ones(3)})
    with pytest.raises(ValueError, match=f"1 of another shape, such as {name}"):
        load_language_model(directory)


def test_what_git_leaves_in_the_place_of_weights_is_told_from_weights(directory):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
    (directory / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match="model.safetensors holds no weights .*run `git lfs pull`"):
        load_language_model(directory)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "t5"}, r"its architecture \(t5\) is not a causal language model; expected a decoder"),
        ({"model_type": "theirs"}, "model_type in its config.json is 'theirs', which transformers .* does not know"),
        ({"model_type": None}, "model_type in its config.json is None"),
        ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantised"),
    ],
)
def test_what_is_no_causal_language_model_with_plain_weights_is_refused_in_one_sentence(directory, changes, said):
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"could not be loaded: .*{said}") as caught:
        load_language_model(directory)
    assert len(str(caught.value)) < 500


def test_an_untied_unembedding_that_is_missing_is_refused_and_a_tied_one_is_not(tmp_path):
    tied = save_language_model(tmp_path / "tied", "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_language_model(tied)
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="missing, such as lm_head.weight"):
        load_language_model(tied)


def test_buffers_that_old_checkpoints_hold_are_no_weights(directory):
    old = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4), "gpt_neox.rotary_emb.inv_freq": torch.ones(2)}
    rename_weights(directory, lambda tensors: tensors | old)
    load_language_model(directory)


def test_a_pickle_is_not_read_and_the_refusal_says_how_to_convert_it(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model.safetensors.*pickle.*use_safetensors=False.*save_pretrained"):
        load_language_model(directory)


def test_code_that_a_model_brings_is_not_run(directory, tmp_path):
    ran = tmp_path / "ran"
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ValueError, match=f"{directory} .*could not be loaded"):
        load_language_model(directory)
    assert not ran.exists()


def test_logits_that_are_not_finite_are_refused(directory):
    rename_weights(directory, lambda tensors: tensors | {"embed_out.weight": tensors["embed_out.weight"] * torch.nan})
    with pytest.raises(ValueError, match="logits that are NaN or infinite"):
        load_language_model(directory)


# --- tokenizer ---


def without_tokenizer(directory):
    for file in directory.glob("*token*"):
        file.unlink()
    return directory


def plain_tokenizer(directory, **settings):
    """A tokenizer of 95 characters without special tokens."""
    tokenizer = Tokenizer(models.WordLevel({chr(c): c - 32 for c in range(32, 127)}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(without_tokenizer(directory))


def test_a_model_without_a_tokenizer_is_refused(directory):
    with pytest.raises(ValueError, match="has no tokenizer; expected tokenizer.json"):
        load_language_model(without_tokenizer(directory))


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_a_tokenizer_without_bos_and_eos_is_refused_and_none_is_invented(directory, kind):
    plain_tokenizer(directory)
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": kind}))
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        load_language_model(directory)


def test_a_tokenizer_with_an_eos_only_opens_documents_with_it(directory):
    plain_tokenizer(directory, eos_token="~")
    tokenizer = load_language_model(directory).tokenizer
    assert tokenizer.bos_token_id is None and len(tokenizer) == 95
    assert [ids.tolist() for ids in tokenise(["hi"], tokenizer, 8)] == [[94, 72, 73]]


def test_a_tokenizer_whose_bos_the_model_does_not_know_is_refused(tmp_path):
    plain_tokenizer(save_language_model(tmp_path, vocab_size=90), bos_token="~")
    with pytest.raises(ValueError, match="opens documents with token 94, but the model has a vocabulary of 90"):
        load_language_model(tmp_path)


# --- places ---


@pytest.fixture
def cached(directory, tmp_path, monkeypatch):
    """A cache of the hub that holds `org/tiny`, of 3 layers at `main` and of 1 at the tag `small`."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    directory.rename(repository / "snapshots" / COMMIT)
    save_language_model(repository / "snapshots" / COMMIT[::-1], num_hidden_layers=1)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "small").write_text(COMMIT[::-1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


def test_a_hub_model_is_loaded_at_its_revision_and_the_commit_is_recorded(cached):
    main, small = load_language_model("org/tiny"), load_language_model("org/tiny", revision="small")
    assert (main.name, main.n_layers, main.revision) == ("org/tiny", 3, COMMIT)
    assert (small.name, small.n_layers, small.revision) == ("org/tiny", 1, COMMIT[::-1])


def test_a_folder_of_the_same_name_does_not_stand_in_the_way_of_a_hub_model(cached, tmp_path):
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert load_language_model("org/tiny").revision == COMMIT
    save_language_model(tmp_path / "org" / "tiny", num_hidden_layers=2)
    assert load_language_model("org/tiny").n_layers == 2  # text that names a model's folder
    assert load_language_model("org/tiny", revision="main").n_layers == 3


def test_a_revision_that_the_hub_model_does_not_have_is_refused_by_name(cached):
    with pytest.raises(ValueError, match=r"org/tiny \(model on the Hugging Face hub, revision large\)"):
        load_language_model("org/tiny", revision="large")


def test_a_revision_of_a_directory_is_refused(directory):
    with pytest.raises(ValueError, match="a directory has none"):
        load_language_model(directory, revision="main")
    assert load_language_model(directory).revision is None


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_what_is_fetched_from_the_hub_is_said_with_its_size_before_it_begins_and_not_again(directory, empty_cache, hub):
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    commit = hub.commit("org/tiny", files | {"pytorch_model.bin": b"x" * 10**6})
    said = []

    def say(sentence):
        said.append((sentence, hub.downloads()))

    assert load_language_model("org/tiny", say=say).revision == commit
    size = sum(map(len, files.values()))
    assert said == [(f"Fetching the model org/tiny@{commit} from {hub.url}: {size / 1000:.1f} kB", [])]
    load_language_model("org/tiny", say=say)
    assert len(said) == 1 and len(hub.downloads()) == len(files)


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (lambda hub: setattr(hub, "private_to", "a token"), "no such repository, or it is private. Check its name"),
        (lambda hub: setattr(hub, "status", 503), "the hub answers HTTP 503. Run it again later"),
        (lambda hub: hub.stop(), "the hub did not answer, or not to the end. Check the network"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_named_with_why_and_what_to_do(empty_cache, hub, happens, why):
    hub.commit("org/tiny", {"config.json": b"{}"})
    happens(hub)
    with pytest.raises(ValueError) as refused:
        load_language_model("org/tiny", revision="main")
    message = str(refused.value)
    assert f"{hub.url} did not give org/tiny (model on the Hugging Face hub, revision main): " in message
    assert why in message and message.count("name its directory instead") == 1


# --- shapes ---


def test_more_tokens_than_the_context_are_refused_with_both_numbers(tmp_path):
    for architecture in ("gpt2", "llama"):
        language_model = load_language_model(save_language_model(tmp_path / architecture, architecture))
        ids, *_ = tokenise(["x" * 99], language_model.tokenizer, 64)
        for ask in (language_model.mlp_activations, language_model.clean_pass):
            with pytest.raises(ValueError, match=f"64 tokens in a row.*context of {CONTEXT}"):
                ask(ids[None], 1)


def test_the_dense_layer_of_a_mixture_of_experts_works_and_the_others_are_refused_in_one_sentence(tmp_path):
    config = T.Qwen3MoeConfig(
        **TOKENS,
        **SIZES,
        num_key_value_heads=1,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=2,
        num_experts_per_tok=1,
        mlp_only_layers=[0],
        max_position_embeddings=CONTEXT,
    )
    language_model = load_language_model(save_random(config, tmp_path))
    mlp_input, mlp_output = language_model.mlp_activations(torch.arange(1, 9), 0)
    torch.testing.assert_close(language_model.mlp(0)(mlp_input), mlp_output, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(Qwen3MoeForCausalLM\), layer 1 is a mixture of experts; only plain and"):
        language_model.mlp(1)


def test_a_block_without_an_mlp_is_refused_in_one_sentence(tmp_path):
    config = T.MambaConfig(**TOKENS, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"\(MambaForCausalLM\), layer 0 has no MLP of one or two linear maps"):
        load_language_model(save_random(config, tmp_path)).mlp(0)


def test_a_model_that_does_not_run_is_refused_with_its_name_and_what_hugging_face_says(tmp_path):
    """Hugging Face's CodeGen takes heads in groups of four."""
    config = T.CodeGenConfig(**TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, rotary_dim=4)
    with pytest.raises(ValueError, match=r"\(CodeGenForCausalLM\): does not run on a few tokens.*shape.*config.json"):
        load_language_model(save_random(config, tmp_path))


def test_a_model_whose_logits_are_made_of_more_than_its_last_block_gives_is_refused_with_its_name(tmp_path):
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("ffn_dim", "attention_heads")}
    sides |= {f"num_{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = T.ProphetNetConfig(
        **TOKENS | {"pad_token_id": 1}, **sides, hidden_size=16, max_position_embeddings=CONTEXT
    )
    with pytest.raises(ValueError, match=r"\(ProphetNetForCausalLM\): .*parts replaced .* cannot be measured here"):
        load_language_model(save_random(config, tmp_path))


# --- a model is compared with itself ---


class Doubling(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(model):
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Doubling


def forgetful(model):
    """The last block adds what the first was given, if the first was run."""
    block, given = type(model.model.layers[0]), []

    class First(block):
        def forward(self, x, **settings):
            given.append(x)
            return super().forward(x, **settings)

    class Last(block):
        def forward(self, x, **settings):
            return super().forward(x, **settings) + (given.pop() if given else 0)

    model.register_forward_pre_hook(lambda module, args: given.clear())
    model.model.layers[0].__class__, model.model.layers[2].__class__ = First, Last


def wavering(model):
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + torch.rand_like(output))


def wavering_after_loading(model):
    passes = itertools.count()

    def hook(module, args, output):
        return output + torch.rand_like(output) if next(passes) > 1 else output

    model.model.layers[0].register_forward_hook(hook)


def logits_of_tokens(model):
    def add(module, args, output):
        output.logits = output.logits + args[0][..., None]

    model.register_forward_hook(add)


@pytest.mark.parametrize(
    "odd, sentence",
    [
        (logits_of_tokens, "final norm and unembedding.* differs .*own model gives, by"),
        (wavering, "what it says at a token changes .* from one run to the next"),
        (wavering_after_loading, "layer 1: the input of its MLP that is read here differs"),
        (doubled, r"layer 1: the MLP \(activation silu\) that is made of its weights differs .*by 0.5 of its norm"),
        (forgetful, "layer 1: what leaves its last block if another output of the MLP is put in differs"),
    ],
)
def test_a_model_that_computes_something_else_is_refused_with_what_differs_where_and_by_how_much(
    tmp_path, monkeypatch, odd, sentence
):
    """The oddities are put into a Llama between its loading and its first use."""
    import jsae_core.language_model as home

    real = home.read_model

    def read(files, dtype):
        model = real(files, dtype)
        odd(model)
        return model

    monkeypatch.setattr(home, "read_model", read)
    directory = save_language_model(tmp_path, "llama")
    with pytest.raises(ValueError, match=rf"\(LlamaForCausalLM\).*{sentence}"):
        load_language_model(directory).clean_pass(torch.arange(8)[None], 1)


def test_after_a_hub_that_did_not_answer_a_model_is_taken_from_the_cache_without_asking_again(cached, hub, monkeypatch):
    hub.silent = True
    monkeypatch.setattr("jsae_core.hub.LONGEST_WAIT", 0.2)
    with pytest.raises(HubError):
        find_hub_pair("org/pairs")
    assert len(hub.requests) == 1
    assert find_model("org/tiny").directory.is_dir()
    with pytest.raises(ValueError, match=r"did not give org/other .* did not answer .* ago, and is not asked again"):
        find_model("org/other")
    assert len(hub.requests) == 1
