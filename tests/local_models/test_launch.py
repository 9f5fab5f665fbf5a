from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from local_models.errors import StartFailed
from local_models.launch import PROJECT, EngineSpec, Launch, child_environment, interpreter_of, launch_engine, resolve_model

PYTHON = Path(sys.executable)
CHAT = EngineSpec(engine_id="demo:builtin:demo", kind="transformers", model="builtin:demo", served_model_name="demo")
IMAGE = replace(CHAT, engine_id="pictures:m", kind="diffusers", model="black-forest-labs/FLUX.2-klein-4B", served_model_name="draw")
VLLM = replace(CHAT, engine_id="here:m", kind="vllm", model="Qwen/Qwen3.5-9B", served_model_name="qwen3.5-9b", python=PYTHON)
NO_FETCHING = "--allowed-media-domains=fetched-by-the-gateway.invalid"
QWEN_FLAGS = ("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder")


def launch(spec: EngineSpec, environ: dict[str, str] | None = None) -> Launch:
    return launch_engine(spec, 4711, "sk-very-secret", {"PATH": "/usr/bin:/bin"} if environ is None else environ)


def option(launch: Launch, name: str) -> str:
    return launch.argv[launch.argv.index(name) + 1]


def test_the_chat_worker() -> None:
    made = launch(replace(CHAT, device="cuda:1", dtype="bfloat16", max_queue=8, args=("--threads", "2")))
    weights = str(PROJECT / "local_models" / "demo" / "weights" / "demo")
    assert made.argv == (
        *(sys.executable, "-m", "local_models.workers.chat_server", "--model", weights, "--served-model-name", "demo", "--port", "4711"),
        *("--device", "cuda:1", "--dtype", "bfloat16", "--max-queue", "8", "--threads", "2"),
    )
    assert made.env["TANDEM_WORKER_KEY"] == "sk-very-secret"
    assert (made.host, made.ready_path, made.cwd) == ("127.0.0.1", "/health", PROJECT)


def test_the_image_worker() -> None:
    made = launch(IMAGE)
    assert made.argv[1:3] == ("-m", "local_models.workers.image_server")
    assert option(made, "--model") == "black-forest-labs/FLUX.2-klein-4B"
    assert "--max-queue" not in made.argv


def test_vllm_in_its_own_environment() -> None:
    made = launch(replace(VLLM, dtype="float16", args=("--max-model-len", "8192")))
    assert made.argv == (
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "Qwen/Qwen3.5-9B"),
        *("--disable-uvicorn-access-log", "--served-model-name", "qwen3.5-9b", "--host", "127.0.0.1", "--port", "4711"),
        *("--dtype", "float16"),
        NO_FETCHING,
        *QWEN_FLAGS,
        *("--max-model-len", "8192"),
    )
    assert made.env["VLLM_API_KEY"] == "sk-very-secret"
    assert made.env["VLLM_NO_USAGE_STATS"] == made.env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("model", "args", "flags"),
    [
        ("Qwen/Qwen3.5-9B", (), QWEN_FLAGS),
        ("/models/qwen3_5-tiny", (), QWEN_FLAGS),
        ("Qwen/Qwen3-8B", (), ()),
        ("Qwen/Qwen3.5-9B", ("--reasoning-parser=deepseek_r1",), QWEN_FLAGS[2:]),
        ("Qwen/Qwen3.5-9B", ("--tool-call-parser", "hermes"), QWEN_FLAGS[:3]),
        ("Qwen/Qwen3.5-9B", ("--tool_call_parser", "hermes", "--enable-auto-tool-choice"), QWEN_FLAGS[:2]),
        ("Qwen/Qwen3.5-9B", ("--no-enable-auto-tool-choice",), QWEN_FLAGS[:2]),
    ],
)
def test_qwen_gets_its_parsers_unless_the_user_chose(model: str, args: tuple[str, ...], flags: tuple[str, ...]) -> None:
    argv = launch(replace(VLLM, model=model, args=args)).argv
    start = argv.index(NO_FETCHING) + 1
    assert argv[start:] == (*flags, *args)


def test_vllm_fetches_nothing_by_itself_unless_the_user_chose() -> None:
    assert NO_FETCHING in launch(VLLM).argv
    assert NO_FETCHING not in launch(replace(VLLM, args=("--allowed-media-domains", "pictures.example"))).argv


@pytest.mark.parametrize("flag", ["--port=1", "--host", "--api-key", "--api_key", "--uds", "--served-model-name", "--model"])
def test_flags_that_tandem_chooses_are_refused_by_name(flag: str) -> None:
    with pytest.raises(StartFailed, match=flag.partition("=")[0].replace("_", "-")):
        launch(replace(VLLM, args=(flag, "x")))


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, None),
        ("cuda", "2,3", "2,3"),
        ("cuda:1", None, "1"),
        ("cuda:1", "2, 3", "3"),
        ("cuda:1", "GPU-aa,GPU-bb", "GPU-bb"),
        ("cuda:5", "2,3", "5"),
    ],
)
def test_one_gpu_of_several(device: str, visible: str | None, expected: str | None) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert launch(replace(VLLM, device=device), environ).env.get("CUDA_VISIBLE_DEVICES") == expected


def test_vllm_on_the_path_runs_with_the_interpreter_of_its_script(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text(f"#!{sys.executable}\nraise SystemExit\n")
    script.chmod(0o755)
    made = launch(replace(VLLM, python=None), {"PATH": str(tmp_path)})
    assert made.argv[:3] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server")


def test_a_vllm_program_that_is_no_python_script_serves_itself(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    made = launch(replace(VLLM, python=None), {"PATH": str(tmp_path)})
    assert made.argv[:3] == (str(script), "serve", "Qwen/Qwen3.5-9B")
    assert "--model" not in made.argv


def test_no_vllm_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"vLLM is not installed; `tandem engines install vllm` makes .* `python` of the upstream"):
        launch(replace(VLLM, python=None), {"PATH": str(tmp_path)})
    with pytest.raises(StartFailed, match="/no/python cannot be run"):
        launch(replace(VLLM, python=Path("/no/python")))


@pytest.mark.parametrize("first_line", ["#!/no/such/python3", "#!/usr/bin/env python3", "#!python3", "\x7fELF", "", "#!/bin/sh"])
def test_a_script_without_a_usable_interpreter_names_none(tmp_path: Path, first_line: str) -> None:
    script = tmp_path / "script"
    script.write_text(first_line + "\n")
    assert interpreter_of(script) is None
    assert interpreter_of(tmp_path / "none") is None


@pytest.mark.parametrize("spec", [CHAT, IMAGE, VLLM], ids=lambda spec: spec.kind)
def test_the_key_is_in_the_environment_only(spec: EngineSpec) -> None:
    made = launch(spec)
    assert "sk-very-secret" not in " ".join(made.argv)
    assert "sk-very-secret" in made.env.values()
    assert "sk-very-secret" not in repr(made)


def test_a_child_gets_what_it_needs_and_no_secrets() -> None:
    needed = {
        "PATH": "/bin",
        "HOME": "/home/u",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "HF_HOME": "/models",
        "CUDA_VISIBLE_DEVICES": "1",
        "OMP_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": "/cuda",
        "XDG_CACHE_HOME": "/cache",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    secrets = (
        "OPENROUTER_API_KEY",
        "TANDEM_API_KEY",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
    )
    others = ("PYTHONPATH", "PYTHONSTARTUP", "VLLM_SERVER_DEV_MODE", "HTTP_PROXY", "SSH_AUTH_SOCK", "DATABASE_URL", "TANDEM_DATA_DIR")
    env = child_environment(needed | dict.fromkeys((*secrets, *others), "x" * 20))
    assert env == needed | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def test_the_user_may_hand_an_engine_more_but_not_its_key() -> None:
    env = launch(replace(VLLM, env={"HF_TOKEN": "mine", "HF_HUB_OFFLINE": "0", "VLLM_API_KEY": "mine"})).env
    assert (env["HF_TOKEN"], env["HF_HUB_OFFLINE"], env["VLLM_API_KEY"]) == ("mine", "0", "sk-very-secret")


def test_tools_beside_the_interpreter_are_found() -> None:
    assert launch(VLLM).env["PATH"].split(":")[0] == str(PYTHON.parent)
    assert launch(VLLM, {}).env["PATH"].startswith(str(PYTHON.parent))


def test_a_model_is_a_builtin_or_left_alone() -> None:
    assert resolve_model("builtin:demo-image") == str(PROJECT / "local_models" / "demo" / "weights" / "demo-image")
    assert resolve_model("Qwen/Qwen3.5-9B") == "Qwen/Qwen3.5-9B"


def test_supervision_imports_no_engine_and_no_http_client() -> None:
    code = "import sys, local_models.runtime; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "diffusers", "httpx", "aiohttp", "pydantic", "psutil", "http.client"):
        assert f"'{heavy}'" not in loaded
