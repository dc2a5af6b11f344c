"""Chat messages on their way into a model: checked, brought into the form that templates read, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from langport.api.model import ServedModel
from langport.errors import InvalidRequest
from langport.text.tools import CustomInput, FunctionTool, custom_tool, input_arguments, template_tool
from langport.wire.chat import ContentPart, CustomTool, Function, Message, Tool


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain dictionaries, text parts as parts.

    Raises: InvalidRequest naming the message that is incomplete or holds what a text model cannot take.
    """
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls or [])
        if message.role == "tool" and message.tool_call_id not in called:
            _refuse_result(message, f"messages[{index}].tool_call_id")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _refuse_result(message: Message, place: str) -> None:
    if message.tool_call_id is None:
        raise InvalidRequest(f"{place} is required in a tool message.", param=place)
    raise InvalidRequest(
        f"{place} is {message.tool_call_id!r}, but no earlier message has a tool call with this id.", param=place
    )


def read_tools(tools: Sequence[Tool]) -> list[FunctionTool]:
    """The tools of a request. Raises: InvalidRequest naming what is missing."""
    found = []
    for index, tool in enumerate(tools):
        place = f"tools[{index}].{tool.type}"
        if tool.type == "function" and tool.function is not None:
            found.append(function_tool(tool.function))
        elif tool.type == "custom" and tool.custom is not None:
            found.append(custom_tool(tool.custom.name, tool.custom.description, _input(tool.custom, place)))
        else:
            raise InvalidRequest(f"{place} is required.", param=place)
    return found


def _input(tool: CustomTool, place: str) -> CustomInput:
    wanted = tool.format
    if wanted is None or wanted.type == "text":
        return CustomInput()
    if wanted.grammar is None:
        place += ".format.grammar"
        raise InvalidRequest(f"{place} is required in a format of type grammar.", param=place)
    return CustomInput(wanted.grammar.syntax, wanted.grammar.definition, f"{place}.format.grammar.definition")


def function_tool(function: Function) -> FunctionTool:
    """A function's definition as the API's other parts know it."""
    return FunctionTool(function.name, function.description, function.parameters, function.strict)


def named_tool(name: str | None, kind: str, tools: Sequence[FunctionTool], param: str) -> str:
    """The name, which `param` says. Raises: InvalidRequest where no tool of that kind has it."""
    for tool in tools:
        if tool.name == name and (tool.custom is not None) == (kind == "custom"):
            return tool.name
    where = "functions" if param == "function_call" else "tools"
    raise InvalidRequest(f"{param} names the {kind} {name!r}, which is not in {where}.", param=param)


class EncodedPrompt(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    token_ids: list[int]


async def encode_prompt(
    model: ServedModel,
    messages: list[dict[str, Any]],
    *,
    tools: Sequence[FunctionTool] = (),
    add_generation_prompt: bool | None = None,
    continues_last: bool = False,
    variables: dict[str, Any] | None = None,
    add_special_tokens: bool | None = None,
) -> EncodedPrompt:
    """The text of a conversation and its token ids.

    A decoder's template writes the special tokens; the tokenizer adds more only where that is asked for.
    An encoder-decoder without a template reads the messages' texts, a line each.
    Raises: InvalidRequest when the model has no template, or its template refuses the messages.
    """
    is_decoder = model.checkpoint.kind == "decoder"
    if model.template is None:
        if tools:
            raise InvalidRequest(
                f"The model {model.name} has no chat template, so it cannot read tools; leave them out.", param="tools"
            )
        if is_decoder:
            raise InvalidRequest(
                f"The model {model.name} has no chat template, so it cannot take messages. Use completions, "
                f"or start the server with --chat-template and a template's file or name.",
                param="messages",
            )
        text = "\n".join(_text(message["content"]) for message in messages if message.get("content"))
    else:
        if add_generation_prompt is None:
            add_generation_prompt = not continues_last
        text = model.template.render(
            messages,
            tools=[template_tool(tool) for tool in tools] or None,
            add_generation_prompt=add_generation_prompt,
            **_safe(variables or {}),
        )
        if continues_last:
            text = _up_to_end_of(_text(messages[-1].get("content") or ""), text)
    is_opened = not is_decoder if add_special_tokens is None else add_special_tokens
    (token_ids,) = await model.tokenizer.encode_async([text], add_special_tokens=is_opened)
    if not token_ids:
        raise InvalidRequest("The messages hold no text that the model could read.", param="messages")
    return EncodedPrompt(text, token_ids)


def _safe(variables: dict[str, Any]) -> dict[str, Any]:
    """Raises: InvalidRequest for variables that the server itself sets."""
    for name in ("self", "messages", "tools", "add_generation_prompt"):
        if name in variables:
            raise InvalidRequest(
                f"chat_template_kwargs must not set {name}; the server does that.",
                param="chat_template_kwargs",
            )
    return variables


def _up_to_end_of(last: str, rendered: str) -> str:
    """The prompt without what the template puts after the last message, so that the model goes on in it."""
    last = last.strip()
    position = rendered.rfind(last) if last else -1
    if position < 0:
        raise InvalidRequest(
            "continue_final_message needs a last message whose text the chat template keeps as it is.",
            param="continue_final_message",
        )
    return rendered[: position + len(last)]


def _message(message: Message, where: str) -> dict[str, Any]:
    if message.audio is not None:
        place = f"{where}.audio"
        raise InvalidRequest(f"{place}: this model knows no spoken answers; leave it out.", param=place)
    if message.role == "function" and message.name is None:
        raise InvalidRequest(f"{where}.name is required in a function message.", param=f"{where}.name")
    found: dict[str, Any] = {"role": "tool" if message.role == "function" else message.role}
    calls = _tool_calls(message, where)
    if message.content is None:
        if message.role != "assistant" or not (
            calls or message.refusal or message.reasoning_content or message.reasoning
        ):
            raise InvalidRequest(f"{where}.content is required.", param=f"{where}.content")
        found["content"] = message.refusal
    elif isinstance(message.content, str):
        found["content"] = message.content
    else:
        found["content"] = [
            {"type": "text", "text": _part(part, f"{where}.content[{index}]")}
            for index, part in enumerate(message.content)
        ]
    for name in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            found[name] = value
    if calls:
        found["tool_calls"] = calls
    return found


def _tool_calls(message: Message, where: str) -> list[dict[str, Any]]:
    """The calls of an earlier turn, the older single `function_call` among them."""
    calls = []
    for index, call in enumerate(message.tool_calls or []):
        if call.type == "custom" and call.custom:
            calls.append({"id": call.id, **_call(call.custom.name, input_arguments(call.custom.input))})
        elif call.type == "function" and call.function:
            calls.append({"id": call.id, **_call(call.function.name, call.function.arguments)})
        else:
            place = f"{where}.tool_calls[{index}].{call.type}"
            raise InvalidRequest(f"{place} is required.", param=place)
    if message.function_call is not None:
        calls.append(_call(message.function_call.name, message.function_call.arguments))
    return calls


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _part(part: ContentPart, where: str) -> str:
    if part.type not in ("text", "refusal"):
        raise InvalidRequest(f"{where} is of type {part.type}; this model reads text only.", param=f"{where}.type")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"{where}.{part.type} is required.", param=f"{where}.{part.type}")
    return text


def _text(content: str | list[dict[str, str]]) -> str:
    """Content as one text, a line per part."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
