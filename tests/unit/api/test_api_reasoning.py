"""Reasoning in chat completions: apart from the content, counted, before whatever is asked of the answer."""

from __future__ import annotations

import pytest

from langport.testing import EOS
from tests.unit.api.test_api_tools import CALL, CITY, Followed, answer, tool

THINKER = (
    "{{ tools }}{{ reasoning_effort }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% elif opens %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
THOUGHT = "<think>\nHm, é.\n</think>\n\n"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
OPEN = {"chat_template_kwargs": {"opens": True}}


@pytest.mark.parametrize("tokens_per_delta", [1, 6, 1000])
async def test_reasoning_is_apart_and_counted(serve, says, tokens_per_delta):
    fake = serve(says(f"{THOUGHT}Yes."), template=THINKER, tokens_per_delta=tokens_per_delta)
    choice = await answer(fake)
    assert choice["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning": "Hm, é.",
        "reasoning_content": "Hm, é.",
    }
    usage = (await fake.chat()).json["usage"]
    num_thought = len(THOUGHT.rstrip().encode())
    assert usage["completion_tokens_details"]["reasoning_tokens"] == num_thought
    assert usage["completion_tokens"] == len(f"{THOUGHT}Yes.".encode()) + 1


async def test_reasoning_that_the_prompt_begins(serve, says):
    fake = serve(says("Hm.\n</think>\n\nYes."), template=THINKER)
    message = (await answer(fake, **OPEN))["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")


async def test_an_answer_that_ends_inside_its_reasoning(serve, says):
    fake = serve(says("Hm."), template=THINKER)
    choice = await answer(fake, **OPEN)
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("Hm.", None)
    reply = await fake.chat(**OPEN, n=2)
    assert reply.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2 * len("Hm. ")


async def test_without_reasoning_nothing_is_counted(serve, says):
    fake = serve(says("Yes."), template=THINKER)
    reply = await fake.chat()
    assert "reasoning" not in reply.json["choices"][0]["message"]
    assert reply.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_calls_behind_reasoning(serve, says):
    fake = serve(says(f"{THOUGHT}{CALL}"), template=THINKER)
    message = (await answer(fake, tools=[tool("weather", parameters=CITY)]))["message"]
    assert message["reasoning"] == "Hm, é."
    assert message["content"] is None
    assert message["tool_calls"][0]["function"]["name"] == "weather"


async def test_effort_reaches_the_template_and_none_switches_thinking_off(serve, says):
    fake = serve(says("Yes."), template=THINKER)
    await fake.chat(reasoning_effort="high")
    assert "Nonehigh<|im_start|>" in fake.prompt_text()
    await fake.chat(reasoning_effort="none")
    assert "</think>" in fake.prompt_text()
    await fake.chat(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert "</think>" not in fake.prompt_text()


async def test_reasoning_of_earlier_turns_reaches_the_template(serve, says):
    fake = serve(says("x"), template=THINKER)
    for name in ("reasoning", "reasoning_content"):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", name: "Hm."}]
        await fake.client.post("/v1/chat/completions", {"messages": [*messages, messages[0]]})
        assert "<think>\nHm.\n</think>" in fake.prompt_text()


async def test_log_probabilities_are_those_of_the_content(serve, says):
    fake = serve(says(f"{THOUGHT}Yes."), template=THINKER)
    tokens = (await answer(fake, logprobs=True))["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in tokens) == b"Yes."


async def test_marks_that_are_special_tokens(serve, says):
    template = THINKER.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    begin, end = range(EOS + 2, EOS + 4)
    fake = serve(says([begin, *b"Hm.", end, *b"Yes."]), template=template, special_tokens=["[THINK]", "[/THINK]"])
    message = (await answer(fake))["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    await fake.chat(response_format=FORMAT)
    followed = Followed(fake)
    assert followed.takes('[THINK]Hm.[/THINK]{"a": 1}')
    assert followed.takes('{"a": 1}')
    assert not followed.takes("[THINK]Hm.[/THINK]Yes.")


async def test_what_is_wanted_begins_behind_the_reasoning(serve, says):
    fake = serve(says("{}"), template=THINKER)
    await fake.chat(response_format=FORMAT)
    followed = Followed(fake)
    assert followed.takes(f'{THOUGHT}{{"a": 1}}')
    assert followed.takes('{"a": 1}')
    assert not followed.takes(f"{THOUGHT}Yes.")
    await fake.chat(response_format=FORMAT, **OPEN)
    followed = Followed(fake)
    assert followed.takes('Hm. {"a": 2}</think>\n\n{"a": 1}')
    assert not followed.takes("Hm.")
    await fake.chat(response_format=FORMAT, reasoning_effort="none")
    followed = Followed(fake)
    assert followed.takes('{"a": 1}')
    assert not followed.takes(f'{THOUGHT}{{"a": 1}}')


async def test_a_users_grammar_begins_behind_the_reasoning(serve, says):
    fake = serve(says("ab"), template=THINKER)
    await fake.chat(structured_outputs={"grammar": 'start: "a" rest\nrest: "b" | "c"'}, **OPEN)
    followed = Followed(fake)
    assert followed.takes("Hm.</think>\nac")
    assert not followed.takes("Hm.</think>ad")
    assert not followed.takes("ab")


async def test_required_calls_come_behind_the_reasoning(serve, says):
    fake = serve(says(f"{THOUGHT}{CALL}"), template=THINKER)
    tools = [tool("weather", parameters=CITY)]
    message = (await answer(fake, tools=tools, tool_choice="required"))["message"]
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    followed = Followed(fake)
    assert followed.takes(f"{THOUGHT}{CALL}")
    assert followed.takes(CALL)
    assert not followed.takes(THOUGHT)
    await fake.chat(tools=[tool("weather", parameters=CITY, strict=True)])
    followed = Followed(fake)
    assert followed.takes(f"{THOUGHT}Hello")
    assert followed.takes(f"{THOUGHT}So. {CALL}")
    assert not followed.takes(f"{THOUGHT}{CALL.replace('city', 'town')}")
