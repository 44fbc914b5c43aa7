"""CogNVS on diffusers: the image-to-video pipeline conditioned on a whole clip, finding and loading its weights."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils import cogvideox, video
from utils.cli import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "adapter.json"  # in a LoRA folder: which weights it belongs to


class CogNVSPipeline(CogVideoXImageToVideoPipeline):
    """Image-to-video conditioned on a whole clip: `image` is the render of every frame, [F, 3, H, W] in [0, 1]."""

    def prepare_latents(self, image, batch_size, num_channels_latents, num_frames, height, width, dtype=None,
                        device=None, generator=None, latents=None):  # fmt: skip
        """Noise and conditioning, each [1, f, 16, H / 8, W / 8]; `image` comes preprocessed to [-1, 1]."""
        condition = self.encode(image[None].to(dtype), generator)  # before the noise, as published
        if latents is None:
            latents = randn_tensor(condition.shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma, condition

    def encode(self, clip, generator=None):
        """A posterior sample of a clip [B, F, 3, H, W] in [-1, 1], scaled, [B, f, 16, H / 8, W / 8].

        Scaled by the VAE's factor whatever its invert_scale_latents says, as CogNVS was trained.
        """
        return self.sample(self.posterior(clip), generator)

    def posterior(self, clip):
        """The VAE's distribution of the latents of a clip [B, F, 3, H, W] in [-1, 1]."""
        return self.vae.encode(clip.transpose(1, 2)).latent_dist  # [B, 3, F, H, W]

    def sample(self, posterior, generator):
        """A sample of a VAE's posterior, scaled, [B, f, C, h, w]."""
        return posterior.sample(generator).transpose(1, 2) * self.vae_scaling_factor_image  # [B, f, 16, h, w]

    @property
    def clip_shape(self):
        """(frames, height, width) in pixels that the transformer's positional embeddings are made for."""
        config, scale = self.transformer.config, self.vae_scale_factor_spatial
        return config.sample_frames, config.sample_height * scale, config.sample_width * scale

    def rotary_embedding(self, device):
        """The rotary embedding of a clip, as diffusers' __call__ makes it; None for models without one."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        frames, height, width = self.clip_shape
        latent_frames = (frames - 1) // self.vae_scale_factor_temporal + 1
        return self._prepare_rotary_positional_embeddings(height, width, latent_frames, device)

    def inpaint(self, clip, prompt_embeds, steps, generator, **kwargs):
        """Inpaint a render [F, 3, H, W] in [0, 1] to frames of the same shape and range, float32.

        Prompt and negative prompt are both "", so guided and unguided prediction are equal at any guidance scale and
        one pass a step is enough (the published code makes two).
        """
        frames, height, width = self.clip_shape
        out = self(clip, prompt_embeds=prompt_embeds, guidance_scale=1, num_frames=frames, height=height, width=width,
                   num_inference_steps=steps, generator=generator, output_type="pt", **kwargs)
        return out.frames[0].float()


def find_weights(path):
    """The weights meant by `path`: itself, or its my_checkpoint-N_transformer or _lora of the highest N."""
    path = Path(path)
    whole = (path / "config.json").is_file() and any(path.glob("diffusion_pytorch_model*.safetensors"))
    if whole or (path / ADAPTER).is_file():
        return path
    named = ((re.search(r"-(\d+)_(transformer|lora)$", p.name), p) for p in sorted(path.glob("my_checkpoint-*")))
    steps = {int(match[1]): p for match, p in named if match}
    if steps:
        return steps[max(steps)]
    hint = "run process_ckpts.sh first" if any(path.glob("checkpoint-*")) else "see the README's downloads"
    raise InputError(f"{path}: got no weights; expected config.json with diffusion_pytorch_model*.safetensors, a LoRA "
                     f"folder with {ADAPTER}, or my_checkpoint-* folders of them; {hint}")


def check_base(path):
    """Raise InputError unless `path` is a CogVideoX image-to-video folder in diffusers' layout."""
    missing = [name for name in ("vae/config.json", "scheduler/scheduler_config.json") if not (path / name).is_file()]
    if missing:
        raise InputError(f"{path}: got no {' and no '.join(missing)}; expected a CogVideoX-5b-I2V folder in diffusers "
                         "layout (the README says where to download it)")


def load_model(cls, path, dtype):
    """A diffusers model of a local folder; weights that are missing or of other shapes are an error, not noise."""
    check_model(cls, path)
    try:
        model = cls.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: could not be loaded: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()


def check_model(cls, path):
    """Raise InputError unless a folder's safetensors hold every tensor that its config.json promises of a `cls`."""
    config = path / "config.json"
    name = json.loads(config.read_text()).get("_class_name") if config.is_file() else None
    if name != cls.__name__:
        raise InputError(f"{path}: got a model of class {name}; expected {cls.__name__}")
    with torch.device("meta"):
        promised = cls.from_config(cls.load_config(path)).state_dict()
    index, shapes = path / f"{WEIGHTS}.index.json", {}
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {WEIGHTS}
    for file in sorted(path / name for name in names):
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected it, or {index.name} and its files; download it again")
        try:
            with safe_open(file, "pt") as tensors:
                shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
        except SafetensorError as error:
            raise InputError(f"{file}: could not be read ({error}); download it again") from error
    wrong = [name for name, tensor in promised.items() if list(tensor.shape) != shapes.get(name)]
    if wrong:
        raise InputError(f"{path}: {len(wrong)} of {len(promised)} tensors are missing or of another shape than its "
                         f"config.json says (such as {wrong[0]}); download it again")


def save_whole(save, folder):
    """save(another folder), which takes this one's place when it is whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    save(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def save_adapter(transformer, folder, weights):
    """A transformer's LoRA, with its rank and alpha, and which `weights` it belongs to."""
    transformer.save_lora_adapter(folder)
    belongs = {"weights": str(Path(weights).resolve()), "fingerprint": fingerprint(Path(weights))}
    (Path(folder) / ADAPTER).write_text(json.dumps(belongs, indent=2) + "\n")


def load_adapter(transformer, folder):
    """Add the LoRA of a folder, at the scale it was trained with."""
    try:
        transformer.load_lora_adapter(str(folder), prefix=None, adapter_name="default", use_safetensors=True,
                                      weight_name="pytorch_lora_weights.safetensors", local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: the LoRA could not be loaded: {' '.join(str(error).split())[:200]}") from error


def adapter_weights(folder):
    """The weights that a LoRA folder belongs to."""
    try:
        belongs = json.loads((folder / ADAPTER).read_text())
        weights = Path(belongs["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / ADAPTER}: got {error}; expected JSON with weights and fingerprint") from error
    if not weights.is_dir():
        raise InputError(f"{folder}: belongs to the weights {weights}, which are not there; if they moved, correct "
                         f"{ADAPTER}")
    if fingerprint(weights) != belongs.get("fingerprint"):
        raise InputError(f"{folder}: {weights} is not what it was trained on; give the folder that it was in {ADAPTER}")
    return weights


def transformer_config(model_path, folder):
    """The configuration of the transformer that load_transformer loads, a dict; InputError if the base is another's."""
    check_base(model_path)
    weights = adapter_weights(folder) if (folder / ADAPTER).is_file() else folder
    config = json.loads((weights / "config.json").read_text())
    channels = json.loads((model_path / "vae" / "config.json").read_text())["latent_channels"]
    expected = {"in_channels": 2 * channels, "out_channels": channels}  # in: noise and conditioning
    encoder = model_path / "text_encoder" / "config.json"
    if encoder.is_file():
        expected["text_embed_dim"] = json.loads(encoder.read_text())["d_model"]
    for name, value in expected.items():
        if config.get(name) != value:
            raise InputError(f"{folder}: got {name} {config.get(name)}; expected {value}, as of an image-to-video "
                             f"transformer that goes with {model_path}")
    return config


def load_transformer(folder, dtype):
    """The transformer of a weights folder; of a LoRA folder, the weights it belongs to with the LoRA merged."""
    if not (folder / ADAPTER).is_file():
        return load_model(CogVideoXTransformer3DModel, folder, dtype)
    transformer = load_model(CogVideoXTransformer3DModel, adapter_weights(folder), dtype)
    load_adapter(transformer, folder)
    transformer.fuse_lora()
    transformer.unload_lora()
    return transformer


def load_vae(model_path, dtype):
    """The base's VAE."""
    check_base(Path(model_path))
    return cogvideox.fit_tiles(cogvideox.speed_up(load_model(AutoencoderKLCogVideoX, Path(model_path) / "vae", dtype)))


@torch.no_grad()
def reconstruct(vae, rgb):
    """What a VAE keeps of a clip uint8 [F, H, W, 3]: its latents, and the decoded frames, a float32 array in [0, 1]."""
    latents = vae.encode(video.to_signed(rgb).transpose(0, 1)[None].to(vae.dtype)).latent_dist.mode()
    y = vae.decode(latents).sample[0]  # [3, F, H, W]
    return latents, (y.float().clamp(-1, 1).permute(1, 2, 3, 0) / 2 + 0.5).cpu().numpy()


def load_pipeline(model_path, weights, dtype, device="cpu"):
    """The pipeline of the base's VAE and scheduler and the transformer of `weights`; no text encoder is loaded."""
    vae = load_vae(model_path, dtype)
    scheduler = cogvideox.Scheduler.from_pretrained(Path(model_path) / "scheduler", timestep_spacing="trailing")
    if scheduler.config.prediction_type != "v_prediction":
        raise InputError(f"{model_path}: got a scheduler for {scheduler.config.prediction_type}; expected CogVideoX's, "
                         "for v_prediction")
    transformer_config(Path(model_path), Path(weights))  # checks that they go together
    transformer = load_transformer(Path(weights), dtype)
    transformer.set_attn_processor(cogvideox.Attention())
    return CogNVSPipeline(None, None, vae, transformer, scheduler).to(device)


def pick_dtype(name, device):
    """torch dtype of auto, bf16 or fp32; auto is bf16 on GPUs and on CPUs with bf16 instructions, else fp32."""
    if name == "auto":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = any(there for flag, there in flags.items() if flag.endswith("bf16"))
        name = "bf16" if device.type == "cuda" or fast else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def fingerprint(folder):
    """Hash of a model folder: its configuration, and name, size and first MiB of its weight files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + stream.read(2**20))
    return digest.hexdigest()


def user_cache():
    """The user's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache") / "cognvs"


def empty_prompt(model_path, length, dtype):
    """The T5 embedding of "", [1, length, width], and where it is cached, (tensor, path).

    It is a constant of the text encoder: computed once on the CPU, kept beside the base (or in the user's cache folder
    when that is read-only), after which the text encoder is not loaded and may even be deleted.
    """
    model_path = Path(model_path)
    encoder = model_path / "text_encoder"
    key = fingerprint(encoder) if encoder.is_dir() else None
    name = f"empty_prompt_{length}_{str(dtype).removeprefix('torch.')}.safetensors"
    by_base = hashlib.sha256(f"{model_path.resolve()}".encode()).hexdigest()[:16]
    places = [model_path / name, user_cache() / by_base / name]
    for place in filter(Path.is_file, places):
        try:
            with safe_open(place, "pt") as file:
                if key in (None, file.metadata()["text_encoder"]):
                    return file.get_tensor("prompt_embeds"), place
        except SafetensorError:  # broken: made anew
            continue
    if key is None:
        raise InputError(f"{encoder}: no such folder, and no {name} beside it; expected the base's text encoder")
    embedding = encode_empty_prompt(model_path, length, dtype)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f"{place.name}.{os.getpid()}.part")
            save_file({"prompt_embeds": embedding}, part, {"text_encoder": key})
            part.replace(place)
            return embedding, place
        except (OSError, SafetensorError):  # read-only: safetensors raises its own error
            continue
    return embedding, None


@torch.no_grad()
def encode_empty_prompt(model_path, length, dtype):
    """The embedding of "" by the base's tokenizer and text encoder, with the pipeline's own method."""
    from transformers import T5EncoderModel, T5Tokenizer

    if not (model_path / "tokenizer" / "spiece.model").is_file():
        raise InputError(f"{model_path / 'tokenizer'}: got no spiece.model; expected the base's tokenizer")
    try:
        tokenizer = T5Tokenizer.from_pretrained(model_path / "tokenizer", local_files_only=True)
        text_encoder, info = T5EncoderModel.from_pretrained(
            model_path / "text_encoder", dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # what a broken download raises is anything
        raise InputError(f"{model_path}: tokenizer or text_encoder could not be loaded "
                         f"({' '.join(str(error).split())[:200]}); download them again") from error
    missing = [name for name in info["missing_keys"] if not name.endswith("embed_tokens.weight")]  # tied to shared
    if missing:
        raise InputError(f"{model_path / 'text_encoder'}: {len(missing)} tensors missing (such as {missing[0]}); "
                         "download it again")
    pipe = CogVideoXImageToVideoPipeline(tokenizer, text_encoder, None, None, None)
    return pipe.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=length)[0].contiguous()
