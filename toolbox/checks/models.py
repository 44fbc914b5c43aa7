"""Whether base and weights are whole and go together, by headers alone."""

import torch
from safetensors import SafetensorError, safe_open
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from utils import cli, cogvideox, pipeline
from utils.cli import InputError

LENGTH = 226  # tokens of the full-size model's prompt
AGAIN = "download it again"


def look(report, args):
    """Look at what is given; the configurations of (transformer, VAE) if both go together."""
    folder = configs = None
    if args.cognvs_ckpt_path:
        folder = report.check("weights", weights, report, args.cognvs_ckpt_path)
    if args.model_path:
        whole = report.check("base", base, report, args.model_path)
        if whole and folder:
            configs = report.check("together", together, report, args.model_path, folder)
        length = configs[0]["max_text_seq_length"] if configs else LENGTH
        report.check("text encoder", prompt, report, args.model_path, length)
    return configs


def weights(report, path):
    """The folder of weights that `path` means; a LoRA's are looked at where it belongs."""
    folder = pipeline.find_weights(path)
    whole = folder
    if (folder / pipeline.ADAPTER).is_file():
        whole = pipeline.adapter_weights(folder)
        found, _ = headers([folder / "pytorch_lora_weights.safetensors"])
        report.line("LoRA", f"{len(found)} tensors, of {whole}")
    if folder != path:
        report.line("newest", folder.name)
    diffusers_model(report, "weights", pipeline.CogVideoXTransformer3DModel, whole)
    return folder


def base(report, path):
    """Look at scheduler and VAE; True."""
    pipeline.check_base(path)
    kind = pipeline.read_json(path / "scheduler/scheduler_config.json").get("prediction_type")
    if kind != "v_prediction":
        report.fail("scheduler", f"{path}: got one for {kind}; expected CogVideoX's, for "
                    f"v_prediction; {AGAIN}")
    diffusers_model(report, "VAE", pipeline.AutoencoderKLCogVideoX, path / "vae")
    return True


def diffusers_model(report, label, cls, folder):
    """InputError for a broken file; tensors that are missing or of another shape are a line."""
    pipeline.check_weights(cls, folder)
    config = pipeline.read_json(folder / "config.json")
    report.check(label, tensors, report, label, folder, pipeline.WEIGHTS,
                 lambda: cls.from_config(config))


def together(report, path, folder):
    config = pipeline.transformer_config(path, folder)
    vae = pipeline.read_json(path / "vae/config.json")
    frames, height, width = cogvideox.clip_shape(config, vae)
    report.line("together", f"they make clips of {frames} frames of {width} x {height}")
    return config, vae


def tensors(report, label, folder, single, make):
    """Compare a model's files with make(), the model of its configuration.

    single: the name of its file if it is one file.
    """
    try:
        with torch.device("meta"):
            expected = make().state_dict()
    except Exception as error:  # what a broken configuration raises is anything
        raise InputError(f"{folder}: no model can be made of its config.json ({cli.said(error)}); "
                         f"{AGAIN}") from error
    files = model_files(folder, single)
    found, dtypes = headers(files)
    expected.pop("encoder.embed_tokens.weight", None)  # of T5: tied to shared.weight
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(expected)} tensors of its config.json "
                         f"are missing (such as {missing[0]}); {AGAIN}")
    for name, tensor in expected.items():
        if found[name] != tuple(tensor.shape):
            raise InputError(f"{folder}: {name} has the shape {found[name]}; expected "
                             f"{tuple(tensor.shape)}, by its config.json; download both again")
    size = sum(file.stat().st_size for file in files) / 1e9
    report.line(label, f"{len(expected)} tensors, {', '.join(sorted(dtypes))}, {size:.3g} GB in "
                f"{len(files)} file{'s' * (len(files) > 1)}")


def model_files(folder, single):
    """The safetensors files that a model is loaded from: those of its index, or one."""
    index = folder / f"{single}.index.json"
    if not index.is_file():
        return [folder / single]
    return [folder / name for name in sorted(pipeline.files_of_index(index))]


def headers(files):
    """({tensor: shape}, dtypes) of safetensors files. InputError for one that is not whole."""
    found = {}
    dtypes = set()
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file; {AGAIN}")
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    found[name] = tuple(part.get_shape())
                    dtypes.add(part.get_dtype())
        except SafetensorError as error:
            raise InputError(f"{path}: could not be read ({error}); {AGAIN}") from error
    return found, dtypes


def prompt(report, path, length):
    """Text encoder and tokenizer, and whether the embedding of "" is cached.

    Once it is, they are not needed any more and may be deleted.
    """
    encoder = path / "text_encoder"
    key = pipeline.fingerprint(encoder) if encoder.is_dir() else None
    cached = []
    for dtype in (torch.bfloat16, torch.float32):
        if pipeline.find_prompt(pipeline.prompt_places(path.resolve(), length, dtype), key):
            cached.append(str(dtype).removeprefix("torch."))
    if key is None and not cached:
        raise InputError(f'{encoder}: no such folder, and no embedding of "" is cached; {AGAIN}')
    if key:
        report.check("text encoder", text_encoder, report, encoder)
        report.check("tokenizer", tokenizer, report, path / "tokenizer")
    report.line('prompt ""', f"cached in {' and '.join(cached)}" if cached else "is not cached "
                "yet; the first run loads the text encoder for it")


def text_encoder(report, folder):
    config = T5Config.from_dict(pipeline.read_json(folder / "config.json"))
    tensors(report, "text encoder", folder, "model.safetensors", lambda: T5EncoderModel(config))


def tokenizer(report, folder):
    there = [name for name in ("spiece.model", "tokenizer.json") if (folder / name).is_file()]
    if not there:
        raise InputError(f"{folder}: got neither spiece.model nor tokenizer.json; {AGAIN}")
    try:
        T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a broken download raises is anything
        raise InputError(f"{folder}: could not be loaded ({cli.said(error)[:200]}); "
                         f"{AGAIN}") from error
    report.line("tokenizer", ", ".join(there))
