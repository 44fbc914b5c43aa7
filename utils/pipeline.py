"""CogNVS on diffusers: find and load the weights, encode a render, sample, decode."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch._inductor.runtime import cache_dir_utils

from utils import cogvideox, video
from utils.cli import InputError, short
from utils.files import read_json, refused

WEIGHTS = "diffusion_pytorch_model.safetensors"
SIZES = {  # in a transformer's config.json, and the largest that is taken
    "sample_frames": 10**5, "sample_height": 10**5, "sample_width": 10**5, "patch_size": 100,
    "temporal_compression_ratio": 100, "max_text_seq_length": 10**5, "num_layers": 1000,
    "num_attention_heads": 1000, "attention_head_dim": 1000,
}
VAE_SIZES = {  # the same of a VAE
    "latent_channels": 1000, "sample_height": 10**5, "sample_width": 10**5, "layers_per_block": 100,
}
TOKENS = 10**6  # of a clip at most; CogVideoX-5b-I2V has 17,776
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable: where torch.compile keeps programs
ADAPTER = "adapter.json"  # in a LoRA folder: which weights it belongs to


# ---- the pipeline --------------------------------------------------------------------------------


def check_finite(velocity):
    """InputError unless what the transformer's first pass gave is finite."""
    if not velocity.isfinite().all():
        raise InputError("the transformer's output is not finite in its first step: its weights "
                         "are broken, or of a training that diverged; give others")


class CogNVSPipeline(CogVideoXImageToVideoPipeline):
    """Image-to-video conditioned on a whole clip, the render of every frame."""

    @torch.no_grad()
    def inpaint(self, clip, prompt_embeds, steps, generator, fast=False):
        """Inpaint a render: [F, 3, H, W] in [0, 1] to the same shape and range, float32.

        prompt_embeds: the embedding of "", [1, length, width]. All noise, and the sample of the
        condition, come from `generator`. fast: run the transformer in some steps only.

        Prompt and negative prompt are both "", so guided and unguided prediction are equal at any
        guidance scale and one pass a step is enough (the published code makes two).
        Raises InputError if what comes out is not finite.
        """
        device, dtype = self._execution_device, prompt_embeds.dtype
        condition = self.encode((2 * clip.to(device) - 1).to(dtype)[None], generator)
        sample = randn_tensor(condition.shape, generator=generator, device=device, dtype=dtype)
        sample = sample * self.scheduler.init_noise_sigma
        rotary = self.rotary_embedding(device)
        self.scheduler.set_timesteps(steps)
        timesteps = self.scheduler.timesteps.to(device)

        passes = cogvideox.fast_passes(steps) if fast else range(steps)
        sampler = cogvideox.Sampler(self.scheduler, sample, generator)
        for i, now in enumerate(self.scheduler.timesteps.tolist()):
            if i not in passes:
                sampler.predicted(now)
                continue
            if len(sampler.passes) == 1:  # the first one is done: noise was drawn meanwhile
                check_finite(sampler.passes[0][1])
            with self.transformer.cache_context("inpaint"):
                both = torch.cat([sampler.sample, condition], 2)  # [1, f, 32, h, w]
                velocity = self.transformer(both, prompt_embeds, timesteps[i : i + 1],
                                            image_rotary_emb=rotary).sample
            sampler.computed(now, velocity)
        if len(sampler.passes) == 1:
            check_finite(sampler.passes[0][1])

        frames = self.decode_latents(sampler.sample)  # [1, 3, F, H, W] in [-1, 1]
        self.maybe_free_model_hooks()
        if not frames.isfinite().all():
            raise InputError("the output is not finite after the last step, so it is not written: "
                             "the weights may be broken, or overflow; --dtype fp32 may help")
        return self.video_processor.postprocess_video(frames, output_type="pt")[0].float()

    def encode(self, clip, generator=None):
        """A posterior sample of a clip [B, F, 3, H, W] in [-1, 1], scaled: [B, f, 16, H/8, W/8].

        Scaled by the VAE's factor whatever its invert_scale_latents says, as CogNVS was trained.
        """
        return self.sample(self.posterior(clip), generator)

    def posterior(self, clip):
        """The VAE's distribution of the latents of a clip [B, F, 3, H, W] in [-1, 1]."""
        return self.vae.encode(clip.transpose(1, 2)).latent_dist  # [B, 3, F, H, W]

    def sample(self, posterior, generator):
        """A sample of a VAE's posterior, scaled: [B, f, 16, h, w]."""
        return posterior.sample(generator).transpose(1, 2) * self.vae_scaling_factor_image

    @property
    def clip_shape(self):
        """(frames, height, width) in pixels that the transformer is made for."""
        return cogvideox.clip_shape(self.transformer.config, self.vae.config)

    def rotary_embedding(self, device):
        """The rotary embedding of a clip, by diffusers' own method; None for models without one."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = self.clip_shape
        latent_frames = (frames - 1) // self.vae_scale_factor_temporal + 1
        return self._prepare_rotary_positional_embeddings(height, width, latent_frames, device)

    def work(self, steps, fast=False):
        """How often `watch` is told of progress while one clip is inpainted."""
        passes = len(cogvideox.fast_passes(steps)) if fast else steps
        return sum(cogvideox.vae_calls(self.vae, self.clip_shape)) + passes

    @contextlib.contextmanager
    def watch(self, tell):
        """A context in which tell("encoding", "denoising" or "decoding") is called at each pass."""
        stages = {"encoding": self.vae.encoder, "denoising": self.transformer,
                  "decoding": self.vae.decoder}
        with contextlib.ExitStack() as hooks:
            for name, module in stages.items():
                hook = module.register_forward_hook(lambda *_, name=name: tell(name))
                hooks.callback(hook.remove)
            yield


# ---- finding and checking weights ----------------------------------------------------------------


def find_weights(path):
    """The weights meant by `path`: itself, or its my_checkpoint-N_* folder of the highest N."""
    path = Path(path)
    files = any(path.glob("diffusion_pytorch_model*.safetensors"))
    if (files and (path / "config.json").is_file()) or (path / ADAPTER).is_file():
        return path
    steps = {}
    for folder in sorted(path.glob("my_checkpoint-*")):
        match = re.search(r"-(\d+)_(transformer|lora)$", folder.name)
        if match:
            steps[int(match[1])] = folder
    if steps:
        return steps[max(steps)]
    unprocessed = any(path.glob("checkpoint-*"))
    hint = "run process_ckpts.sh first" if unprocessed else "see the README's downloads"
    raise InputError(f"{path}: got no weights; expected config.json with "
                     f"diffusion_pytorch_model*.safetensors, a LoRA folder with {ADAPTER}, or "
                     f"my_checkpoint-* folders of them; {hint}")


def check_base(path):
    """InputError unless `path` is a CogVideoX image-to-video folder in diffusers' layout."""
    needed = ("vae/config.json", "scheduler/scheduler_config.json")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        raise InputError(f"{path}: got no {' and no '.join(missing)}; expected a CogVideoX-5b-I2V "
                         "folder in diffusers layout (the README says where to download it)")


def check_class(cls, path):
    """InputError unless a folder's config.json is of a diffusers class."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("_class_name") != cls.__name__:
        got = short(config.get("_class_name"), 80)
        raise InputError(f"{path}: got a model of class {got}; expected "
                         f"{cls.__name__}")


def check_weights(cls, path):
    """InputError unless a folder holds a model of a diffusers class, in files that are whole.

    Reads headers alone; whether they hold every tensor is seen when they are loaded.
    """
    check_class(cls, path)
    index = path / f"{WEIGHTS}.index.json"
    names = files_of_index(index) if index.is_file() else {WEIGHTS}
    for file in sorted(path / name for name in names):
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected it, or {index.name} and its files; "
                             "download it again")
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{file}: could not be read ({short(error)}); download it "
                             "again") from error


def files_of_index(path):
    """The names of the weight files in an index; InputError unless all belong beside it."""
    weight_map = read_json(path).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", name, re.A):
            raise InputError(f"{path}: got {short(name, 80)!r} in its weight_map; expected names "
                             "of .safetensors files beside it; download it again")
    return set(names)


def read_sizes(path, most):
    """The sizes {name: size} in a model's config.json. most: {name: the largest that is taken}."""
    config = read_json(path)
    for name, limit in most.items():
        size = config.get(name)
        if type(size) is not int or not 0 < size <= limit:
            raise InputError(f"{path}: got {name} {short(size, 80)}; expected a whole number from "
                             f"1 to {limit}; download it again")
    return {name: config[name] for name in most}


def transformer_config(model_path, folder):
    """The configuration, a dict, of the transformer that load_transformer loads from `folder`.

    InputError if it does not go with the base, or is of an architecture that is not computed here.
    """
    check_base(model_path)
    weights = adapter_weights(folder) if (folder / ADAPTER).is_file() else folder
    config = read_json(weights / "config.json")
    cogvideox.check_transformer(config, folder)
    read_sizes(weights / "config.json", SIZES)
    tokens = sum(cogvideox.count_tokens(config))
    if tokens > TOKENS:
        raise InputError(f"{folder}: got a transformer for {tokens:,} tokens; expected at most "
                         f"{TOKENS:,}; download it again")
    channels = read_sizes(model_path / "vae" / "config.json", VAE_SIZES)["latent_channels"]
    expected = {"in_channels": 2 * channels, "out_channels": channels}  # in: noise and conditioning
    encoder = model_path / "text_encoder" / "config.json"
    if encoder.is_file():
        expected["text_embed_dim"] = read_sizes(encoder, {"d_model": 10**5})["d_model"]
    for name, value in expected.items():
        got = config.get(name)
        if got != value:
            raise InputError(f"{folder}: got {name} {short(got, 80)}; expected {value}, as of an "
                             f"image-to-video transformer that goes with {model_path}")
    return config


def fingerprint(folder):
    """Hash of a model folder: its configuration, and name, size and first MiB of its weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            head = stream.read(2**20)
        digest.update(f"{file.name} {file.stat().st_size} ".encode() + head)
    return digest.hexdigest()


# ---- loading -------------------------------------------------------------------------------------


def load_pipeline(model_path, weights, dtype, device="cpu"):
    """The pipeline of the base's VAE and scheduler and the transformer of `weights`.

    No text encoder is loaded. InputError for whatever is missing, broken or of another model.
    """
    model_path = Path(model_path)
    transformer_config(model_path, Path(weights))  # checks that they go together
    with refused(model_path / "scheduler", "scheduler"):
        scheduler = CogVideoXDPMScheduler.from_pretrained(model_path / "scheduler",
                                                          timestep_spacing="trailing")
    if scheduler.config.prediction_type != "v_prediction":
        raise InputError(f"{model_path}: got a scheduler for {scheduler.config.prediction_type}; "
                         "expected CogVideoX's, for v_prediction")
    vae = load_model(AutoencoderKLCogVideoX, model_path / "vae", dtype)
    transformer = load_transformer(Path(weights), dtype)
    return assemble(vae, transformer, scheduler).to(device)


def assemble(vae, transformer, scheduler):
    """The pipeline of models that are there, made faster in place."""
    cogvideox.fit_tiles(cogvideox.speed_up(vae))
    transformer.set_attn_processor(cogvideox.Attention())
    return CogNVSPipeline(None, None, vae, transformer, scheduler)


def load_model(cls, path, dtype):
    """A diffusers model of a local folder; tensors that are missing are an error, not noise."""
    check_weights(cls, path)
    try:
        model, report = cls.from_pretrained(path, torch_dtype=dtype, local_files_only=True,
                                            output_loading_info=True)
    except Exception as error:  # what a broken configuration raises is anything
        raise InputError(f"{path}: could not be loaded: {short(error)}; download it "
                         "again") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"{path}: {len(missing)} tensors of its config.json are missing (such as "
                         f"{missing[0]}); download it again")
    model.register_to_config(_name_or_path="")  # saved weights do not tell from where it came
    return model.requires_grad_(False).eval()


def load_transformer(folder, dtype):
    """The transformer of a weights folder, or of a LoRA folder, merged with what it belongs to."""
    if not (folder / ADAPTER).is_file():
        return load_model(CogVideoXTransformer3DModel, folder, dtype)
    transformer = load_model(CogVideoXTransformer3DModel, adapter_weights(folder), dtype)
    load_adapter(transformer, folder)
    transformer.fuse_lora()
    transformer.unload_lora()
    return transformer


def load_vae(model_path, dtype):
    """The base's VAE, made faster."""
    check_base(Path(model_path))
    vae = load_model(AutoencoderKLCogVideoX, Path(model_path) / "vae", dtype)
    return cogvideox.fit_tiles(cogvideox.speed_up(vae))


@torch.no_grad()
def reconstruct(vae, rgb):
    """What a VAE keeps of a clip uint8 [F, H, W, 3]: (latents, float32 array of rgb's shape in
    [0, 1])."""
    x = video.to_signed(rgb).transpose(0, 1)[None]  # [1, 3, F, H, W]
    latents = vae.encode(x.to(vae.dtype)).latent_dist.mode()
    y = vae.decode(latents).sample[0].float().clamp(-1, 1) / 2 + 0.5  # [3, F, H, W]
    return latents, y.permute(1, 2, 3, 0).cpu().numpy()


def pick_dtype(name, device):
    """torch dtype of "auto", "bf16" or "fp32".

    auto is bf16 on GPUs and on CPUs with bf16 instructions, else fp32.
    """
    if name == "auto":
        flags = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(there and flag.endswith("bf16") for flag, there in flags.items())
        name = "bf16" if fast or device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


# ---- writing weights -----------------------------------------------------------------------------


def save_whole(save, folder):
    """save(another folder), which takes this one's place when it is whole. OSError if it cannot."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        save(part)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"{folder}: could not be written: {error}") from error
    for file in part.iterdir():  # safetensors lets their owner alone read them
        file.chmod(part.stat().st_mode & 0o666)
    put_in_place(part, folder)


def put_in_place(part, folder):
    """Give a folder that is whole its name. One of that name goes, once the new one is there."""
    bring_back(folder)
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def bring_back(folder):
    """Undo a put_in_place that was killed between its two steps."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.replace(folder)


def save_adapter(transformer, folder, weights):
    """A transformer's LoRA, with its rank and alpha, and which `weights` it belongs to."""
    transformer.save_lora_adapter(folder)
    weights = Path(weights).resolve()
    belongs = {"weights": str(weights), "fingerprint": fingerprint(weights)}
    (Path(folder) / ADAPTER).write_text(json.dumps(belongs, indent=2) + "\n")


def load_adapter(transformer, folder):
    """Add the LoRA of a folder, at the scale it was trained with."""
    try:
        transformer.load_lora_adapter(
            str(folder), prefix=None, adapter_name="default", use_safetensors=True,
            weight_name="pytorch_lora_weights.safetensors", local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: the LoRA could not be loaded: {said}") from error


def adapter_weights(folder):
    """The weights that a LoRA folder belongs to."""
    belongs = read_json(folder / ADAPTER, object)
    names = ("weights", "fingerprint")
    if not isinstance(belongs, dict) or not all(isinstance(belongs.get(n), str) for n in names):
        raise InputError(f"{folder / ADAPTER}: got {short(belongs)}; expected JSON with weights "
                         "and fingerprint, both text")
    weights = Path(belongs["weights"])
    if not os.path.isdir(weights):  # Path.is_dir() raises an error for a name that is too long
        raise InputError(f"{folder}: belongs to the weights {short(weights)}, which are not there; "
                         f"if they moved, correct {ADAPTER}")
    if fingerprint(weights) != belongs["fingerprint"]:
        raise InputError(f"{folder}: {weights} is not what it was trained on; give the folder "
                         f"that it was in {ADAPTER}")
    return weights


# ---- the embedding of "" -------------------------------------------------------------------------


def empty_prompt(model_path, length, dtype):
    """The T5 embedding of "", [1, length, width], and the file that caches it: (tensor, path).

    It is a constant of the text encoder: computed once on the CPU and kept beside the base (or in
    the user's cache folder where that is read-only), after which the text encoder is not loaded and
    may even be deleted. Of several processes one computes it while the others wait. The path is
    None where it could be kept nowhere.
    """
    model_path = Path(model_path).resolve()
    encoder = model_path / "text_encoder"
    key = fingerprint(encoder) if encoder.is_dir() else None
    places = prompt_places(model_path, length, dtype)
    user = getattr(os, "getuid", str)()
    with FileLock(Path(tempfile.gettempdir()) / f"cognvs_{user}_{hash_of_path(model_path)}.lock"):
        found = find_prompt(places, key)
        if found:
            return found
        if key is None:
            raise InputError(f"{encoder}: no such folder, and no {places[0].name} beside it; "
                             "expected the base's text encoder")
        embedding = encode_empty_prompt(model_path, length, dtype)
        return embedding, store_prompt(embedding, places, key)


def prompt_name(length, dtype):
    """The name of the file that caches the embedding."""
    return f"empty_prompt_{length}_{str(dtype).removeprefix('torch.')}.safetensors"


def prompt_places(model_path, length, dtype):
    """The files that may cache the embedding, of a resolved path: beside the base, the user's."""
    name = prompt_name(length, dtype)
    places = [model_path / name]
    if cache := user_cache():
        places.append(cache / hash_of_path(model_path) / name)
    return places


def hash_of_path(path):
    """A path as the name of a file."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


def find_prompt(places, key):
    """(embedding, path) of the first of the files that is there, whole and of this text encoder.

    The embedding is finite, and what the file's name says. key: the text encoder's fingerprint,
    None if it is gone. None if there is no such file.
    """
    for place in places:
        if not place.is_file():
            continue
        with open(place, "rb"):  # one that may not be read: safetensors says it is not there
            pass
        try:
            with safe_open(place, "pt") as file:
                key_there = (file.metadata() or {}).get("text_encoder")
                found = file.get_tensor("prompt_embeds")
        except SafetensorError:  # broken: made anew
            continue
        fits = found.ndim == 3 and place.name == prompt_name(found.shape[1], found.dtype)
        if key in (None, key_there) and fits and len(found) == 1 and found.isfinite().all():
            return found, place
    return None


def store_prompt(embedding, places, key):
    """Keep the embedding in the first of the files that can be written; its path, or None."""
    for place in places:
        part = place.with_name(f"{place.name}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # not save_file, which writes for the owner's eyes alone
            part.write_bytes(save({"prompt_embeds": embedding}, {"text_encoder": key}))
            part.replace(place)
            return place
        except OSError:  # read-only
            continue
    return None


def user_cache():
    """The user's cache folder for this program; None for a user without a home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):
        return Path(chosen or Path.home() / ".cache") / "cognvs"


def keep_compiled():
    """Have torch.compile keep its programs in the user's cache folder, for later processes.

    Its own choice is the folder for temporary files, which a restart of the machine empties. A
    folder that the user chose stays.
    """
    usual = cache_dir_utils.default_cache_dir()
    cache = user_cache()
    if cache is None or os.environ.get(COMPILED, usual) != usual:
        return
    folder = cache / "compiled"
    with contextlib.suppress(OSError):  # read-only
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[COMPILED] = str(folder)


@torch.no_grad()
def encode_empty_prompt(model_path, length, dtype):
    """The embedding of "" by the base's tokenizer and text encoder, with the pipeline's method."""
    from transformers import T5EncoderModel, T5Tokenizer, logging

    logging.set_verbosity_error()  # tensors that are missing are told below, in one line

    folder = model_path / "tokenizer"
    if not (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: got neither spiece.model nor tokenizer.json; expected the "
                         "base's tokenizer")
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
        text_encoder, report = T5EncoderModel.from_pretrained(
            model_path / "text_encoder", dtype=dtype, local_files_only=True,
            output_loading_info=True)
    except Exception as error:  # what a broken download raises is anything
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{model_path}: tokenizer or text_encoder could not be loaded "
                         f"({said}); download them again") from error
    tied = "embed_tokens.weight"  # to the shared embedding
    missing = [name for name in report["missing_keys"] if not name.endswith(tied)]
    if missing:
        raise InputError(f"{model_path / 'text_encoder'}: {len(missing)} tensors missing (such as "
                         f"{missing[0]}); download it again")
    pipe = CogVideoXImageToVideoPipeline(tokenizer, text_encoder, None, None, None)
    embeds = pipe.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=length)
    return embeds[0].contiguous()
