"""Prompts equal those of transformers' apply_chat_template; OpenAI's messages fit every template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from text_kinds import byte_fallback, save
from transformers import AutoTokenizer

from langport.errors import CheckpointError, ConfigError, InvalidRequest
from langport.text.chat_template import (
    ChatTemplate,
    TemplateSource,
    TemplateTraits,
    builtin_template_for,
    builtin_templates,
    prepare_messages,
)
from langport.text.tokenizer import Tokenizer

# Written for these tests in the manner of the well-known families.
CHATML_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=none) %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
        {%- generation %}{{- message.content or '' }}{%- endgeneration %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function %}
            {{- '<tool_call>{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{% else %}{{- call.arguments | tojson }}{% endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA3_TOOLS = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- system_message }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{% endfor %}
"""

PARTS_OR_TEXT = """\
{%- for message in messages %}{{ message.role }}:
{%- if message.content is string %}{{ message.content }}
{%- else %}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}[{{ part.text }}]{%- else %}<image>{%- endif %}
    {%- endfor %}
{%- endif %};
{%- endfor %}
"""

ONLY_PARTS = """\
{%- for message in messages %}{{ message.role }}:
{%- for part in message.content %}[{{ part['text'] }}]{%- endfor %};
{%- endfor %}
"""

TEXT_ARGUMENTS = """\
{%- for message in messages %}
    {%- for call in message.tool_calls or [] %}
        {{- call['function']['name'] + '(' + call['function']['arguments'] + ')' }}
    {%- endfor %}
    {%- if message['content'] is not none %}{{ message['content'] }}{% endif %}
{%- endfor %}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in <a city> & 'around' — größer",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
USER = {"role": "user", "content": "  Hi <there> & 'you' "}
PLAIN = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"}]
WITH_SYSTEM = [{"role": "system", "content": "Be kind."}, *PLAIN]


def tool_conversation(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call_0001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0001", "name": "weather", "content": "Sunny"},
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat") / "checkpoint", *byte_fallback())


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(checkpoint))


def make(text: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate({"default": TemplateSource(text, "a test")}, tokenizer.named_tokens)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("template", "messages", "tools"),
    [
        (CHATML_TOOLS, PLAIN, None),
        (CHATML_TOOLS, WITH_SYSTEM, TOOLS),
        (CHATML_TOOLS, tool_conversation({"city": "Köln"}), TOOLS),
        (CHATML_TOOLS, [USER, {"role": "assistant", "content": "A", "reasoning": "Hm"}, USER], None),
        (LLAMA3_TOOLS, PLAIN, None),
        (LLAMA3_TOOLS, WITH_SYSTEM, None),
        (LLAMA3_TOOLS, tool_conversation({"city": "Köln", "n": [1, None]}), TOOLS),
        (MISTRAL, PLAIN, None),
        (PARTS_OR_TEXT, PLAIN, None),
        (PARTS_OR_TEXT, [{"role": "user", "content": [{"type": "text", "text": "a"}]}], None),
    ],
)
def test_renders_as_transformers(
    tokenizer: Tokenizer,
    reference: Any,
    template: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
) -> None:
    expected = reference.apply_chat_template(
        messages,
        tools=tools,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    ours = make(template, tokenizer)
    assert ours.render(messages, tools=tools, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("name", builtin_templates())
def test_built_in_templates_render_as_transformers(tokenizer: Tokenizer, reference: Any, name: str) -> None:
    text = Path(__file__).parents[3].joinpath("langport/text/templates", f"{name}.jinja").read_text()
    ours = ChatTemplate.builtin(name, tokenizer)
    for messages in (PLAIN, WITH_SYSTEM, WITH_SYSTEM[:1]):
        expected = reference.apply_chat_template(
            messages, chat_template=text, add_generation_prompt=True, tokenize=False
        )
        assert ours.render(messages) == expected


BUILT_IN_EXAMPLES = {
    "alpaca": "<s>S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\n",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "falcon": "S\n\nUser: U\n\nAssistant: A\n\nUser: V\n\nAssistant:",
    "gemma": "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    "llama-2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
    "openbuddy": "<s>S\nUser: U\nAssistant: A\nUser: V\nAssistant:",
    "phi-3": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
    "plain": "S\nU\nA\nV",
    "vicuna": "<s>S USER: U ASSISTANT: A</s>USER: V ASSISTANT:",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", builtin_templates())
def test_built_in_templates_write_the_known_formats(tokenizer: Tokenizer, name: str) -> None:
    roles = zip(("system", "user", "assistant", "user"), "SUAV", strict=True)
    messages = [{"role": role, "content": content} for role, content in roles]
    assert ChatTemplate.builtin(name, tokenizer).render(messages) == BUILT_IN_EXAMPLES[name]


def test_vicuna_and_openbuddy_introduce_themselves(tokenizer: Tokenizer) -> None:
    vicuna = ChatTemplate.builtin("vicuna", tokenizer).render([{"role": "user", "content": "Hi"}])
    assert vicuna == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: Hi ASSISTANT:"
    )
    openbuddy = ChatTemplate.builtin("openbuddy", tokenizer).render([{"role": "user", "content": "Hi"}])
    assert "Assistant (named Buddy)" in openbuddy
    assert openbuddy.endswith("\nUser: Hi\nAssistant:")


def test_sentences_of_the_template_reach_the_client(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        make(MISTRAL, tokenizer).render([USER, USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages.x.y }}", "{{ messages[0].content + 1 }}"])
def test_a_failing_template_is_a_bad_request(tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template") as caught:
        make(template, tokenizer).render([USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[0] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ namespace(_a=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ],
)
def test_templates_run_in_a_sandbox(tokenizer: Tokenizer, template: str) -> None:
    messages = [dict(USER)]
    ours = make(template, tokenizer)
    with pytest.raises(InvalidRequest):
        ours.render(messages)
    assert messages == [USER]


def test_a_template_that_does_not_compile_names_file_and_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_text("fine\n{% for %}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja, line 2"):
        ChatTemplate.from_checkpoint(tmp_path, tokenizer)


def test_parts_become_text_where_the_template_wants_text(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    message = {"role": "user", "content": parts}
    assert "user\none\ntwo<" in make(CHATML_TOOLS, tokenizer).render([message])
    assert make(PARTS_OR_TEXT, tokenizer).render([message]) == "user:[one][two];"
    assert make(PARTS_OR_TEXT, tokenizer).render([USER | {"content": "x"}]) == "user:x;"
    assert make(ONLY_PARTS, tokenizer).render([message]) == "user:[one][two];"
    assert make(ONLY_PARTS, tokenizer).render([USER | {"content": "x"}]) == "user:[x];"


def test_a_part_that_is_not_text_is_refused_by_name(tokenizer: Tokenizer) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, image]}
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content\[1\] is of type 'image_url'"):
        make(CHATML_TOOLS, tokenizer).render([USER, message])
    assert make(PARTS_OR_TEXT, tokenizer).render([message]) == "user:[a]<image>;"


def test_refusal_parts_are_text() -> None:
    message = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert prepare_messages([message], TemplateTraits())[0]["content"] == "No."


def test_developer_becomes_system_unless_known(tokenizer: Tokenizer) -> None:
    messages = [{"role": "developer", "content": "D"}, USER]
    assert "<|im_start|>system\nD" in make(CHATML_TOOLS, tokenizer).render(messages)
    knows = "{% for m in messages %}{% if m.role == 'developer' %}dev{% else %}{{ m.role }}{% endif %},{% endfor %}"
    assert make(knows, tokenizer).render(messages) == "dev,user,"


@pytest.mark.parametrize("template", [CHATML_TOOLS, LLAMA3_TOOLS])
def test_arguments_become_objects_for_templates_that_write_json(tokenizer: Tokenizer, template: str) -> None:
    ours = make(template, tokenizer)
    as_text = ours.render(tool_conversation('{"city":"Köln"}'), tools=TOOLS)
    assert as_text == ours.render(tool_conversation({"city": "Köln"}), tools=TOOLS)
    assert '{"city": "Köln"}' in as_text


def test_arguments_stay_text_for_templates_that_join_text(tokenizer: Tokenizer) -> None:
    rendered = make(TEXT_ARGUMENTS, tokenizer).render(tool_conversation('{"city":"Köln"}'))
    assert 'weather({"city":"Köln"})' in rendered


def test_arguments_that_are_not_json_stay_as_they_are(tokenizer: Tokenizer) -> None:
    assert "{broken" in make(CHATML_TOOLS, tokenizer).render(tool_conversation("{broken"), tools=TOOLS)


@pytest.mark.parametrize("template", [CHATML_TOOLS, LLAMA3_TOOLS, TEXT_ARGUMENTS, PARTS_OR_TEXT])
@pytest.mark.parametrize("is_missing", [True, False])
def test_null_content_is_never_written(tokenizer: Tokenizer, template: str, is_missing: bool) -> None:
    messages = tool_conversation('{"city": "x"}')
    expected = make(template, tokenizer).render(messages)
    messages[1]["content"] = None
    if is_missing:
        del messages[1]["content"]
    assert make(template, tokenizer).render(messages) == expected
    assert "None" not in expected


def test_messages_are_left_as_they_are(tokenizer: Tokenizer) -> None:
    messages = tool_conversation('{"city": "x"}')
    before = json.dumps(messages)
    make(LLAMA3_TOOLS, tokenizer).render(messages)
    assert json.dumps(messages) == before


def test_further_variables_reach_the_template(tokenizer: Tokenizer) -> None:
    template = make("{{ enable_thinking }}{{ messages | length }}{{ eos_token }}{{ documents }}", tokenizer)
    assert template.render([USER], enable_thinking=False) == "False1</s>None"
    assert template.render([USER], eos_token="!", documents=[]) == "1![]"


def test_the_date_is_known(tokenizer: Tokenizer) -> None:
    assert make("{{ strftime_now('%Y') }}", tokenizer).render([USER]).isdigit()


def write_config(directory: Path, chat_template: Any) -> Path:
    content = json.dumps({"chat_template": chat_template})
    (directory / "tokenizer_config.json").write_text(content, encoding="utf-8")
    return directory


def test_template_in_tokenizer_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = ChatTemplate.from_checkpoint(write_config(tmp_path, "config"), tokenizer)
    assert template is not None
    assert template.render([USER]) == "config"
    assert template.source == str(tmp_path / "tokenizer_config.json")


def test_named_templates(tmp_path: Path, tokenizer: Tokenizer) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    template = ChatTemplate.from_checkpoint(write_config(tmp_path, named), tokenizer)
    assert template is not None
    assert template.render([USER]) == template.render([USER], tools=[]) == "plain"
    assert template.render([USER], tools=TOOLS) == "tools"


def test_files_come_before_the_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_config(tmp_path, "config")
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tool file", encoding="utf-8")
    template = ChatTemplate.from_checkpoint(tmp_path, tokenizer)
    assert template is not None
    assert template.render([USER]) == "file"
    assert template.render([USER], tools=TOOLS) == "tool file"
    assert template.source == str(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("OpenBuddy/openbuddy-llama2-13b-v8.1", "openbuddy"),
        ("openbuddy-mistral-7b-instruct", "openbuddy"),
        ("teknium/OpenHermes-2.5-Mistral-7B", "chatml"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2"),
        ("meta-llama/Llama-2-7b-hf", None),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistral"),
        ("HuggingFaceH4/zephyr-7b-beta", "zephyr"),
        ("google/gemma-7b-it", "gemma"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
        ("tiiuae/falcon_7b_instruct", "falcon"),
        ("chavinlo/alpaca-native", "alpaca"),
        ("Qwen/Qwen-7B-Chat", "chatml"),
        ("gpt2", None),
        ("", None),
    ],
)
def test_built_in_template_by_name(name: str, expected: str | None) -> None:
    assert builtin_template_for(name) == expected


def test_every_named_template_exists() -> None:
    assert set(BUILT_IN_EXAMPLES) == set(builtin_templates())


def test_checkpoint_without_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = tmp_path / "vicuna-7b-v1.1"
    directory.mkdir()
    template = ChatTemplate.from_checkpoint(directory, tokenizer)
    assert template is not None
    assert template.source == "built-in template vicuna"
    nameless = tmp_path / "model"
    nameless.mkdir()
    assert ChatTemplate.from_checkpoint(nameless, tokenizer) is None
    by_hub_id = ChatTemplate.from_checkpoint(nameless, tokenizer, name="google/gemma-2b-it")
    assert by_hub_id is not None
    assert by_hub_id.source == "built-in template gemma"
    (nameless / "config.json").write_text('{"_name_or_path": "x/openbuddy-7b"}', encoding="utf-8")
    by_config = ChatTemplate.from_checkpoint(nameless, tokenizer)
    assert by_config is not None
    assert by_config.source == "built-in template openbuddy"


def test_override(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_config(tmp_path, "config")
    named = ChatTemplate.from_checkpoint(tmp_path, tokenizer, override="plain")
    assert named is not None
    assert named.render(PLAIN[1:]) == "Hello.\nBye"
    file = tmp_path / "own.jinja"
    file.write_text("own", encoding="utf-8")
    own = ChatTemplate.from_checkpoint(tmp_path, tokenizer, override=str(file))
    assert own is not None
    assert own.render([USER]) == "own"
    for wrong in ("no-such-thing", str(tmp_path)):
        with pytest.raises(ConfigError, match="one of alpaca, chatml"):
            ChatTemplate.from_checkpoint(tmp_path, tokenizer, override=wrong)


def test_damaged_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        ChatTemplate.from_checkpoint(tmp_path, tokenizer)


STRICT_ROLES = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('Unknown') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


def test_tools_calls_and_results_become_text_for_templates_that_know_none(tokenizer: Tokenizer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"what": "é"}'}}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "So:", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "name": "look_up", "content": "One."},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Two."}]},
    ]
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Look up."}}]
    rendered = make(STRICT_ROLES, tokenizer).render(messages, tools=tools)
    written = '{"name": "look_up", "arguments": {"what": "é"}}'
    assert rendered.startswith(
        "[user] These tools can be called:\n" + '{"name": "look_up", "description": "Look up."}\n'
    )
    assert "\n\nLook.\n[assistant] So:\n[" + f"{written}, {written}]\n" in rendered
    assert "[user] The result of look_up:\nOne." in rendered
    assert rendered.endswith("Two.\n")
    assert rendered.count("[user]") == 2


def test_tools_are_explained_in_the_system_message_where_there_is_one(tokenizer: Tokenizer) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Look."}]
    rendered = make(template, tokenizer).render(messages, tools=[{"type": "function", "function": {"name": "f"}}])
    assert rendered.startswith("[system] Be brief.\n\nThese tools can be called:")
    assert rendered.endswith("[user] Look.\n")


def test_calls_that_come_out_only_without_content_have_none(tokenizer: Tokenizer) -> None:
    template = (
        "{{ tools }}{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
        "<call>{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    rendered = make(template, tokenizer).render([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert rendered.endswith('<call>f {"a": 1}')
