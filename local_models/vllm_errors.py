"""Why a vLLM died, as one sentence with a remedy, from the end of its log. Pure: text in, an `Explanation` out.

A rule is a pattern of vLLM's, torch's or transformers' own message. `lasting` says that the next start would end in the same way: such an
engine is given up at once instead of after some restarts. Source of the messages: vLLM 0.17 to 0.32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from local_models.logs import LINE_LIMIT, error_lines


@dataclass(frozen=True)
class Explanation:
    """sentence: what is wrong and what to do, for people. lasting: another start would not help until somebody has changed something."""

    sentence: str
    lasting: bool = False


@dataclass(frozen=True)
class _Rule:
    """pattern: searched in the whole log. sentence: may name the pattern's groups."""

    pattern: re.Pattern[str]
    sentence: str
    lasting: bool = True


def _rule(pattern: str, sentence: str, *, lasting: bool = True) -> _Rule:
    return _Rule(re.compile(pattern), sentence, lasting)


_LESS_MEMORY = (
    "lower max-model-len, max-num-seqs or gpu-memory-utilization in `args`, or take a quantised checkpoint; `tandem plan` shows what fits"
)
_OTHER_ENGINE = "upgrade vLLM, or serve it with `kind: transformers`"
_DOWNLOAD = "fetch it with `tandem models download NAME`, or correct `model` of the deployment"
_KV_TOO_SMALL = (
    r"max seq len \((?P<wanted>\d+)\), \(?(?P<needs>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory"
    r" \((?P<left>[\d.]+) GiB\)"
)

# The more special one first: the first that is found anywhere in the log is taken.
_RULES = (
    _rule(
        r"Unexpected head dim size, (?P<size>\d+)",
        "its kernels cannot compute with a head dimension of {size} (linear_key_head_dim, linear_value_head_dim of the checkpoint);"
        " take a checkpoint with 64 or 128, or serve it with `kind: transformers`",
    ),
    _rule(
        r"[Hh]ead[ _](?:size|dim)\D{0,40}(?P<size>\d+) is not supported|[Uu]nsupported head[ _](?:size|dim)\D{0,20}(?P<other>\d+)",
        "its attention kernels do not support this checkpoint's head dimension; choose another attention-backend in `args`, "
        "or serve it with `kind: transformers`",
    ),
    _rule(
        _KV_TOO_SMALL + r".{0,80}?estimated maximum model length is (?P<most>\d+)",
        "a context of {wanted} tokens needs {needs} GiB of KV cache, and {left} GiB are left; lower max-model-len in `args` to {most},"
        " or raise gpu-memory-utilization; `tandem plan` shows what fits",
    ),
    _rule(
        _KV_TOO_SMALL,
        "a context of {wanted} tokens needs {needs} GiB of KV cache, and {left} GiB are left; lower max-model-len in `args`,"
        " or raise gpu-memory-utilization; `tandem plan` shows what fits",
    ),
    _rule(r"No available memory for the cache blocks", f"its weights leave no memory for the KV cache; {_LESS_MEMORY}"),
    _rule(
        r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than[^(]*"
        r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "it wants {wanted} GiB and {free} of {total} GiB are free on {device}; stop what holds the rest (nvidia-smi shows it), "
        "or lower gpu-memory-utilization ({share}) in `args`; `tandem plan` shows what fits",
        lasting=False,
    ),
    _rule(
        r"Available memory on node \d+ \((?P<free>[\d.]+)/[\d.]+ GiB\)[^(]*requested memory for kv \((?P<wanted>[\d.]+) GiB\)",
        "it wants {wanted} GiB of memory for its KV cache and {free} GiB are free; lower VLLM_CPU_KVCACHE_SPACE in `env` of the upstream,"
        " or kv-cache-memory-bytes in `args`; `tandem plan` shows what fits",
        lasting=False,
    ),
    _rule(
        r"(?:OutOfMemoryError|out of memory)[^\n]*?Tried to allocate (?P<wanted>[\d.]+ \wi?B)",
        f"the GPU ran out of memory when {{wanted}} more were wanted; {_LESS_MEMORY}",
        lasting=False,
    ),
    _rule(r"OutOfMemoryError|(?:CUDA|HIP)(?: error:)? out of memory", f"the GPU ran out of memory; {_LESS_MEMORY}", lasting=False),
    _rule(
        r"num_cache_lines >= batch",
        "it captures CUDA graphs for more sequences than it has states for; "
        "set max-cudagraph-capture-size in `args` to at most max-num-seqs, or lower both",
    ),
    _rule(
        r"Model architectures \[(?P<names>[^\]]*)\] (?:are not supported|failed to be inspected)",
        f"this vLLM does not know the architecture {{names}}; {_OTHER_ENGINE}",
    ),
    _rule(
        r"model type `?(?P<name>[\w.-]+)`? but Transformers does not recognize this architecture",
        f"this vLLM does not know the model type '{{name}}'; {_OTHER_ENGINE}",
    ),
    _rule(
        r"max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len \([^)]*?=(?P<most>\d+)",
        "max-model-len {wanted} is more than the checkpoint's own {most}; lower it in `args`",
    ),
    _rule(
        r"GatedRepoError|[Aa]ccess to model \S+ is restricted|gated repo|401 Client Error|403 Client Error",
        "the checkpoint is behind a licence that was not accepted; accept it on its page on the Hub, set HF_TOKEN, and fetch it with "
        "`tandem models download NAME`",
    ),
    _rule(
        r"Repo id must be in the form[^\n]*?'(?P<path>/[^'\n]*)'",
        f"there is no checkpoint at {{path}}; {_DOWNLOAD}",
    ),
    _rule(
        r"Cannot find any model weights with `(?P<path>[^`\n]+)`",
        f"there are no weights in {{path}}; {_DOWNLOAD}",
    ),
    _rule(
        r"Invalid repository ID or local directory specified: '(?P<path>[^'\n]*)'",
        f"'{{path}}' is no checkpoint: it lacks a config.json that vLLM can read; {_DOWNLOAD}",
    ),
    _rule(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to 'https://huggingface\.co'|outgoing traffic has been disabled",
        f"the checkpoint is not on this machine, and engines do not download; {_DOWNLOAD}",
    ),
    _rule(
        r"SafetensorError|MetadataIncompleteBuffer|HeaderTooLarge|InvalidHeaderDeserialization",
        "its weights are damaged or were not downloaded to their end; remove them and fetch them again with `tandem models download NAME`",
    ),
    _rule(
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<size>\d+)\)",
        "its {heads} attention heads cannot be divided among {size} GPUs; choose another tensor-parallel-size in `args`",
    ),
    _rule(
        r"error: unrecognized arguments: (?P<flags>[^\n]+)",
        "this vLLM does not know {flags}; correct `args` of the upstream",
    ),
    _rule(r"error: argument (?P<flag>--?[\w/-]+[^:\n]*): (?P<why>[^\n]+)", "it refuses {flag}: {why}; correct `args` of the upstream"),
    _rule(
        r"Ninja is required|No such file or directory: '?ninja|ninja: (?:command )?not found",
        "it builds kernels at its start and finds no `ninja`; install ninja in vLLM's own environment",
    ),
    _rule(
        r"Could not find nvcc|nvcc(?:: command)? not found|CUDA_HOME environment variable is not set"
        r"|No such file or directory: '[^'\n]*nvcc'",
        "it builds kernels at its start and finds no CUDA compiler; install the CUDA toolkit and set CUDA_HOME in `env` of the upstream",
    ),
    _rule(
        r"Failed to find C compiler|InvalidCxxCompiler|No working C\+\+ compiler|No such file or directory: '(?:gcc|g\+\+|cc|c\+\+)'"
        r"|(?:gcc|g\+\+)(?:: command)? not found|Python\.h: No such file",
        "it builds kernels at its start and finds no C++ compiler or no Python headers; install g++ and python3-dev, "
        "or set enforce-eager: true in `args`",
    ),
    _rule(
        r"Bfloat16 is only supported on GPUs with compute capability",
        "this GPU has no bfloat16; set `dtype: float16` of the upstream",
    ),
    _rule(
        r"no kernel image is available",
        "this vLLM has no kernels for this GPU; install a build that supports it, or serve the model with `kind: transformers`",
    ),
    _rule(
        r"CUDA driver version is insufficient|Found no NVIDIA driver|driver on your system is too old",
        "the NVIDIA driver is missing or too old for this vLLM; update it, or install an older vLLM",
    ),
    _rule(r"[Aa]ddress already in use", "its port was taken by another program", lasting=False),
)  # fmt: skip

_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(?P<name>\w*(?:Error|Exception)): (?P<message>\S.*)")
_OF_A_WORKER = re.compile(r"Worker failed with error '(?P<message>.+)', please check")
# Said of an error that stands above it in the log.
_SECOND_HAND = re.compile(
    r"EngineCore encountered an issue|Engine core initialization failed|WorkerProc initialization failed|Executor failed"
)


def explain(log: str) -> Explanation | None:
    """What the end of a vLLM's log says of its death; None where it says nothing."""
    lines = error_lines(log)
    text = "\n".join(lines)
    for rule in _RULES:
        if found := rule.pattern.search(text):
            return Explanation(rule.sentence.format_map(found.groupdict())[:LINE_LIMIT], rule.lasting)
    return _exception(lines)


def _exception(lines: list[str]) -> Explanation | None:
    """The last exception that is no mere echo of another one."""
    for line in reversed(lines):
        if found := _OF_A_WORKER.search(line):
            return Explanation(found["message"][:LINE_LIMIT])
        found = _EXCEPTION.match(line)
        if found and not _SECOND_HAND.search(line):
            return Explanation(f"{found['name']}: {found['message']}"[:LINE_LIMIT])
    return None
