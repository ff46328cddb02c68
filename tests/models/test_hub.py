"""Models in the hub's layout: a round trip gives equal outputs, and nothing else than what was saved is accepted."""

import copy
import json
import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ocl.decoders import FeatureMLP, LatentDiffusion
from ocl.decoders.diffusion import AdaptedUNet, LearnedRegisters, PooledSlots, SlotTokens
from ocl.encoders import CNN, DINOv2
from ocl.errors import CheckpointError, ConfigError
from ocl.models import ModelCard, SlotAutoencoder, coda, dinosaur, slot_attention, slotadapt, stable_lsd
from ocl.nn.freezing import trainable_state_dict
from ocl.slots import GaussianInit, LearnedInit
from ocl.types import Batch

IMAGE = (2, 3, 32, 32)


def models(tiny_pipeline, tiny_vit):
    sd, small = str(tiny_pipeline("sd")), {"num_slots": 3, "slot_dim": 8}
    vit = DINOv2(weights=str(tiny_vit("dinov2")))
    adapted = LatentDiffusion(sd, denoiser=AdaptedUNet(sd, map_block=-1), conditioner=PooledSlots())
    return {
        "coda": coda(weights=sd, encoder=CNN(8, stride=4), **small),
        "coda-learned": coda(weights=sd, encoder=vit, registers=LearnedRegisters(5, 32), trained=("to_k",), **small),
        "stable_lsd": stable_lsd(weights=sd, encoder=CNN(8, stride=4), **small),
        "slotadapt": slotadapt(weights=sd, encoder=CNN(8, stride=4), decoder=adapted, **small),
        "slot_attention": slot_attention(image_size=32, encoder=CNN(8, stride=4), init=LearnedInit(3, 8), **small),
        "dinosaur": dinosaur(encoder=vit, decoder=FeatureMLP(8, vit.width, grid=(2, 2), hidden_dim=8), **small),
    }


NAMES = ["coda", "coda-learned", "stable_lsd", "slotadapt", "slot_attention", "dinosaur"]


@pytest.fixture(params=NAMES)
def model(request, tiny_pipeline, tiny_vit):
    """With weights that no constructor gives, registers included."""
    torch.manual_seed(0)
    made = models(tiny_pipeline, tiny_vit)[request.param]
    with torch.no_grad():
        for value in trainable_state_dict(made).values():
            value.add_(0.1 * torch.randn_like(value))
    return made.eval()


def outputs(model):
    torch.manual_seed(1)
    batch, draws = Batch(torch.rand(IMAGE)), [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = model(batch, noise=torch.randn(2, 3, 8), generator=draws)
    return found.slots.vectors, found.slots.attn, found.decoding.prediction


def test_a_model_comes_back_with_equal_outputs(model, tmp_path):
    again = SlotAutoencoder.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert not again.training
    for found, expected in zip(outputs(again), outputs(model), strict=True):
        assert torch.equal(found, expected)


def test_only_what_is_trained_and_registers_are_saved(model, tmp_path):
    state = load_file(model.save_pretrained(tmp_path) / "model.safetensors")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    buffers = {name for name, _ in model.named_buffers() if name.endswith("registers.table")}
    assert trained | buffers == state.keys()


def test_a_model_that_came_back_can_be_saved_again(model, tmp_path):
    first = model.save_pretrained(tmp_path / "first")
    second = SlotAutoencoder.from_pretrained(first).save_pretrained(tmp_path / "second")
    for name in ("config.json", "README.md"):
        ours, theirs = ((folder / name).read_text() for folder in (first, second))
        assert json.loads(ours)["model"].keys() == json.loads(theirs)["model"].keys() if name == "config.json" else ours == theirs


@pytest.fixture
def pixels():
    return slot_attention(num_slots=3, slot_dim=8, image_size=32, encoder=CNN(8, stride=4))


@pytest.fixture
def saved(pixels, tmp_path):
    return pixels.save_pretrained(tmp_path / "model")


def change_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def change_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("init.mean"), r"1 missing \(init.mean\)"),
        (lambda state: state.update(stranger=torch.zeros(1)), r"1 unknown \(stranger\)"),
        (lambda state: state.update({"init.mean": torch.zeros(3)}), r"1 of another shape \(init.mean\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    change_tensors(saved, change)
    with pytest.raises(CheckpointError, match=rf"model.safetensors does not fit config.json.*{message}"):
        SlotAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["model"]["init_args"]["init"]["init_args"].update(stranger=1), "stranger"),
        (lambda config: config["model"]["init_args"]["init"]["init_args"].update(num_slots="many"), "num_slots"),
        (lambda config: config["model"]["init_args"].update(init={"class_path": "ocl.slots.Nothing"}), "Nothing"),
        (lambda config: config["model"].update(class_path="ocl.slots.GaussianInit"), "config.json"),
    ],
)
def test_a_config_that_names_something_else_is_refused(saved, change, message):
    change_config(saved, change)
    with pytest.raises(ConfigError, match=message):
        SlotAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}'])
def test_a_file_that_is_no_config_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json"):
        SlotAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes()[:50])
    with pytest.raises(CheckpointError, match=name):
        SlotAutoencoder.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        SlotAutoencoder.from_pretrained(saved)


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package with a part of its own, which leaves a trace when it is imported."""
    folder = tmp_path / "packages"
    folder.mkdir()
    code = "from ocl.interfaces import SlotInit\nimport torch\n\nclass Zeros(SlotInit):\n"
    code += "    def __init__(self, num_slots: int, slot_dim: int) -> None:\n        super().__init__()\n"
    code += "        self.num_slots, self.slot_dim = num_slots, slot_dim\n\n"
    code += "    def forward(self, batch_size, *, generator=None, noise=None):\n"
    code += "        return torch.zeros(batch_size, self.num_slots, self.slot_dim)\n"
    (folder / "stranger_slots.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    yield "stranger_slots"
    sys.modules.pop("stranger_slots", None)


def test_a_folder_never_imports_a_package_that_the_user_did_not_name(saved, stranger):
    strange = {"class_path": "stranger_slots.Zeros", "init_args": {"num_slots": 3, "slot_dim": 8}}
    change_config(saved, lambda config: config["model"]["init_args"].update(init=strange))
    with pytest.raises(ConfigError, match=r"packages=\['stranger_slots'\]"):
        SlotAutoencoder.from_pretrained(saved)
    assert stranger not in sys.modules
    change_tensors(saved, lambda state: [state.pop(name) for name in ("init.mean", "init.log_std")])
    assert type(SlotAutoencoder.from_pretrained(saved, packages=["stranger_slots"]).init).__name__ == "Zeros"


def test_a_part_of_the_user_is_saved_by_its_path(stranger, tmp_path):
    import stranger_slots

    model = slot_attention(num_slots=3, slot_dim=8, image_size=32, encoder=CNN(8, stride=4), init=stranger_slots.Zeros(3, 8))
    folder = model.save_pretrained(tmp_path / "model")
    assert "stranger_slots.Zeros" in (folder / "config.json").read_text()
    assert SlotAutoencoder.from_pretrained(folder, packages=["stranger_slots"]).init.num_slots == 3


def test_a_part_that_no_config_can_name_is_refused_before_anything_is_written(pixels, tmp_path):
    class Local(GaussianInit.__mro__[1]):
        def __init__(self):
            super().__init__()

        def forward(self, batch_size, *, generator=None, noise=None):
            return torch.zeros(batch_size, 3, 8)

    pixels.init = Local()
    with pytest.raises(ConfigError, match=r"init: this .*Local cannot be made again from a config"):
        pixels.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_parts_that_were_exchanged_are_saved_as_they_are_now(pixels, tmp_path):
    pixels.init = LearnedInit(5, 8)
    again = SlotAutoencoder.from_pretrained(copy.deepcopy(pixels).save_pretrained(tmp_path))
    assert torch.equal(again.init.state_dict()["table"] if "table" in again.init.state_dict() else next(again.init.parameters()),
                       next(pixels.init.parameters()))  # fmt: skip


def test_a_pipeline_that_moved_is_read_from_its_new_place(tiny_pipeline, tmp_path):
    old = shutil.copytree(tiny_pipeline("sd"), tmp_path / "old")
    folder = coda(weights=str(old), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4)).save_pretrained(tmp_path / "model")
    new = old.rename(tmp_path / "new")
    with pytest.raises(CheckpointError, match="old is missing"):
        SlotAutoencoder.from_pretrained(folder)
    again = SlotAutoencoder.from_pretrained(folder, replace={str(old): str(new)})
    assert isinstance(again.decoder.conditioner, SlotTokens)


def test_a_model_comes_back_without_the_text_encoder_that_made_its_registers(tiny_pipeline, tmp_path):
    pipeline = shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")
    model = coda(weights=str(pipeline), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4)).eval()
    folder = model.save_pretrained(tmp_path / "model")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(pipeline / part)
    again = SlotAutoencoder.from_pretrained(folder)
    for found, expected in zip(outputs(again), outputs(model), strict=True):
        assert torch.equal(found, expected)
    change_tensors(folder, lambda state: state.pop("decoder.conditioner.registers.table"))
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder.conditioner.registers.table\)"):
        SlotAutoencoder.from_pretrained(folder)


# the hub


def test_a_repository_is_read_from_the_cache(pixels, tmp_path):
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "cache" / "models--owner--name"
    pixels.save_pretrained(repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    again = SlotAutoencoder.from_pretrained("owner/name", cache_dir=tmp_path / "cache", local_files_only=True)
    for found, expected in zip(outputs(again), outputs(pixels.eval()), strict=True):
        assert torch.equal(found, expected)


def test_a_repository_that_is_not_cached_and_a_folder_that_is_missing_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"owner/name cannot be read from the hub .*hf download owner/name"):
        SlotAutoencoder.from_pretrained("owner/name", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(CheckpointError, match="is no folder"):
        SlotAutoencoder.from_pretrained(tmp_path / "nowhere")


@pytest.fixture
def uploads(monkeypatch):
    """What would have been sent: the two calls of huggingface_hub that need the network are recorded instead."""
    hub = pytest.importorskip("huggingface_hub")
    sent = {}

    def create_repo(self, repo_id, *, private, exist_ok):
        sent.update(repo=repo_id, private=private, exist_ok=exist_ok, token=self.token)
        return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        from pathlib import Path

        sent["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://huggingface.co/{repo_id}/commit/0123abcd"

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("OCL_OFFLINE", raising=False)
    return sent


def test_a_push_sends_the_three_files(pixels, uploads, tmp_path):
    card = ModelCard(name="Pixels", license="apache-2.0")
    assert pixels.push_to_hub("owner/name", card=card, private=True, token="secret").endswith("owner/name/commit/0123abcd")
    assert (uploads["repo"], uploads["private"], uploads["exist_ok"], uploads["token"]) == ("owner/name", True, True, "secret")
    assert uploads["files"].keys() == {"config.json", "model.safetensors", "README.md"}
    for name, content in uploads["files"].items():
        (tmp_path / name).write_bytes(content)
    for found, expected in zip(outputs(SlotAutoencoder.from_pretrained(tmp_path)), outputs(pixels.eval()), strict=True):
        assert torch.equal(found, expected)


def test_nothing_is_pushed_offline(pixels, monkeypatch):
    monkeypatch.setenv("OCL_OFFLINE", "1")
    with pytest.raises(ConfigError, match="cannot be written while OCL_OFFLINE"):
        pixels.push_to_hub("owner/name")


# the card


def test_the_card_names_scores_with_their_protocol_data_and_an_open_license(pixels, tmp_path):
    scores = {"mBO_i[coda]": 0.5538, "slot masks FG-ARI[spot]": 0.3223}
    card = ModelCard(name="Small", scores=scores, scored_on="VOC 2012 val", trained_on="trainaug", notes={"Command": "ocl train"})
    text = (pixels.save_pretrained(tmp_path, card=card) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert "# license: to be filled in" in front
    values = yaml.safe_load(front)
    assert values["library_name"] == "ocl" and "SlotAttention" in values["tags"] and "license" not in values
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"] == {"type": "voc-2012-val", "name": "VOC 2012 val"}
    assert [(metric["type"], metric["name"]) for metric in result["metrics"]] == [
        ("mBO_i", "mBO_i[coda]"), ("FG-ARI", "slot masks FG-ARI[spot]"),
    ]  # fmt: skip
    assert "| slot masks FG-ARI[spot] | 0.3223 |" in body and "Trained on trainaug." in body and "- Command: ocl train" in body


def test_the_hub_reads_the_card(pixels, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    card = ModelCard(license="mit", scores={"mBO_i[coda]": 0.5}, scored_on="Scenes")
    pixels.save_pretrained(tmp_path, card=card)
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert data.license == "mit" and data.library_name == "ocl"
    assert data.eval_results[0].metric_value == 0.5 and data.eval_results[0].metric_name == "mBO_i[coda]"


def test_published_weights_become_the_base_model():
    from ocl.models.card import card_text
    from ocl.models.description import describe

    with torch.device("meta"):
        text = card_text(ModelCard(), describe(coda(num_slots=6)))
    base = yaml.safe_load(text.split("---\n")[1])["base_model"]
    assert base == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]


def test_an_imported_checkpoint_of_others_is_saved_in_the_hub_s_layout(tiny_pipeline, tiny_vit, tmp_path):
    from ocl.models.exporters import export_coda
    from ocl.models.importers import coda_model

    sd = str(tiny_pipeline("sd"))
    made = coda(weights=sd, num_slots=3, slot_dim=8, encoder=DINOv2(weights=str(tiny_vit("dinov2"))))
    export_coda(made, tmp_path / "official", weights=sd, grid=4)
    imported = coda_model(tmp_path / "official", encoder=made.encoder)
    again = SlotAutoencoder.from_pretrained(imported.save_pretrained(tmp_path / "hub"))
    for found, expected in zip(outputs(again), outputs(made.eval()), strict=True):
        torch.testing.assert_close(found, expected)
