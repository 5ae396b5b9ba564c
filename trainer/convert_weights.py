"""Makes a .safetensors file, which `tercet train --weights` reads, of a checkpoint of torch.save.

    .venv/bin/python trainer/convert_weights.py resnet50-11ad3fa6.pth resnet50.safetensors

Needs torch alone. The checkpoint is what torchvision offers for download: a dictionary of tensors by name, or one with
the keys `state_dict` or `model` that hold it. Nothing in it is executed (`weights_only`). An existing file is not
overwritten. Exit code 2: wrong input.
"""

import ctypes
import json
import os
import sys
import tempfile

import torch

# safetensors' names of the element types that weights have.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Wrong(Exception):
    pass


def state_dict(path):
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Wrong(f"{path}: no such file") from None
    except Exception as error:
        raise Wrong(f"{path}: not a checkpoint of torch.save with tensors alone: {error}") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise Wrong(f"{path}: holds a {type(loaded).__name__}; expected a dictionary of tensors by name")
    odd = [str(name) for name, tensor in loaded.items() if not isinstance(tensor, torch.Tensor)]
    if odd or not loaded:
        raise Wrong(f"{path}: {', '.join(odd[:5]) or 'nothing'} in it; expected tensors by name")
    unknown = sorted({str(tensor.dtype) for tensor in loaded.values() if tensor.dtype not in DTYPES})
    if unknown:
        raise Wrong(f"{path}: tensors of {', '.join(unknown)}; safetensors has no such type here")
    # A model that was trained in parallel has one more level of names.
    if all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return {name: tensor.detach().contiguous() for name, tensor in loaded.items()}


def write(tensors, path):
    """The format: the header's length in 8 bytes, the header in JSON, padded to 8 bytes, then all tensors' bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".tercet-", suffix=".partial")
        with open(descriptor, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                # Little-endian, as the format has it, on every machine that torch runs on.
                file.write(ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
            file.flush()
            os.fsync(file.fileno())  # before it has the name: after a power cut that could lead to an empty file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # as any new file; a temporary one is its owner's alone
        os.rename(partial, path)
    except OSError as error:
        if partial and os.path.exists(partial):
            os.remove(partial)
        raise Wrong(f"{path}: {error.strerror}") from None


def main():
    if len(sys.argv) != 3:
        raise Wrong("usage: convert_weights.py CHECKPOINT.pth NEW.safetensors")
    source, target = sys.argv[1:]
    if not target.endswith(".safetensors"):
        raise Wrong(f"{target}: the new file's name must end in .safetensors")
    if os.path.exists(target):
        raise Wrong(f"{target}: already there")
    tensors = state_dict(source)
    write(tensors, target)
    print(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} numbers\n{target}")


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
