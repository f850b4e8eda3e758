"""Run by tests/nodes/test_mini.py in ComfyUI's interpreter: what Load mini FLUX's models give.

    python mini_apply.py COMFYUI_DIR MODELS FOLDER

FOLDER holds given.safetensors and prompts.json; outputs.safetensors is written there.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
sys.path[0:0] = [str(ROOT), str(ROOT / "tests")]
from comfyui_apply import prepare_imports  # noqa: E402


def main() -> None:
    comfyui, models, folder = (Path(word) for word in sys.argv[1:])
    prepare_imports(comfyui)
    from custom_nodes.flux_dreambooth import mini, sampling

    given, outputs = load_file(folder / "given.safetensors"), {}
    model, clip, vae = mini.load(models, [])
    assert model.clone().get_attachment(mini.T5_LENGTH) == 64
    for index, prompt in enumerate(json.loads((folder / "prompts.json").read_text())):
        ((hidden, rest),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        ((again, _),) = sampling.encode(clip, prompt, 64, 3.5)
        assert torch.equal(hidden, again)
        outputs |= {f"hidden.{index}": hidden, f"pooled.{index}": rest["pooled_output"]}
        transformer = model.model.diffusion_model
        guidance = torch.tensor([3.5])
        velocity = transformer(given["noise"], given["sigma"], hidden, rest["pooled_output"], guidance=guidance)
        outputs[f"velocity.{index}"] = velocity
    outputs["encoded"] = vae.encode(given["picture"])
    outputs["decoded"] = vae.decode(given["latents"])
    save_file(
        {name: tensor.detach().float().contiguous() for name, tensor in outputs.items()}, folder / "outputs.safetensors"
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
