"""One small example of every part and of every named variant, and how each kind of part is called.

A new part joins the contracts by one line in EXAMPLES; `test_registry.py` fails, naming the class, until it has one.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import ocl
from ocl.decoders import FeatureMLP, LatentDiffusion, PatchMLP, SpatialBroadcast
from ocl.decoders.diffusion import (
    AdaptedUNet,
    LatentTransformer,
    LatentUNet,
    LearnedRegisters,
    NoRegisters,
    NullPrompt,
    PooledSlots,
    SlotTokens,
)
from ocl.decoders.diffusion.decoder import Draws
from ocl.encoders import CNN, DINO, MAE, DINOv2, DINOv3, PretrainedEncoder, ResNet, ViT
from ocl.interfaces import Conditioner, Decoder, Denoiser, Encoder, Loss, RegisterBank, SlotInit, SlotModule
from ocl.losses import ContrastiveAlignment, MaskDistillation, MaskEntropy, MaskGuidance, Reconstruction
from ocl.slots import GaussianInit, LearnedGaussianInit, LearnedInit, SlotAttention
from ocl.types import Batch, Conditioning, Decoding, Features, Output, Slots, Step

IMAGE_SIZE, GRID, FEATURE_DIM, SLOT_DIM, NUM_SLOTS = 16, (4, 4), 12, 8, 3
CONTEXT_DIM, LATENT = 32, (4, IMAGE_SIZE // 2, IMAGE_SIZE // 2)  # of the tiny pipelines


@dataclass(frozen=True)
class Example:
    """kind: the interface. make: folder of a tiny ViT or pipeline by its kind -> the part. position: depends on token order."""

    kind: type
    name: str
    make: Callable
    position: bool = False
    random: bool = False
    slot_dim: int = SLOT_DIM
    folder: Callable | None = None

    def build(self, seed=0):
        torch.manual_seed(seed)
        return self.make(self.folder)

    def inputs(self, batch_size=2, *, device="cpu", dtype=torch.float32, **changes):
        """Keyword arguments of `run`, the same for every call; `changes` go to the maker of that kind."""
        generator = torch.Generator().manual_seed(1)

        def draw(*shape):
            return torch.rand(shape, generator=generator).to(device, dtype)

        if self.slot_dim != SLOT_DIM:
            changes["slot_dim"] = self.slot_dim
        return INPUTS[self.kind](batch_size, draw, **changes)

    def run(self, part, inputs):
        """name -> tensor of everything the part returns."""
        return RUN[self.kind](part, **inputs)


def _encoder_inputs(batch_size, draw, size=(IMAGE_SIZE, IMAGE_SIZE)):
    return {"image": draw(batch_size, 3, *size)}


def _init_inputs(batch_size, draw):
    return {"noise": draw(batch_size, NUM_SLOTS, SLOT_DIM)}


def _module_inputs(batch_size, draw, grid=GRID):
    tokens = draw(batch_size, grid[0] * grid[1], FEATURE_DIM)
    return {"tokens": tokens, "init": draw(batch_size, NUM_SLOTS, SLOT_DIM), "grid": grid}


def _decoder_inputs(batch_size, draw, slot_dim=SLOT_DIM):
    found = {
        "vectors": draw(batch_size, NUM_SLOTS, slot_dim),
        "image": draw(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        "tokens": draw(batch_size, GRID[0] * GRID[1], FEATURE_DIM),
        "instances": None,
    }
    if slot_dim == CONTEXT_DIM:
        found |= {"posterior": draw(batch_size, *LATENT), "noise": draw(batch_size, *LATENT)}
    return found


def _loss_inputs(batch_size, draw):
    return _decoder_inputs(batch_size, draw) | {"prediction": draw(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)}


def _conditioner_inputs(batch_size, draw, slot_dim=SLOT_DIM):
    return {"vectors": draw(batch_size, NUM_SLOTS, slot_dim)}


def _denoiser_inputs(batch_size, draw):
    return {"noisy": draw(batch_size, *LATENT), "slots": draw(batch_size, NUM_SLOTS, CONTEXT_DIM)}


def _slots(vectors):
    """Slots that look at different places, each as its vector says, so that permuting vectors permutes the maps."""
    wide = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    places = torch.randn(vectors.shape[-1], GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0)).to(wide)
    return Slots(vectors, (2 * wide @ places).softmax(dim=1), GRID)


def _run_encoder(part, image):
    return {"tokens": part(image).tokens}


def _run_init(part, noise):
    return {"slots": part(len(noise), noise=noise)}


def _run_module(part, tokens, init, grid):
    slots = part(Features(tokens, grid), init)
    return {"vectors": slots.vectors, "attn": slots.attn}


def _run_decoder(part, vectors, image, tokens, instances, **drawn):
    """drawn: the random numbers of a decoder that needs some."""
    more = {"draws": Draws(_levels(image), **drawn)} if drawn else {}
    decoding = part(_slots(vectors), Batch(image, instances), Features(tokens, GRID), **more)
    found = {"prediction": decoding.prediction, "target": decoding.target, "error": decoding.error(), "masks": decoding.masks}
    return {name: value for name, value in found.items() if value is not None}


def _levels(like):
    return torch.full([len(like)], 300, device=like.device)


def _run_loss(part, vectors, image, tokens, instances, prediction):
    masks = prediction.softmax(dim=1)  # as many channels as slots
    decoding = Decoding(prediction, image, masks, contrast=prediction / 2)
    slots = Slots(vectors, F.adaptive_avg_pool2d(masks, GRID).flatten(2), GRID)
    output = Output(Features(tokens, GRID), slots, decoding)
    return {"loss": part(Step(Batch(image, instances), output))}


def _run_bank(part):
    return {"registers": part()}


def _run_conditioner(part, vectors):
    found = part(_slots(vectors))
    values = {"slots": found.slots, "text": found.text}
    if found.registers is not None:  # belong to the batch; a sum per image is compared
        values["registers"] = found.registers.sum(dim=0).expand(len(vectors), -1)
    return {name: value for name, value in values.items() if value is not None}


def _run_denoiser(part, noisy, slots):
    text = slots.mean(dim=1, keepdim=True) if isinstance(part, AdaptedUNet) else None
    found = part(noisy, _levels(noisy), Conditioning(slots, text=text))
    return {name: value for name, value in {"prediction": found.prediction, "maps": found.maps}.items() if value is not None}


INPUTS = {
    Encoder: _encoder_inputs,
    SlotInit: _init_inputs,
    SlotModule: _module_inputs,
    Decoder: _decoder_inputs,
    Loss: _loss_inputs,
    RegisterBank: lambda batch_size, draw: {},
    Conditioner: _conditioner_inputs,
    Denoiser: _denoiser_inputs,
}
RUN = {
    Encoder: _run_encoder,
    SlotInit: _run_init,
    SlotModule: _run_module,
    Decoder: _run_decoder,
    Loss: _run_loss,
    RegisterBank: _run_bank,
    Conditioner: _run_conditioner,
    Denoiser: _run_denoiser,
}


def _attention(**options):
    return lambda vit: SlotAttention(FEATURE_DIM, SLOT_DIM, **options)


def _broadcast(**options):
    return lambda vit: SpatialBroadcast(SLOT_DIM, image_size=IMAGE_SIZE, width=4, **options)


def _diffusion(kind, registers=False):
    def make(folder):
        conditioner = SlotTokens(NullPrompt(str(folder(kind)))) if registers else SlotTokens()
        return LatentDiffusion(str(folder(kind)), conditioner=conditioner)

    return make


def _adapted(folder):
    """Awake: its adapters' outputs do not start at zero, so that everything inside takes part."""
    part = AdaptedUNet(str(folder("sd")), map_block=-1)
    for name, weight in part.named_parameters():
        if ".adapter.to_out." in name:
            torch.nn.init.normal_(weight, std=0.1)
    return part


def _adapted_diffusion(folder):
    return LatentDiffusion(str(folder("sd")), denoiser=_adapted(folder), conditioner=PooledSlots())


def _pretrained(vit):
    path = vit("dinov2").parent / "cnn.safetensors"
    if not path.exists():
        with torch.device("cpu"), torch.random.fork_rng():
            torch.manual_seed(0)
            save_file({f"encoder.{name}": value for name, value in CNN(8, stride=4).state_dict().items()}, path)
    return PretrainedEncoder(CNN(8, stride=4), path)


EXAMPLES = [
    Example(Encoder, "CNN", lambda vit: CNN(width=8)),
    Example(Encoder, "CNN-strided", lambda vit: CNN(width=8, stride=4, position=False)),
    Example(Encoder, "ResNet", lambda vit: ResNet(18, base_width=4, stride=4)),
    Example(Encoder, "ResNet-bottleneck", lambda vit: ResNet(50, stride=4, position=False)),
    Example(Encoder, "ViT", lambda vit: ViT(str(vit("dinov2")), trainable=True)),
    Example(Encoder, "ViT-registers", lambda vit: ViT(str(vit("dinov2_registers")), layer=1, trainable=True)),
    Example(Encoder, "ViT-clip", lambda vit: ViT(str(vit("clip")), image_size=24)),
    Example(Encoder, "ViT-siglip", lambda vit: ViT(str(vit("siglip")))),
    Example(Encoder, "DINOv2", lambda vit: DINOv2(weights=str(vit("dinov2")))),
    Example(Encoder, "DINOv3", lambda vit: DINOv3(weights=str(vit("dinov3")))),
    Example(Encoder, "DINO", lambda vit: DINO(weights=str(vit("dino")))),
    Example(Encoder, "MAE", lambda vit: MAE(weights=str(vit("mae")))),
    Example(Encoder, "PretrainedEncoder", _pretrained),
    Example(SlotInit, "GaussianInit", lambda vit: GaussianInit(NUM_SLOTS, SLOT_DIM), random=True),
    Example(SlotInit, "LearnedInit", lambda vit: LearnedInit(NUM_SLOTS, SLOT_DIM)),
    Example(SlotInit, "LearnedGaussianInit", lambda vit: LearnedGaussianInit(NUM_SLOTS, SLOT_DIM), random=True),
    Example(SlotModule, "SlotAttention", _attention()),
    Example(SlotModule, "SlotAttention-plain", _attention(form="plain")),
    Example(SlotModule, "SlotAttention-heads", _attention(num_heads=2, scale="head", mlp_dim=5)),
    Example(SlotModule, "SlotAttention-denominator", _attention(eps_on="denominator", gru_state="normalised")),
    Example(SlotModule, "SlotAttention-position", _attention(position=True, input_mlp=True, out_dim=5), position=True),
    Example(SlotModule, "SlotAttention-bilevel", _attention(gradient="bilevel")),
    Example(SlotModule, "SlotAttention-implicit", _attention(gradient="implicit", num_iterations=1)),
    Example(Decoder, "SpatialBroadcast", _broadcast(grid=4)),
    Example(Decoder, "SpatialBroadcast-patches", _broadcast(grid=2, patch=4)),
    Example(Decoder, "PatchMLP", lambda vit: PatchMLP(SLOT_DIM, image_size=IMAGE_SIZE, patch=4, hidden_dim=16)),
    Example(Decoder, "FeatureMLP", lambda vit: FeatureMLP(SLOT_DIM, FEATURE_DIM, grid=GRID, hidden_dim=16, depth=2)),
    Example(Decoder, "FeatureMLP-other-grid", lambda vit: FeatureMLP(SLOT_DIM, FEATURE_DIM, grid=(3, 2), hidden_dim=16)),
    Example(Decoder, "LatentDiffusion", _diffusion("sd", registers=True), slot_dim=CONTEXT_DIM),
    Example(Decoder, "LatentDiffusion-sana", _diffusion("sana"), slot_dim=CONTEXT_DIM),
    Example(Decoder, "LatentDiffusion-adapted", _adapted_diffusion, slot_dim=CONTEXT_DIM),
    Example(Loss, "Reconstruction", lambda vit: Reconstruction(weight=0.5)),
    Example(Loss, "MaskDistillation", lambda vit: MaskDistillation(weight=0.5)),
    Example(Loss, "MaskEntropy", lambda vit: MaskEntropy(weight=0.5)),
    Example(Loss, "ContrastiveAlignment", lambda vit: ContrastiveAlignment(weight=0.5, warmup_steps=0)),
    Example(Loss, "MaskGuidance", lambda vit: MaskGuidance(weight=0.5, start_step=0)),
    Example(RegisterBank, "NullPrompt", lambda folder: NullPrompt(str(folder("sd")))),
    Example(RegisterBank, "LearnedRegisters", lambda vit: LearnedRegisters(4, CONTEXT_DIM)),
    Example(RegisterBank, "NoRegisters", lambda vit: NoRegisters()),
    Example(Conditioner, "SlotTokens", lambda vit: SlotTokens(LearnedRegisters(4, SLOT_DIM))),
    Example(Conditioner, "PooledSlots", lambda vit: PooledSlots()),
    Example(Denoiser, "LatentUNet", lambda folder: LatentUNet(str(folder("sd_v")))),
    Example(Denoiser, "LatentUNet-xl", lambda folder: LatentUNet(str(folder("sdxl")), trained=("to_k",))),
    Example(Denoiser, "LatentTransformer", lambda folder: LatentTransformer(str(folder("pixart")))),
    Example(Denoiser, "LatentTransformer-sana", lambda folder: LatentTransformer(str(folder("sana")))),
    Example(Denoiser, "AdaptedUNet", _adapted),
]
PIPELINES = {"sd", "sd_v", "sdxl", "pixart", "sana"}


# fixture of a test -> the examples it runs with
CHOSEN = {
    "example": EXAMPLES,
    "per_image": [example for example in EXAMPLES if example.kind not in (Loss, RegisterBank)],  # a loss may compare images
    "plain": [example for example in EXAMPLES if "-" not in example.name],  # the first of each class
    "representative": [example for example in EXAMPLES if example.name in ("CNN", "SlotAttention", "SpatialBroadcast")],
    "encoder": [example for example in EXAMPLES if example.kind is Encoder],
    "slot_init": [example for example in EXAMPLES if example.kind is SlotInit],
    "random_init": [example for example in EXAMPLES if example.random],
    "slot_module": [example for example in EXAMPLES if example.kind is SlotModule],
    "decoder": [example for example in EXAMPLES if example.kind is Decoder],
    "loss": [example for example in EXAMPLES if example.kind is Loss],
}


def pytest_generate_tests(metafunc):
    for name in CHOSEN.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, CHOSEN[name], ids=[example.name for example in CHOSEN[name]], indirect=True)


def _bind(request, tiny_vit, tiny_pipeline):
    return replace(request.param, folder=lambda kind: tiny_pipeline(kind) if kind in PIPELINES else tiny_vit(kind))


for _name in CHOSEN:
    globals()[f"_{_name}"] = pytest.fixture(name=_name)(_bind)


@pytest.fixture(scope="session")
def example_names():
    """Names of the classes that have an example."""
    return {example.name.split("-")[0] for example in EXAMPLES}


@pytest.fixture(scope="session")
def ocl_classes():
    """Every class that is defined in the package, after importing all of it."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(ocl.__path__, "ocl.")]
    found = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    return sorted((value for value in found if value.__module__.startswith("ocl.")), key=lambda value: value.__qualname__)
