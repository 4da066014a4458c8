"""Times other kernels on the shapes that gpu:check times: a JSON array of shapes on standard input, JSON lines on standard output.

PyTorch's scaled_dot_product_attention with its cuDNN and FlashAttention backends forced, flash-attn (3, then 2) and FlashInfer where they
can be imported. A line is {"name", "peer", "milliseconds"}; {"peer", "missing"} says what is not there.
"""

import json
import statistics
import sys


def say(**line):
    print(json.dumps(line), flush=True)


try:
    import torch
except ImportError as error:
    say(peer="pytorch", missing=str(error))
    sys.exit(0)
if not torch.cuda.is_available():
    say(peer="pytorch", missing="PyTorch sees no CUDA device")
    sys.exit(0)

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention as sdpa  # noqa: E402


def importable(name):
    try:
        return __import__(name)
    except Exception as error:  # a broken installation counts as none
        say(peer=name, missing=str(error))
        return None


FLASH3 = importable("flash_attn_interface")
FLASH2 = importable("flash_attn")
FLASHINFER = importable("flashinfer")


# Autograd runs a backward pass on the stream of its forward pass: both have to be the one that a graph is captured from.
STREAM = torch.cuda.Stream()
torch.cuda.set_stream(STREAM)


def milliseconds(run, rounds=7, least=2.0):
    """The median of several launches of a CUDA graph that holds `run` as often as fills two milliseconds."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()

    def events(work):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    count = max(1, min(200, int(least / max(events(run), 1e-3)) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=STREAM):
        for _ in range(count):
            run()
    graph.replay()
    return statistics.median(events(graph.replay) for _ in range(rounds)) / count


def random(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda", requires_grad=grad)


def prefill(shape):
    b, s, h, d = (shape[key] for key in ("batch", "length", "heads", "headDim"))
    causal, backward = shape["causal"], shape["kind"] == "backward"
    q, k, v = (random(b, s, h, d, grad=backward) for _ in range(3))
    d_out = random(b, s, h, d)

    def passes(forward):
        if not backward:
            return forward
        out = forward()
        return lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

    def by_sdpa():
        return sdpa(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal).transpose(1, 2)

    for peer, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("pytorch flash", SDPBackend.FLASH_ATTENTION)):
        def forced(backend=backend):
            with sdpa_kernel([backend]):
                return by_sdpa()
        yield peer, lambda forced=forced: passes(forced)
    for peer, module in (("flash-attn 3", FLASH3), ("flash-attn 2", FLASH2)):
        if module is None:
            continue

        def flash(module=module):
            out = module.flash_attn_func(q, k, v, causal=causal)
            return out[0] if isinstance(out, tuple) else out
        yield peer, lambda flash=flash: passes(flash)


def decode(shape):
    b, s, h, hk, d = (shape[key] for key in ("batch", "length", "heads", "kvHeads", "headDim"))
    if shape["storage"] != "bfloat16" or shape["valueDim"] != d:
        return
    page = 64
    pages = b * s // page
    q = random(b, h, d)
    order = torch.randperm(pages, device="cuda", dtype=torch.int32)
    if FLASHINFER is not None:
        def flashinfer():
            cache = random(pages, 2, page, hk, d)
            workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
            wrapper = FLASHINFER.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            indptr = torch.arange(0, pages + 1, s // page, dtype=torch.int32, device="cuda")
            last = torch.full((b,), page, dtype=torch.int32, device="cuda")
            wrapper.plan(indptr, order, last, h, hk, d, page, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
            return lambda: wrapper.run(q, cache)
        yield "flashinfer", flashinfer
    for peer, module in (("flash-attn 3", FLASH3), ("flash-attn 2", FLASH2)):
        if module is None:
            continue

        def flash(module=module):
            k, v = random(pages, page, hk, d), random(pages, page, hk, d)
            lengths = torch.full((b,), s, dtype=torch.int32, device="cuda")
            name = "page_table" if module is FLASH3 else "block_table"
            table = {name: order.view(b, s // page)}
            return lambda: module.flash_attn_with_kvcache(q[:, None], k, v, cache_seqlens=lengths, causal=True, **table)
        yield peer, flash

    def by_sdpa():
        k, v = random(b, hk, s, d), random(b, hk, s, d)
        return lambda: sdpa(q[:, :, None], k, v, enable_gqa=True)
    yield "pytorch, contiguous", by_sdpa


def rows(shape):
    if shape["kind"] != "rms norm":
        return
    x, weight = random(shape["rows"], shape["width"]), random(shape["width"])
    yield "pytorch", lambda: lambda: torch.nn.functional.rms_norm(x, (shape["width"],), weight)


KINDS = {"forward": prefill, "backward": prefill, "decode": decode, "rms norm": rows, "append": rows}
for shape in json.load(sys.stdin):
    for peer, ready in KINDS[shape["kind"]](shape):
        try:
            say(name=shape["name"], peer=peer, milliseconds=milliseconds(ready()))
        except Exception as error:  # one peer's refusal of a shape says nothing about the others
            say(name=shape["name"], peer=peer, missing=str(error).split("\n")[0])
        torch.cuda.empty_cache()
