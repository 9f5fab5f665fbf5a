"""From files and environment to settings; each way to get it wrong gives one line with file, line and the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.loader import ConfigError, find_config_file, load, profile_names

ISSUE_EXAMPLE = """\
# tandem.yaml: what exists, and who answers for it, in order
models:
  - name: qwen3.5-9b
    kind: chat
    deployments:
      - {upstream: here, model: Qwen/Qwen3.5-9B}             # a local vLLM, supervised
      - {upstream: openrouter, model: qwen/qwen3.5-9b}       # when the local one cannot answer
  - name: draw
    kind: image
    deployments: [{upstream: pictures, model: black-forest-labs/FLUX.2-klein-4B}]
upstreams:
  here:       {kind: vllm}
  pictures:   {kind: diffusers}
  openrouter: {kind: openrouter, api_key: "${OPENROUTER_API_KEY}"}
  lab:        {kind: openai, base_url: "http://127.0.0.1:9110/v1", api_key: "none"}
"""

MODELS = """\
models:
  - {name: a, kind: chat, deployments: [{upstream: u, model: m}]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "tandem.yaml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def error_of(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load("demo", write(text), environ or {})
    return str(caught.value)


@pytest.mark.usefixtures("folder")
class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("server: {port: 1}\nmodles: []\n", "tandem.yaml:2: unknown key 'modles' (did you mean 'models'?)"),
            ("server:\n  port: 1\n  prot: 2\n", "tandem.yaml:3: unknown key 'prot' (did you mean 'port'?)"),
            (
                "server:\n  zzz: 2\n",
                "tandem.yaml:2: unknown key 'zzz' (known here: host, port, max_body_bytes, shutdown_grace_s, metrics_without_key)",
            ),
            (
                "profile: demo\n",
                "tandem.yaml:1: unknown key 'profile' (known here: models, upstreams, server, chat_app, remote_images, usage, log, memory)",
            ),
            ("chat_app: {prt: 1}\n", "tandem.yaml:1: unknown key 'prt' (did you mean 'port'?)"),
            (
                "models:\n  - name: a\n    kind: chat\n    deplyments: []\n",
                "tandem.yaml:4: unknown key 'deplyments' (did you mean 'deployments'?)",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments:\n      - upstream: demo\n        modle: x\n",
                "tandem.yaml:6: unknown key 'modle' (did you mean 'model'?)",
            ),
            (
                "models:\n  - name: a\n    kind: image\n    deployments: [{upstream: demo-images, model: x}]\n    image:\n      max_m: 2\n",
                "tandem.yaml:6: unknown key 'max_m' (did you mean 'max_n'?)",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments: [{upstream: demo, model: x}]\n"
                "    limits:\n      request_per_minute: 2\n",
                "tandem.yaml:6: unknown key 'request_per_minute' (did you mean 'requests_per_minute'?)",
            ),
            (
                "upstreams:\n  here:\n    kind: vllm\n    pyton: x\n",
                "tandem.yaml:4: unknown key 'pyton' (did you mean 'python'?)",
            ),
            ("models:\n  - kind: chat\n    deployments: [{upstream: demo, model: x}]\n", "tandem.yaml:2: missing key 'name' in models[0]"),
            ("upstreams:\n  lab: {kind: openai}\n", "tandem.yaml:2: missing key 'base_url' in upstreams.lab"),
            (
                "upstreams:\n  lab: {}\n",
                "tandem.yaml:2: missing key 'kind' in upstreams.lab (one of openai, openrouter, litellm, vllm, transformers, diffusers)",
            ),
            (
                "upstreams:\n  lab:\n    device: cpu\n    kind: vlm\n",
                "tandem.yaml:4: unknown kind 'vlm' (did you mean 'vllm'?); "
                "known kinds: openai, openrouter, litellm, vllm, transformers, diffusers",
            ),
            ("upstreams:\n  lab: 3\n", "tandem.yaml:2: upstreams.lab: must be a mapping (key: value), not 3"),
            ("server:\n\n  port: eighty\n", "tandem.yaml:3: server.port: must be a whole number, not 'eighty'"),
            ("server: {port: 1.5}\n", "tandem.yaml:1: server.port: must be a whole number, not 1.5"),
            ("server: {port: 70000}\n", "tandem.yaml:1: server.port: must be at most 65535, not 70000"),
            ("server: {port: -1}\n", "tandem.yaml:1: server.port: must be at least 0, not -1"),
            ("server: {host: 5}\n", "tandem.yaml:1: server.host: must be text (put quotes around it), not 5"),
            ("server: {host: ''}\n", "tandem.yaml:1: server.host: must not be empty"),
            ("server: 5\n", "tandem.yaml:1: server: must be a mapping (key: value), not 5"),
            ("usage: {queue_size: 0}\n", "tandem.yaml:1: usage.queue_size: must be at least 1, not 0"),
            ("usage: {url: 4711}\n", "tandem.yaml:1: usage.url: must be text (put quotes around it)"),
            ("usage: {urll: x}\n", "tandem.yaml:1: unknown key 'urll' (did you mean 'url'?)"),
            ("usage: {url: 'mysql://h/n'}\n", "tandem.yaml:1: usage.url: url must start with postgresql:// or sqlite:////"),
            (
                "usage:\n  url: sqlite:///usage.sqlite\n",
                "tandem.yaml:2: usage.url: an SQLite url needs the whole path of its file, with four slashes: "
                "sqlite:////var/lib/tandem/usage.sqlite",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments:\n      - upstream: demo\n        model: x\n"
                "        price: {input_usd_per_million: 1, output_usd_per_million: 2}\n",
                "tandem.yaml:7: missing key 'as_of' in models[0].deployments[0].price",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments:\n      - upstream: demo\n        model: x\n"
                "        price: {input_usd_per_million: -1, output_usd_per_million: 2, as_of: 2026-11-24}\n",
                "tandem.yaml:7: models[0].deployments[0].price.input_usd_per_million: must be at least 0, not -1",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments:\n      - upstream: demo\n        model: x\n"
                "        price: {input_usd_per_million: 1, output_usd_per_million: 2, as_of: November}\n",
                "tandem.yaml:7: models[0].deployments[0].price.as_of: must be a date like 2026-11-24, not 'November'",
            ),
            ("models: 5\n", "tandem.yaml:1: models: must be a list, not 5"),
            ("models: []\n", "tandem.yaml:1: models: must not be empty"),
            (
                "models:\n  - name: a\n    kind: chatt\n    deployments: [{upstream: demo, model: x}]\n",
                "tandem.yaml:3: models[0].kind: must be one of 'chat' or 'image', not 'chatt'",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    demo: maybe\n    deployments: [{upstream: demo, model: x}]\n",
                "tandem.yaml:4: models[0].demo: must be true or false, not 'maybe'",
            ),
            (
                "upstreams:\n  demo: {kind: transformers, idle_unload_s: .inf}\n",
                "tandem.yaml:2: upstreams.demo.idle_unload_s: must be a number, not inf",
            ),
            (
                "upstreams:\n  demo: {kind: transformers, idle_unload_s: 0}\n",
                "tandem.yaml:2: upstreams.demo.idle_unload_s: must be greater than 0, not 0",
            ),
            (
                "models:\n  - name: a\n    kind: chat\n    deployments:\n      - upstream: nope\n        model: x\n",
                "tandem.yaml:5: model 'a' names upstream 'nope', which does not exist (known: demo, demo-images)",
            ),
            (
                "models:\n  - &m {name: a, kind: chat, deployments: [{upstream: demo, model: x}]}\n  - *m\n",
                "tandem.yaml:2: model name 'a' is used twice",
            ),
            (
                "models:\n  - name: a\n    kind: image\n    deployments: [{upstream: demo-images, model: x}]\n"
                "    image:\n      default_size: 7x7\n",
                "tandem.yaml:5: models[0].image: default_size 7x7: width 7 is outside 64 to 2048",
            ),
            (
                "upstreams: {'a b': {kind: vllm}}\n",
                "tandem.yaml:1: upstreams: upstream name 'a b' may hold letters, digits, '.', '_' and '-' only",
            ),
            ("a: 1\nserver: {}\na: 2\n", "tandem.yaml:3: key 'a' appears twice (first in line 1)"),
            ("- a\n", "tandem.yaml:1: must be a mapping (key: value) with 'models' and 'upstreams'"),
            ("server:\n\tport: 1\n", "tandem.yaml:2: not valid YAML: a tab indents this line; use spaces"),
            ("server: [1\nmodels: 2\n", "tandem.yaml:2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
            (
                "server: {}\n---\nserver: {}\n",
                "tandem.yaml:2: not valid YAML: expected a single document in the stream, but found another document",
            ),
            ("a: 1\nb: \x01\n", "tandem.yaml:2: not valid YAML: the character U+0001 is not allowed"),
            ("a: !!python/object/apply:os.system ['true']\n", "tandem.yaml:1: cannot read this value; put quotes around it"),
            ("server:\n  <<: {port: 1}\n", "tandem.yaml:2: merge keys (<<) are not supported; write the keys out"),
            ("? [a]\n: 1\n", "tandem.yaml:1: a key must be text"),
            ("models: &a [*a]\n", "tandem.yaml:1: nested too deeply or too long; this is not a Tandem configuration"),
            (
                "server:\n  host: ${NOPE}\n",
                "tandem.yaml:2: server.host: NOPE is not set; export NOPE=... or write ${NOPE:-a default}",
            ),
            (
                "server:\n  host: a${b c}\n",
                "tandem.yaml:2: a reference looks like ${NAME} or ${NAME:-default}; write $${ for a plain ${",
            ),
        ],
    )
    def test_each_mistake_gives_one_line(self, text: str, message: str) -> None:
        assert error_of(text) == message

    def test_several_mistakes_come_in_the_order_of_the_file(self) -> None:
        lines = error_of("zebra: 1\nserver: {port: x}\nchat_app: {port: y}\n").splitlines()
        assert [line.split(": ")[0] for line in lines] == ["tandem.yaml:1", "tandem.yaml:2", "tandem.yaml:3"]

    def test_a_long_list_of_mistakes_is_cut(self) -> None:
        lines = error_of("".join(f"key{number}: 1\n" for number in range(12))).splitlines()
        assert len(lines) == 9
        assert lines[-1] == "... and 4 more"

    def test_a_key_of_another_kind_is_not_guessed(self) -> None:
        assert error_of("upstreams:\n  lab: {kind: transformers, base_url: http://x/v1}\n").startswith(
            "tandem.yaml:2: unknown key 'base_url' (known here: device, dtype, "
        )

    def test_a_mistake_in_a_value_from_the_environment_names_the_variable(self) -> None:
        assert error_of("{}", {"TANDEM_PORT": "eighty"}) == "TANDEM_PORT: server.port: must be a whole number, not 'eighty'"

    def test_a_bomb_of_aliases_is_refused(self) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        assert "this is not a Tandem configuration" in error_of("\n".join(lines))

    @pytest.mark.parametrize(
        "text",
        [
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, api_key: ['s3cret']}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, headers: s3cret}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, headers: {a: ['s3cret']}}\n",
            "upstreams:\n  lab: {kind: vllm, env: [s3cret]}\n",
            "upstreams:\n  lab: {kind: vllm, args: s3cret}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, api_key: !!int s3cret}\n",
            "usage: {url: ['s3cret']}\n",
            "usage: {url: 'mysql://u:s3cret@h/n'}\n",
            "usage: {url: 'postgresql://u:s3cret:x@h:port/n'}\n",
            "usage: {url: 'postgresql://u:[s3cret@h/n'}\n",
            "usage: {url: 'postgresql://u:s3cret\u2100@h/n'}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, proxy: 'socks5://u:s3cret@gate:1'}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, proxy: 'http://u:s3cret@gate:port'}\n",
            "upstreams:\n  lab: {kind: openai, base_url: http://x/v1, proxy: ['s3cret']}\n",
            "upstreams:\n  lab: {kind: litellm, params: {aws_secret_access_key: ['s3cret']}}\n",
            "upstreams:\n  lab: {kind: litellm, params: {api_key: s3cret}}\n",
        ],
    )
    def test_no_message_shows_what_may_be_a_secret(self, text: str) -> None:
        assert "s3cret" not in error_of(text)


@pytest.mark.usefixtures("folder")
class TestFiles:
    def test_a_missing_file(self) -> None:
        with pytest.raises(ConfigError, match=r"nope\.yaml: no such file; name an existing one with --config"):
            find_config_file(Path("nope.yaml"), Path())

    def test_an_unreadable_file(self) -> None:
        Path("dir.yaml").mkdir()
        with pytest.raises(ConfigError, match=r"^dir\.yaml: cannot read it: Is a directory$"):
            load("demo", Path("dir.yaml"), {})

    def test_a_file_that_is_no_text(self) -> None:
        Path("tandem.yaml").write_bytes(b"server: {}\n# \xff\n")
        with pytest.raises(ConfigError, match=r"^tandem\.yaml:2: not UTF-8 text \(byte 0xff\); save the file as UTF-8$"):
            load("demo", Path("tandem.yaml"), {})

    def test_a_huge_file(self) -> None:
        with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
            load("demo", write("#" * 1_100_000), {})

    def test_an_empty_file_changes_nothing(self) -> None:
        assert load("demo", write("# nothing\n"), {}).models == load("demo", None, {}).models

    def test_a_byte_order_mark_is_no_mistake(self) -> None:
        assert load("demo", write("\ufeffserver: {port: 7}\n"), {}).server.port == 7

    def test_tandem_yaml_in_the_folder_is_found(self) -> None:
        assert find_config_file(None, Path()) is None
        write("{}")
        assert find_config_file(None, Path()) == Path("tandem.yaml")

    def test_an_unknown_profile(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^unknown profile 'dmeo' \(did you mean 'demo'\?\); known profiles: demo, gpu, hosted, laptop$"
        ):
            load("dmeo", None, {})

    def test_a_profile_name_is_no_path(self) -> None:
        with pytest.raises(ConfigError, match="unknown profile"):
            load("../profiles/demo", None, {})


@pytest.mark.usefixtures("folder")
class TestMerging:
    def test_mappings_merge_key_by_key(self) -> None:
        settings = load("demo", write("server: {port: 9000}\nupstreams:\n  demo: {idle_unload_s: 5}\n"), {})
        assert (settings.server.port, settings.server.host) == (9000, "127.0.0.1")
        upstream = settings.upstreams["demo"]
        assert upstream.kind == "transformers"
        assert upstream.idle_unload_s == 5
        assert [model.name for model in settings.models] == ["demo", "demo-image"]

    def test_models_of_the_file_are_all_models(self) -> None:
        settings = load("demo", write(MODELS.replace("upstream: u", "upstream: demo")), {})
        assert [model.name for model in settings.models] == ["a"]
        assert set(settings.upstreams) == {"demo", "demo-images"}

    def test_an_upstream_that_states_its_kind_replaces_the_one_below(self) -> None:
        settings = load("gpu", write("upstreams:\n  vllm: {kind: openai, base_url: http://gpu:8000/v1, thinking: reasoning}\n"), {})
        assert settings.upstreams["vllm"].kind == "openai"

    def test_a_model_s_thinking_needs_an_upstream_that_says_how_it_spells_it(self) -> None:
        with pytest.raises(ConfigError, match="sets thinking, but 'vllm' does not say how it spells it; set its thinking to chat_template"):
            load("gpu", write("upstreams:\n  vllm: {kind: openai, base_url: http://gpu:8000/v1}\n"), {})

    def test_the_environment_goes_over_the_file(self) -> None:
        environ = {"TANDEM_HOST": "0.0.0.0", "TANDEM_PORT": "1", "TANDEM_CHAT_PORT": "2", "TANDEM_MAX_BODY_BYTES": "4096"}
        settings = load("demo", write("server: {host: localhost, port: 9}\n"), environ)
        assert (settings.server.host, settings.server.port, settings.server.max_body_bytes) == ("0.0.0.0", 1, 4096)
        assert settings.chat_app.port == 2
        assert settings.sources[:2] == ["profile demo", "tandem.yaml"]
        assert set(settings.sources[2:]) == set(environ)

    def test_an_empty_variable_counts_as_not_set(self) -> None:
        assert load("demo", write("server: {port: 9}\n"), {"TANDEM_PORT": ""}).server.port == 9

    def test_the_line_of_a_mistake_is_that_of_the_file_that_made_it(self) -> None:
        message = error_of("# one\n# two\nserver:\n  port: 5\nupstreams:\n  demo: {max_queue: none}\n")
        assert message == "tandem.yaml:6: upstreams.demo.max_queue: must be a whole number, not 'none'"


@pytest.mark.usefixtures("folder")
class TestReferences:
    def upstream(self, key: str, environ: dict[str, str]) -> tuple[str | None, dict[str, str]]:
        settings = load("demo", write(f"upstreams:\n  u: {{kind: openai, base_url: http://x/v1, api_key: {key}}}\n"), environ)
        spec = settings.upstreams["u"]
        assert spec.kind == "openai"
        return spec.api_key.get_secret_value() if spec.api_key else None, settings.unset_keys

    @pytest.mark.parametrize(
        ("text", "environ", "key", "unset"),
        [
            ("'${LAB}'", {"LAB": "k1"}, "k1", {}),
            ("'${LAB}'", {}, None, {"u": "LAB"}),
            ("'${LAB}'", {"LAB": ""}, None, {"u": "LAB"}),
            ("'${LAB:-none}'", {}, "none", {}),
            ("'${LAB:-}'", {}, None, {}),
            ("'a-${LAB}-${TWO}'", {"LAB": "k1", "TWO": "k2"}, "a-k1-k2", {}),
            ("'a-${LAB}-${TWO}'", {"LAB": "k1"}, None, {"u": "TWO"}),
            ("'$${LAB}'", {"LAB": "k1"}, "${LAB}", {}),
            ("'$LAB'", {"LAB": "k1"}, "$LAB", {}),
            ("'${LAB}'", {"LAB": "${HOME} $${x"}, "${HOME} $${x", {}),
            ("null", {}, None, {}),
        ],
    )
    def test_a_key_from_the_environment(self, text: str, environ: dict[str, str], key: str | None, unset: dict[str, str]) -> None:
        assert self.upstream(text, environ) == (key, unset)

    def test_openrouter_needs_no_words_for_its_key(self) -> None:
        text = "upstreams:\n  router: {kind: openrouter}\n"
        settings = load("demo", write(text), {"OPENROUTER_API_KEY": "k"})
        spec = settings.upstreams["router"]
        assert spec.kind == "openrouter"
        assert spec.api_key is not None
        assert spec.api_key.get_secret_value() == "k"
        assert load("demo", write(text), {}).unset_keys == {"router": "OPENROUTER_API_KEY"}

    def test_references_work_everywhere(self) -> None:
        settings = load("demo", write("server: {port: '${P:-7000}', host: '${H}'}\n"), {"H": "::1"})
        assert (settings.server.host, settings.server.port) == ("::1", 7000)

    def test_a_variable_with_yaml_in_it_is_text(self) -> None:
        assert load("demo", write("server: {host: '${H}'}\n"), {"H": "{a: 1}"}).server.host == "{a: 1}"


@pytest.mark.usefixtures("folder")
class TestPaths:
    @pytest.mark.parametrize(
        ("model", "resolved"),
        [
            ("./m", "{folder}/sub/m"),
            ("../m", "{folder}/m"),
            ("~/m", "{home}/m"),
            ("/abs/m", "/abs/m"),
            ("owner/name", "owner/name"),
            ("${DIR:-./m}", "{folder}/sub/m"),
        ],
    )
    def test_a_relative_path_starts_at_the_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, resolved: str) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        Path("sub").mkdir()
        text = f"models:\n  - {{name: a, kind: chat, deployments: [{{upstream: demo, model: '{model}'}}]}}\n"
        settings = load("demo", write(text, "sub/my.yaml"), {})
        assert settings.models[0].deployments[0].model == resolved.format(folder=folder, home="/home/somebody")

    @pytest.mark.parametrize("key", ["ca_file", "client_cert"])
    def test_the_files_of_a_hosted_upstream_too(self, folder: Path, key: str) -> None:
        text = f"upstreams:\n  v: {{kind: openai, base_url: http://x/v1, {key}: certs/some.pem}}\n"
        assert getattr(load("demo", write(text), {}).upstreams["v"], key) == folder / "certs" / "some.pem"

    @pytest.mark.parametrize(
        ("python", "resolved"), [("./v/bin/python", "{folder}/v/bin/python"), ("/v/python", "/v/python"), ("python3.12", "python3.12")]
    )
    def test_the_python_of_an_upstream_too(self, folder: Path, python: str, resolved: str) -> None:
        spec = load("demo", write(f"upstreams:\n  v: {{kind: vllm, python: {python}}}\n"), {}).upstreams["v"]
        assert spec.kind == "vllm"
        assert spec.python == Path(resolved.format(folder=folder))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("profile", profile_names())
class TestProfiles:
    def test_every_profile_is_valid(self, profile: str) -> None:
        settings = load(profile, None, {})
        assert settings.profile == profile
        assert settings.sources == [f"profile {profile}"]

    def test_every_profile_chats_and_draws(self, profile: str) -> None:
        assert {model.kind for model in load(profile, None, {}).models} == {"chat", "image"}

    def test_the_example_of_the_documentation_loads_over_every_profile(self, profile: str) -> None:
        settings = load(profile, write(ISSUE_EXAMPLE), {"OPENROUTER_API_KEY": "k"})
        assert [model.name for model in settings.models] == ["qwen3.5-9b", "draw"]
        assert [deployment.engine_id for deployment in settings.models[0].deployments] == [
            "here:Qwen/Qwen3.5-9B",
            "openrouter:qwen/qwen3.5-9b",
        ]


def test_no_profile_means_demo() -> None:
    assert load(None, None, {}).profile == "demo"


def test_the_profiles() -> None:
    assert profile_names() == ["demo", "gpu", "hosted", "laptop"]
