"""Chat templates against transformers."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from runtime.chat import ChatTemplate, Turn
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


def test_a_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (written(tmp_path, None) / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(RequestError, match=r"chat_template\.jinja: cannot be read: 'utf-8' codec"):
        ChatTemplate(tmp_path)
