"""Chat messages to the one text a model was trained on, by the checkpoint's Jinja template.

Templates come from strangers, so they run in Jinja's sandbox, with the same functions, filters and variables
that transformers gives them: a template renders to the same text here as there. OpenAI's messages are
fitted to what each template can read first (see `TemplateTraits`), which is found out by trying it once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from langport.errors import CheckpointError, ConfigError, InvalidRequest
from langport.text.tokenizer import Tokenizer
from langport.text.tool_prompt import with_calls_as_text, with_results_as_text, with_tools

Message = dict[str, Any]

_TEMPLATES = resources.files("langport.text") / "templates"

_TEMPLATE_OF_NAME: tuple[tuple[tuple[str, ...], str], ...] = (
    # Families of fine-tuned models first: their names often hold that of the model they were made from.
    (("alpaca",), "alpaca"),
    (("nous-hermes-llama",), "alpaca"),
    (("openbuddy",), "openbuddy"),
    (("vicuna",), "vicuna"),
    (("wizardlm-13b",), "vicuna"),
    (("zephyr",), "zephyr"),
    (("tinyllama", "chat"), "zephyr"),
    (("chatml",), "chatml"),
    (("dolphin",), "chatml"),
    (("hermes-2",), "chatml"),
    (("codellama", "instruct"), "llama-2"),
    (("falcon", "instruct"), "falcon"),
    (("falcon", "chat"), "falcon"),
    (("gemma", "-it"), "gemma"),
    (("llama-2", "chat"), "llama-2"),
    (("llama2", "chat"), "llama-2"),
    (("llama-3", "instruct"), "llama-3"),
    (("llama3", "instruct"), "llama-3"),
    (("mistral", "instruct"), "mistral"),
    (("mixtral", "instruct"), "mistral"),
    (("phi-3",), "phi-3"),
    (("qwen", "chat"), "chatml"),
    (("qwen", "instruct"), "chatml"),
)
"""Built-in templates of checkpoints that carry none, by fragments that their name must hold, all of them."""

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def builtin_templates() -> list[str]:
    """Names that `--chat-template` accepts besides a file."""
    files = (file.name for file in _TEMPLATES.iterdir())
    return sorted(name.removesuffix(".jinja") for name in files if name.endswith(".jinja"))


def builtin_template_for(name: str) -> str | None:
    """The built-in template that fits a checkpoint's name: the first that fits, None when nothing does."""
    name = name.lower().replace("_", "-")
    fitting = (template for fragments, template in _TEMPLATE_OF_NAME if all(fragment in name for fragment in fragments))
    return next(fitting, None)


@dataclass(frozen=True)
class TemplateTraits:
    """What a template can read, beyond what every template can: messages with a role and a text."""

    takes_strings: bool = True
    takes_parts: bool = False
    """Content may be a list of {"type": "text", "text": ...}."""
    takes_null: bool = False
    """Content may be None beside tool calls."""
    wants_null: bool = False
    """Content must be None for tool calls to come out."""
    takes_argument_objects: bool = True
    """Arguments of tool calls are objects, not JSON text."""
    knows_developer: bool = False
    reads_tools: bool = True
    """Definitions of tools come out."""
    reads_calls: bool = True
    """Tool calls of earlier answers come out."""
    reads_results: bool = True
    """Messages with the role tool come out."""


class TemplateSource(NamedTuple):
    """A template's text and where it is from, for messages."""

    text: str
    origin: str


class ChatTemplate:
    """One checkpoint's template, compiled once. Safe to share between requests."""

    def __init__(self, sources: Mapping[str, TemplateSource], special_tokens: Mapping[str, str]) -> None:
        """`sources` by name, at least one: "default" is for all, "tool_use" for requests with tools.

        Raises: CheckpointError naming the origin and the line when one does not compile.
        """
        self._special_tokens = dict(special_tokens)
        self._compiled = {name: _Compiled(source, special_tokens) for name, source in sources.items()}
        self.source = sources.get("default", next(iter(sources.values()))).origin
        """Where the template came from, for people."""
        self.reads_tools = self._choose([_PROBE_TOOL]).traits.reads_tools
        """Whether the template itself explains tools; else they are explained in a message, as JSON."""
        self.text = "\n".join(source.text for source in sources.values())
        """All of it, to look for what the model knows."""

    @classmethod
    def from_checkpoint(
        cls, path: Path, tokenizer: Tokenizer, *, override: str | None = None, name: str = ""
    ) -> ChatTemplate | None:
        """The template of a checkpoint directory, or None when it has none and its name fits no built-in one.

        `override` is a built-in NAME or else a FILE; `name` is a further name of the model (its hub id).
        Raises: ConfigError for an override that is neither, CheckpointError for a damaged template.
        """
        if override is not None:
            return cls._from_override(override, tokenizer)
        sources = _templates_of_checkpoint(path)
        if sources:
            return cls(sources, tokenizer.named_tokens)
        for candidate in (name, path.resolve().name, _name_in_config(path)):
            builtin = builtin_template_for(candidate)
            if builtin is not None:
                return cls.builtin(builtin, tokenizer)
        return None

    @classmethod
    def builtin(cls, name: str, tokenizer: Tokenizer) -> ChatTemplate:
        """One of `builtin_templates()`."""
        text = (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        source = TemplateSource(text, f"built-in template {name}")
        return cls({"default": source}, tokenizer.named_tokens)

    @classmethod
    def _from_override(cls, override: str, tokenizer: Tokenizer) -> ChatTemplate:
        if override in builtin_templates():
            return cls.builtin(override, tokenizer)
        try:
            text = Path(override).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            names = ", ".join(builtin_templates())
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ConfigError(
                f"--chat-template {override}: {reason}, and no built-in template has that name. "
                f"Give a readable Jinja file or one of {names}."
            ) from error
        return cls({"default": TemplateSource(text, override)}, tokenizer.named_tokens)

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for these messages. `kwargs` are further variables for the template.

        Raises: InvalidRequest(param="messages") when the template refuses them.
        """
        compiled = self._choose(tools)
        if tools and messages and not compiled.traits.reads_tools:
            messages = with_tools(messages, tools)
        variables = self._special_tokens | {"documents": None} | kwargs
        variables |= {
            "messages": prepare_messages(messages, compiled.traits),
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return compiled.template.render(variables)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except Exception as error:  # the template is a stranger's program: it may fail in any way
            raise InvalidRequest(
                f"The model's chat template cannot render these messages: {type(error).__name__}: {error}",
                param="messages",
            ) from error

    def _choose(self, tools: list[dict[str, Any]] | None) -> _Compiled:
        if tools and "tool_use" in self._compiled:
            return self._compiled["tool_use"]
        return self._compiled.get("default") or next(iter(self._compiled.values()))


def prepare_messages(messages: Iterable[Message], traits: TemplateTraits) -> list[Message]:
    """OpenAI's messages as the template can read them. The given messages are left as they are.

    - content in parts becomes one text, a line per part, unless the template reads parts; and a text becomes
      a part for templates that read nothing else;
    - content that is null or missing becomes "" unless the template copes with null;
    - `developer` becomes `system` unless the template knows developers;
    - the JSON text of tool call arguments becomes an object, unless the template wants text. Text that is not
      JSON stays text;
    - reasoning is present under each name that templates read it by;
    - calls and results of tools become text for templates that leave them out.

    Raises: InvalidRequest(param="messages") for a part that is not text.
    """
    if not traits.reads_results:
        messages = with_results_as_text([*messages])
    return [_prepare_message(message, traits, index) for index, message in enumerate(messages)]


def _prepare_message(message: Message, traits: TemplateTraits, index: int) -> Message:
    reasoning = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    if message.get("tool_calls") and not traits.reads_calls:
        message = with_calls_as_text(message)
    content = _prepare_content(message.get("content"), traits, index)
    has_only_calls = bool(message.get("tool_calls")) and not content
    message = {**message, "content": None if has_only_calls and traits.wants_null else content}
    if message.get("role") == "developer" and not traits.knows_developer:
        message["role"] = "system"
    if message.get("tool_calls"):
        message["tool_calls"] = [_prepare_call(call, traits) for call in message["tool_calls"]]
    return message


def _prepare_content(content: Any, traits: TemplateTraits, index: int) -> Any:
    if content is None:
        if traits.takes_null:
            return None
        content = ""
    if isinstance(content, str):
        return content if traits.takes_strings else [{"type": "text", "text": content}]
    if traits.takes_parts or not isinstance(content, list):
        return content
    return "\n".join(_part_text(part, f"messages[{index}].content[{i}]") for i, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} is of type {kind!r}; this model reads only text parts.", param="messages")
    return text


def _prepare_call(call: Any, traits: TemplateTraits) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not traits.takes_argument_objects:
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


class _Compiled:
    """A compiled template and what it can read."""

    def __init__(self, source: TemplateSource, special_tokens: Mapping[str, str]) -> None:
        try:
            self.template = _compile(source.text)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"{source.origin}, line {error.lineno}: the chat template does not compile: {error.message}. "
                "Mend the file, or give another one by --chat-template."
            ) from error
        self.traits = _find_traits(self.template, source.text, special_tokens)


_PROBE = "langportprobe"
_PROBE_VALUE = "probevalue"
_PROBE_ARGUMENTS = {_PROBE: _PROBE_VALUE}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {_PROBE: {"type": "string", "description": "What."}}},
    },
}


def _find_traits(template: jinja2.Template, text: str, special_tokens: Mapping[str, str]) -> TemplateTraits:
    """Render small conversations in each form and see which come out right."""

    def render(*messages: Message, tools: Sequence[Any] | None = None) -> str | None:
        variables = {**special_tokens, "messages": list(messages), "tools": tools, "documents": None}
        try:
            return template.render(variables, add_generation_prompt=True)
        except Exception:  # a stranger's program; any failure means that this form is not understood
            return None

    def reads(content: Any) -> bool:
        rendered = render({"role": "user", "content": content})
        return rendered is not None and _PROBE in rendered and not _shows_python(rendered)

    def call(arguments: Any, content: Any = "") -> str | None:
        function = {"name": "look_up", "arguments": arguments}
        asked = {"role": "user", "content": "Look it up."}
        calling = {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": "call12345", "type": "function", "function": function}],
        }
        answered = {"role": "tool", "tool_call_id": "call12345", "name": "look_up", "content": "Found."}
        return render(asked, calling, answered, tools=[_PROBE_TOOL])

    takes_strings = reads(_PROBE)
    takes_parts = reads([{"type": "text", "text": _PROBE}])
    wants_null = not any(map(_shows_value, _each_form(call))) and any(map(_shows_value, _each_form(call, None)))
    takes_objects = _takes_argument_objects(*_each_form(call, None if wants_null else ""))
    arguments: Any = _PROBE_ARGUMENTS if takes_objects else json.dumps(_PROBE_ARGUMENTS)
    empty, null = call(arguments), call(arguments, None)
    written = null if wants_null else empty
    content: Any = "Hi." if takes_strings or not takes_parts else [{"type": "text", "text": "Hi."}]
    defined = render({"role": "user", "content": content}, tools=[_PROBE_TOOL])
    return TemplateTraits(
        takes_strings=takes_strings or not takes_parts,
        takes_parts=takes_parts,
        takes_null=null is not None and null == empty,
        wants_null=wants_null,
        takes_argument_objects=takes_objects,
        knows_developer="developer" in text,
        reads_tools=defined is not None and "look_up" in defined,
        reads_calls=_shows_value(written),
        reads_results=written is not None and "Found." in written,
    )


def _each_form(call: Callable[..., str | None], content: Any = "") -> tuple[str | None, str | None]:
    """A call with its arguments as an object and as text."""
    return call(_PROBE_ARGUMENTS, content), call(json.dumps(_PROBE_ARGUMENTS), content)


def _takes_argument_objects(with_object: str | None, with_text: str | None) -> bool:
    """Objects, as transformers wants them, unless only text comes out right."""
    return (_shows_value(with_object) and not _shows_python(with_object or "")) or not _shows_value(with_text)


def _shows_value(rendered: str | None) -> bool:
    return rendered is not None and _PROBE_VALUE in rendered


def _shows_python(rendered: str) -> bool:
    """A list or dict was printed as Python writes it, which no model was trained on."""
    return f"'{_PROBE}'" in rendered


def _templates_of_checkpoint(path: Path) -> dict[str, TemplateSource]:
    """Templates by name; files of their own come before those inside tokenizer_config.json."""
    sources = _templates_of_json(path / "tokenizer_config.json") | _templates_of_json(path / "chat_template.json")
    files = {file.stem: file for file in sorted(path.glob("additional_chat_templates/*.jinja"))}
    files["default"] = path / "chat_template.jinja"
    return sources | {
        name: TemplateSource(_read_text(file), str(file)) for name, file in files.items() if file.is_file()
    }


def _templates_of_json(file: Path) -> dict[str, TemplateSource]:
    found = _read_object(file).get("chat_template")
    if isinstance(found, str):
        found = {"default": found}
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if not isinstance(found, dict):
        return {}
    return {str(name): TemplateSource(text, str(file)) for name, text in found.items() if isinstance(text, str)}


def _name_in_config(path: Path) -> str:
    return str(_read_object(path / "config.json").get("_name_or_path") or "")


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read_text(file))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}. Download the checkpoint again.") from error
    return content if isinstance(content, dict) else {}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Download the checkpoint again.") from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the model says, for training; here it only lets its content through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_through"), [], [], body).set_lineno(line)

    def _through(self, caller: Callable[[], str]) -> str:
        return caller()


class _PlainDict:
    """`dict` for templates, without the attributes of the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """`namespace` for templates; names that begin with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Namespace(self=...) must work, hence no named self, as in Jinja's own class.
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: rename it in the template")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _PlainDict()
    environment.globals["namespace"] = _PlainNamespace
    return environment


@lru_cache(maxsize=64)
def _compile(text: str) -> jinja2.Template:
    return _environment().from_string(text)
