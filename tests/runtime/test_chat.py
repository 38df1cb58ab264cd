"""Chat templates against transformers; those that are none, or take too much, are refused in a line."""

import json
import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from runtime.chat.template import ChatTemplate, Turn
from runtime.errors import RequestError
from tests.runtime.small import write_tokenizer

TURNS = [
    Turn(role="system", content="Be brief."),
    Turn(role="user", content=" Hé? \n"),
    Turn(role="assistant", content="<b>"),
    Turn(role="user", content="x"),
]
CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\n' }}{% endif %}\n"
    "{{ bos_token + '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + eos_token }}\n"
    "    {%- if message.role == 'user' %}{% continue %}{% endif %}!\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + ('é' | tojson) }}{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn!') }}{% endif %}"


def written(directory: Path, template: object) -> Path:
    write_tokenizer(directory)
    tokens = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>"}
    config = tokens | ({} if template is None else {"chat_template": template})
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("place", ["config", "named", "file"])
def test_a_conversation_is_rendered_as_by_transformers(place: str, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
    directory = written(tmp_path, {"config": CHATML, "named": named, "file": None}[place])
    if place == "file":
        (directory / "chat_template.jinja").write_text(CHATML)
    file = str(directory / "tokenizer.json")
    reference = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<s>", eos_token="</s>")
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    for count in (1, 2, 4):
        expected = reference.apply_chat_template(
            messages[:count], chat_template=CHATML, tokenize=False, add_generation_prompt=True
        )
        assert ChatTemplate(directory).render(TURNS[:count]) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat_template: missing, and no chat_template.jinja beside it: the tokenizer has no chat template"),
        ("{% if %}", "chat_template: not a template: Expected an expression"),
        (REFUSING, "chat_template: TemplateError: No system turn!"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "chat_template: SecurityError: access to attribute"),
        ("{{ 1 // 0 }}", "chat_template: ZeroDivisionError: integer division"),
        ("{{ messages + 1 }}", "chat_template: TypeError: can only concatenate"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused_with_its_file(
    template: str | None, message: str, tmp_path: Path
) -> None:
    directory = written(tmp_path, template)
    with pytest.raises(RequestError, match=r"tokenizer_config\.json: ") as refusal:
        ChatTemplate(directory).render(TURNS)
    assert message in str(refusal.value)


def test_a_refusal_names_the_file_of_the_template(tmp_path: Path) -> None:
    directory = written(tmp_path, "{{ 1 // 0 }}")
    file = directory / "chat_template.jinja"
    for template, message in (
        ("{% if %}", "not a template: Expected an expression"),
        ("{{ raise_exception() }}", "TemplateError: raise_exception is called without a message"),
    ):
        file.write_text(template)
        with pytest.raises(RequestError) as refusal:
            ChatTemplate(directory).render(TURNS)
        assert str(refusal.value).startswith(f"{file}: {message}")


GENERATION = (
    "{% set a = 1 %}{% for m in messages %}\n  {% generation %}\n{% set a = 2 %}{{ m.content }}{{ a }}"
    "  {%- endgeneration -%}  {{ a }}{% endfor %}"
)
TOKENS = "[{{ bos_token }}|{{ boi_token }}|{{ boi }}|{{ image_token }}]{{ messages[0].content }}"
ADDED = {"content": "<b>", "__type": "AddedToken"}


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": GENERATION},
        {"bos_token": "<s>"},
        {"bos_token": None},
        {"bos_token": ["a"]},
        {"bos_token": {"content": 5}},
        {"bos_token": {"content": "a"}},
        {"bos_token": 5},
        {"extra_special_tokens": {"boi_token": "<b>", "boi": ADDED}},
        {"extra_special_tokens": {"boi_token": ["a"]}},
        {"extra_special_tokens": {"boi_token": None}},
        {"extra_special_tokens": {"messages": "a"}},
        {"extra_special_tokens": {"bos_token": "<b>"}, "bos_token": "<s>"},
        {"extra_special_tokens": ["<b>"]},
        {"extra_special_tokens": "<b>"},
        {"extra_special_tokens": [], "additional_special_tokens": {"boi_token": "<b>"}},
        {"image_token": {"content": "<i>"}},
        {"image_token": ADDED},
        {"image_token": 5},
    ],
)
def test_tags_and_special_tokens_are_those_of_transformers(config: dict[str, object], tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TOKENS} | config))
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    try:
        expected = PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False)
    except TypeError:
        with pytest.raises(RequestError, match=r"tokenizer_config\.json: \w+_tokens?(\.\w+)?: (found|expected|a temp)"):
            ChatTemplate(tmp_path)
    else:
        assert ChatTemplate(tmp_path).render(TURNS, generation_prompt=False) == expected


def test_a_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (written(tmp_path, None) / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(RequestError, match=r"chat_template\.jinja: cannot be read: 'utf-8' codec"):
        ChatTemplate(tmp_path)


LOOPS = "".join(f"{{% for a{i} in range(99999) %}}" for i in range(9)) + "{% endfor %}" * 9
MALFORMED = {
    "30 nested fors": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "200 nested ifs": "{% if a %}" * 200 + "{% endif %}" * 200,
    "5000 nested ifs": "{% if a %}" * 5000 + "{% endif %}" * 5000,
    "deep parentheses": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "deep list": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "long sum": "{{ " + "+".join(["a"] * 20_000) + " }}",
    "long chain": "{{ a" + ".b" * 20_000 + " }}",
    "long pipe": "{{ a" + "|trim" * 20_000 + " }}",
    "long literal": "{{ " + "9" * 6000 + " }}",
    "not a text": 5,
    "entry without a template": [{"name": "default"}],
    "entry that is no mapping": ["default"],
    "name a list": [{"name": ["default"], "template": "x"}],
    "template a list": [{"name": "default", "template": ["x"]}],
    "a name twice": [{"name": name, "template": "x"} for name in ("tools", "default", "default")],
    "no loader": "{% include 'x' %}",
    "unknown tag": "{% generations %}",
    "open tag": "{% generation %}",
    "unknown filter": "{{ 1 | nothing }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long text": "{{ 'a' * 10**9 }}",
    "long output": "{% for a in range(100) %}{{ 'a' * 10**5 }}{% endfor %}",
    "indent": "{{ ('a\n' * 10**6) | indent(10**4) }}",
    "doubling": "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "format": "{{ '%099999999999d' % 1 }}",
    "centre": "{{ 'a' | center(10**12) }}",
    "attack": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lines in the reason": "{{ raise_exception('a\n\x1b[31m' * 1000) }}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_or_immoderate_template_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    directory = written(tmp_path, MALFORMED[name])
    with pytest.raises(RequestError, match=r"tokenizer_config\.json: chat_template") as refusal:
        ChatTemplate(directory).render(TURNS)
    assert len(str(refusal.value)) < 600
    assert "\n" not in str(refusal.value)


def test_of_two_templates_of_one_name_neither_is_taken(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refusal:
        ChatTemplate(written(tmp_path, MALFORMED["a name twice"]))
    assert str(refusal.value) == (
        f'{tmp_path}/tokenizer_config.json: chat_template[2].name: found "default" a second time, expected a template '
        "of each name: remove one"
    )


@pytest.mark.parametrize("source", [LOOPS, "{{ 9 ** (9 ** 9) }}"], ids=["endless loops", "power"])
def test_a_template_that_computes_too_long_is_ended(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.chat.template.MOST_CPU_S", 1)
    with pytest.raises(RequestError, match=r"chat_template: takes too much processor time to compile or render$"):
        ChatTemplate(written(tmp_path, source)).render(TURNS)


CONFIGS = (
    "",
    '{"a": 1, "a": 2}',
    '{"a": NaN}',
    "[]",
    "5",
    "[" * 100_000,
    '{"chat_template": ' + "[" * 100_000,
    "\ufeff{}",
    "{]",
)


@pytest.mark.parametrize("content", CONFIGS)
def test_a_config_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(RequestError, match=r"tokenizer_config\.json: (cannot be read|found)") as refusal:
        ChatTemplate(tmp_path)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fifo", "a pipe, a socket or a device, expected a regular file"),
        ("device", "a pipe, a socket or a device, expected a regular file"),
        ("huge", f"{1 << 40} bytes, expected at most"),
        ("directory", "Is a directory"),
    ],
)
def test_a_file_that_never_ends_is_refused_at_once(name: str, kind: str, reason: str, tmp_path: Path) -> None:
    written(tmp_path, "x")
    file = tmp_path / name
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "directory":
        file.mkdir()
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    with pytest.raises(RequestError) as refusal:
        ChatTemplate(tmp_path)
    assert str(refusal.value).startswith(f"{file}: cannot be read: {reason}")


def test_the_renderer_serves_many_conversations_and_ends_with_the_template(tmp_path: Path) -> None:
    template = ChatTemplate(written(tmp_path, "{{ messages[0].content }}{{ 1 // (messages | length - 1) }}"))
    for count in range(50):
        assert template.render([Turn(role="user", content=f"{count} \U0001f600"), TURNS[0]]) == f"{count} \U0001f6001"
        with pytest.raises(RequestError, match="ZeroDivisionError"):
            template.render(TURNS[:1])
    renderer = template._renderer
    del template
    assert renderer.returncode == 0


def test_a_renderer_that_ended_says_why(tmp_path: Path) -> None:
    template = ChatTemplate(written(tmp_path, "x"))
    template._renderer.kill()
    with pytest.raises(RequestError, match="took more than 30 s to compile or render, or too much memory"):
        template.render(TURNS)
