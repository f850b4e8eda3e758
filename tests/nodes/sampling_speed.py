"""Seconds of one image in ComfyUI's own code, with core's sampling and with that of our FLUX Sample node.

    python tests/nodes/sampling_speed.py COMFYUI_DIR TRANSFORMER [--steps 20 50] [--resolution 1024] [--fp8]

Run it in ComfyUI's interpreter. TRANSFORMER: a FLUX.1-dev in the original layout, such as benchmarks/random_flux.py
writes. Text is random numbers, and the autoencoder is left out. --fp8: weights in e4m3 and core's fast products
(UNETLoader's fp8_e4m3fn_fast).
"""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from comfyui_apply import patch_torch_imports

SAMPLING = Path(__file__).parents[2] / "custom_nodes/flux_dreambooth/sampling.py"
HEAD, GUIDANCE, WARM_UP = 128, 3.5, 3


def import_comfyui(folder: Path) -> None:
    patch_torch_imports()
    sys.path.insert(0, str(folder))
    sys.argv = [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()


def load_model(path: Path, device: torch.device, fp8: bool) -> Any:
    """A MODEL in bf16 (float32 on a CPU), or with weights in fp8."""
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    tensors = load_file(path, device=str(device))
    config = comfy.model_detection.detect_unet_config(tensors, "")
    config["num_heads"] = config["hidden_size"] // HEAD
    settings = comfy.supported_models.Flux(config)
    usual = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings.set_inference_dtype(torch.float8_e4m3fn if fp8 else usual, usual if fp8 else None)
    settings.optimizations = {**settings.optimizations, "fp8": fp8}
    model = settings.get_model(tensors, "", device=device)
    model.load_model_weights(dict(tensors), "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def our_sampling() -> Any:
    spec = importlib.util.spec_from_file_location("our_sampling", SAMPLING)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["our_sampling"] = module
    spec.loader.exec_module(module)
    return module


def core(model: Any, positive: list[Any], latent: dict[str, Any], steps: int) -> Any:
    """As the nodes RandomNoise, BasicGuider, KSamplerSelect, BasicScheduler and SamplerCustomAdvanced do."""
    import comfy.sample
    import comfy.samplers

    start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(start, 0)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps).cpu()
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, start, sampler, sigmas, disable_pbar=True, seed=0)


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("transformer", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    import_comfyui(given.comfyui)
    ours, device = our_sampling(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"fp8": given.fp8, "resolution": given.resolution}
    with torch.inference_mode():
        model = load_model(given.transformer, device, given.fp8)
        config = model.model.model_config.unet_config
        txt = torch.randn(1, 512, config["context_in_dim"], generator=torch.Generator().manual_seed(1))
        pooled = torch.randn(1, config["vec_in_dim"], generator=torch.Generator().manual_seed(1))
        positive = [[txt, {"pooled_output": pooled, "guidance": GUIDANCE}]]
        latent = ours.empty_latent(model, given.resolution, given.resolution)

        def node(steps: int) -> None:
            settings = ours.Settings(seed=0, steps=steps, guidance=GUIDANCE)
            ours.sample(model, positive, latent, settings, callback=lambda *_: None)

        ways = {"core": lambda steps: core(model, positive, latent, steps), "ours": node}
        for way, call in ways.items():
            call(WARM_UP)
            found[way] = {steps: seconds(lambda call=call, steps=steps: call(steps)) for steps in given.steps}
            print(way, "fp8" if given.fp8 else "bf16", found[way], flush=True)
            if given.output:
                given.output.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
