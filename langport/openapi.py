"""The OpenAPI 3.1 document, made from the structs that decode the requests, so that the two cannot differ.

Specification: spec.openapis.org/oas/v3.1.0. The wire types are imported only when the document is made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgspec

from langport import __version__

_ABOUT = (
    "Language models behind OpenAI's API. Every path under /v1 also answers without /v1, and as "
    "/v1/engines/{model}/... and /openai/deployments/{model}/... for older and Azure clients. "
    "/v1/messages is Anthropic's API, with its form of errors. "
    "The key, where the server asks for one, goes into the Authorization header as a bearer token, into api-key or "
    "x-api-key. x-langport-strict: true refuses fields that are not described here; without it they are listed in the "
    "answer's x-langport-ignored."
)

_TEXT_INPUTS: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    ]
}
"""The four shapes that `langport.wire.inputs` reads; msgspec cannot express them."""

_MEANINGS = {
    "model": "The name of a served model or alias; GET /v1/models lists them.",
    "messages": "The conversation so far, oldest first.",
    "prompt": "What to continue: text, or token ids that are used exactly as given.",
    "input": "What to embed: text, or token ids that are used exactly as given.",
    "max_tokens": "Most tokens to generate. Completions: 4096; chat: the rest of the context.",
    "max_completion_tokens": "Most tokens to generate; goes before max_tokens.",
    "min_tokens": "No end before so many tokens. Default 0.",
    "temperature": "0 takes the likeliest token, 1 samples as the model predicts. Default 1.",
    "top_p": "Sample from the likeliest tokens that together have this probability. Default 1.",
    "top_k": "Sample from so many likeliest tokens; 0 or -1 is off.",
    "min_p": "Leave out tokens less likely than this share of the likeliest one.",
    "n": "How many choices to generate per prompt. Default 1.",
    "stream": "Send the answer in pieces as server-sent events while it is generated.",
    "stream_options": "include_usage: end the stream with a chunk that counts the tokens.",
    "stop": "Up to four strings that end the answer; they are not part of it.",
    "stop_token_ids": "Token ids that end the answer.",
    "ignore_eos": "Do not end at the model's end token.",
    "presence_penalty": "Makes tokens less likely that have occurred. Default 0.",
    "frequency_penalty": "Makes tokens less likely the more often they have occurred. Default 0.",
    "repetition_penalty": "Above 1 makes tokens of prompt and answer less likely. Default 1.",
    "logit_bias": "Token ids and what to add to their logits.",
    "cache_salt": "Requests with different salts share no cached beginnings of prompts.",
    "seed": "The same seed gives the same answer.",
    "logprobs": "Log-probabilities: in chat whether to return them, in completions of how many tokens each.",
    "top_logprobs": "How many of the likeliest tokens to list at each place.",
    "prompt_logprobs": "Log-probabilities of the prompt's tokens and of so many likeliest ones at each place.",
    "echo": "Begin the answer with the prompt.",
    "suffix": "What comes after the answer.",
    "best_of": "Generate so many and return the n best; with use_beam_search the number of beams.",
    "use_beam_search": "Search for the n likeliest answers with best_of beams instead of drawing them.",
    "length_penalty": "Beam search: above 0 prefers longer answers. Default 1.",
    "early_stopping": 'Beam search: end at best_of finished answers, or "never" before none can be better.',
    "system": "What the model is told before the conversation.",
    "stop_sequences": "Strings that end the answer; they are not part of it.",
    "thinking": "Whether the model thinks before it answers, and whether its thoughts are shown.",
    "tools": "Functions and custom tools that the model may call.",
    "tool_choice": "Whether tools may or must be called: none, auto, required, or which one or ones.",
    "parallel_tool_calls": "Whether an answer may hold several calls. Default true.",
    "functions": "The older form of tools; an answer holds one function_call.",
    "function_call": "The older form of tool_choice.",
    "reasoning_effort": "How much to think before the answer, for templates that read it; none switches it off.",
    "response_format": "Text, any JSON object, or JSON that follows a schema: kept to, or refused.",
    "structured_outputs": "What the answer must look like: JSON after a schema, a regular expression that matches it "
    "whole, one of some choices, or a grammar (Lark, or EBNF with ::=).",
    "guided_json": "The older name of structured_outputs.json.",
    "guided_regex": "The older name of structured_outputs.regex.",
    "guided_choice": "The older name of structured_outputs.choice.",
    "guided_grammar": "The older name of structured_outputs.grammar.",
    "user": "Your name for the end user.",
    "instructions": "A system message for this response alone.",
    "previous_response_id": "The kept response that this one continues.",
    "store": "Keep the answer, so that it can be fetched by its id. Default false; in responses true.",
    "background": "Answer at once with an id, and work on the response in the background.",
    "truncation": "auto: drop the oldest items of a conversation that is too long; disabled: refuse it.",
    "include": "message.output_text.logprobs: log-probabilities of the answer's tokens.",
    "max_output_tokens": "Most tokens to generate, reasoning included.",
    "questions": "What to decide: predicates, choices and scores.",
    "query": "What the documents are ranked by.",
    "documents": "Texts, or objects with a text.",
    "top_n": "How many of the most relevant documents to return. Default 0: all.",
    "return_documents": "Whether results hold their document's text. Default true.",
    "max_tokens_per_doc": "Tokens that are read of each document. Default: all.",
    "text_1": "A text, or several.",
    "text_2": "A text for each of text_1, or several for the one.",
    "queries": "Another name of text_1.",
    "items": "Another name of text_2, with queries.",
    "data_1": "Another name of text_1.",
    "data_2": "Another name of text_2.",
    "truncation_side": "Where truncate_prompt_tokens leaves tokens out. Default: as the tokenizer is configured.",
    "use_activation": "false: the classifier's outputs, without the function that makes scores of them. Default true.",
    "activation": "The older name of use_activation.",
    "softmax": "The oldest name of use_activation.",
    "dimensions": "Length of the vectors, for models trained for it.",
    "encoding_format": "float: lists of numbers; base64: little-endian float32.",
    "tokens": "Token ids to turn into text.",
    "truncate_prompt_tokens": "Keep only so many tokens of the prompt, from its end.",
    "skip_special_tokens": "Leave special tokens out of the text. Default true.",
    "add_special_tokens": "Let the tokenizer add its special tokens. Default true.",
    "add_generation_prompt": "End the rendered conversation with the beginning of an answer. Default true.",
    "continue_final_message": "Continue the last message instead of answering it.",
    "chat_template_kwargs": "Further variables for the chat template.",
    "include_stop_str_in_output": "Keep the stop string in the answer.",
    "lora_name": "The name under which clients use the adapter, like a model's.",
    "lora_path": "PEFT's folder on the server's machine, or a hub id.",
    "base_model_name": "The model that the adapter belongs to, where several could take it.",
    "load_inplace": "Replace the adapter that has the name now.",
}

_TRUNCATES = {"truncate_prompt_tokens": "Cut what is longer than so many tokens; -1: than the model can read."}
_OF_RESPONSES = {
    "input": "What to answer: a text, or the items of a conversation, oldest first.",
    "text": "Text, JSON, or JSON after a schema, as text.format.",
}


@dataclass(frozen=True)
class _Operation:
    path: str
    summary: str
    request: type[msgspec.Struct]
    answer: type[msgspec.Struct] | None
    """None: one line of text."""
    example: dict[str, Any]
    required: list[str]
    streams: bool = False
    meanings: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of fields that mean something else here."""
    error: str = "Error"
    """The schema of what goes wrong."""


def openapi_document() -> dict[str, Any]:
    """The whole document, ready for JSON."""
    operations = _operations()
    types = [kind for operation in operations for kind in (_shaped(operation.request), operation.answer) if kind]
    types += [*_stored_types(), *_admin_types()]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    for operation in operations:
        _explain(schemas[operation.request.__name__], operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "LangPort", "version": __version__, "description": _ABOUT},
        "paths": _merged(
            {operation.path: {"post": _post(operation)} for operation in operations},
            _GETS,
            _with_ids(_stored()),
            _with_ids(_admin()),
        ),
        "components": {
            "schemas": {**schemas, **_SCHEMAS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"api-key": []}, {"x-api-key": []}, {}],
    }


def _merged(*parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Paths with all their methods."""
    paths: dict[str, dict[str, Any]] = {}
    for part in parts:
        for path, item in part.items():
            paths[path] = {**paths.get(path, {}), **item}
    return paths


def _stored_types() -> list[type[msgspec.Struct]]:
    from langport.wire import batches, files, stored, uploads

    return [
        stored.MetadataUpdate,
        stored.Deleted,
        files.FileObject,
        uploads.UploadRequest,
        uploads.CompleteRequest,
        uploads.Upload,
        uploads.UploadPart,
        batches.BatchRequest,
        batches.Batch,
    ]


def _stored() -> dict[str, dict[str, Any]]:
    """What is answered from the store."""
    return {**_stored_chats(), **_stored_responses(), **_files(), **_uploads(), **_batches()}


def _deleted() -> dict[str, Any]:
    return _json("What was deleted", _ref("Deleted"))


def _stored_chats() -> dict[str, dict[str, Any]]:
    from langport.wire import stored, stored_chats

    chats, chat = "/v1/chat/completions", "/v1/chat/completions/{completion_id}"
    completion = _ref("ChatCompletion")
    metadata = {"name": "metadata", "in": "query", "style": "deepObject", "schema": {"type": "object"}}
    of_chats = [*_query(stored_chats.ChatListQuery), metadata]
    update = {"metadata": {"project": "one"}}
    return {
        chats: {
            "get": _call("List the chat completions that were stored with store: true", _list(completion), of_chats)
        },
        chat: {
            "get": _call("One of them", _json("It", completion)),
            "post": _call("Replace its metadata", _json("It", completion), body=_body(_ref("MetadataUpdate"), update)),
            "delete": _call("Delete it", _deleted()),
        },
        chat + "/messages": {
            "get": _call("The messages it answers", _list({"type": "object"}), _query(stored.ListQuery))
        },
    }


def _stored_responses() -> dict[str, dict[str, Any]]:
    from langport.wire import stored

    response, an_item = "/v1/responses/{response_id}", {"type": "object"}
    return {
        response: {
            "get": _call("A response as it is now", _json("It", _ref("Response")), _query(stored.RetrieveQuery)),
            "delete": _call("Delete it", _deleted()),
        },
        response + "/cancel": {"post": _call("End the work on it in the background", _json("It", _ref("Response")))},
        response + "/input_items": {"get": _call("What it answers", _list(an_item), _query(stored.ItemsQuery))},
        "/v1/responses/compact": {"post": {"summary": "Not supported", "responses": {"400": _ERROR}}},
    }


def _files() -> dict[str, dict[str, Any]]:
    from langport.wire import files

    file, a_file = "/v1/files/{file_id}", _ref("FileObject")
    form = {
        "type": "object",
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": list(files.PURPOSES)},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
        },
        "required": ["file", "purpose"],
    }
    return {
        "/v1/files": {
            "get": _call("List files", _list(a_file), _query(files.FileListQuery)),
            "post": _call("Upload a file", _json("It", a_file), body={"multipart/form-data": {"schema": form}}),
        },
        file: {"get": _call("One file", _json("It", a_file)), "delete": _call("Delete it", _deleted())},
        file + "/content": {"get": _call("What is in it", _binary())},
    }


def _uploads() -> dict[str, dict[str, Any]]:
    upload, an_upload = "/v1/uploads/{upload_id}", _json("The upload", _ref("Upload"))
    part = {"type": "object", "properties": {"data": {"type": "string", "format": "binary"}}, "required": ["data"]}
    begun = {"bytes": 6, "filename": "in.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}
    whole = {"part_ids": ["part_0123"]}
    return {
        "/v1/uploads": {
            "post": _call("Begin a file that comes in parts", an_upload, body=_body(_ref("UploadRequest"), begun))
        },
        upload + "/parts": {
            "post": _call(
                "Add a part", _json("The part", _ref("UploadPart")), body={"multipart/form-data": {"schema": part}}
            )
        },
        upload + "/complete": {
            "post": _call("Make a file of its parts", an_upload, body=_body(_ref("CompleteRequest"), whole))
        },
        upload + "/cancel": {"post": _call("Give it up", an_upload)},
    }


def _batches() -> dict[str, dict[str, Any]]:
    from langport.wire import batches, stored

    batch, a_batch = "/v1/batches/{batch_id}", _ref("Batch")
    new_batch = {"input_file_id": "file-0123", "endpoint": batches.ENDPOINTS[0], "completion_window": "24h"}
    return {
        "/v1/batches": {
            "get": _call("List batches, newest first", _list(a_batch), _query(stored.ListQuery)),
            "post": _call(
                "Answer the lines of a file in the background",
                _json("The batch", a_batch),
                body=_body(_ref("BatchRequest"), new_batch),
            ),
        },
        batch: {"get": _call("One batch", _json("It", a_batch))},
        batch + "/cancel": {"post": _call("Cancel it", _json("It", a_batch))},
    }


def _admin_types() -> list[type[msgspec.Struct]]:
    from langport.gateway import model_admin
    from langport.wire import keys

    return [
        keys.CreateKeyRequest,
        keys.ChangeKeyRequest,
        keys.RotateKeyRequest,
        keys.KeyObject,
        keys.KeyList,
        keys.UsageList,
        model_admin.ModelObject,
        model_admin.ModelList,
    ]


def _admin() -> dict[str, dict[str, Any]]:
    """What the admin key opens."""
    a_key, a_model = _json("The key", _ref("KeyObject")), _json("The model now", _ref("ModelObject"))
    made = _json("The key; its secret, as key, is in no other answer", _ref("KeyObject"))
    new_key = {"name": "Anna", "models": ["langport-demo-chat"], "budgets": [{"per": "day", "tokens": 1000000}]}
    day = {"type": "string", "format": "date"}
    words: dict[str, dict[str, Any]] = {"from": day, "to": day, "group_by": _TEXT, "key_id": _TEXT, "model": _TEXT}
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in words.items()]
    names = {"type": "array", "items": _TEXT}
    reloaded = {"object": {"const": "settings.reload"}, "changed": names, "need_restart": names}
    paths: dict[str, dict[str, Any]] = {
        "/admin/keys": {
            "get": _call("List the keys, revoked ones too", _json("All of them", _ref("KeyList"))),
            "post": _call("Make a key", made, body=_body(_ref("CreateKeyRequest"), new_key)),
        },
        "/admin/keys/{key_id}": {
            "get": _call("One key", a_key),
            "post": _call("Change it", a_key, body=_body(_ref("ChangeKeyRequest"), {"requests_per_minute": 60})),
            "delete": _call("Revoke it", a_key),
        },
        "/admin/keys/{key_id}/rotate": {
            "post": _call("Give it a new secret", made, body=_body(_ref("RotateKeyRequest"), {"grace_s": 3600}))
        },
        "/admin/usage": {"get": _call("What was used, in sums", _json("The sums", _ref("UsageList")), query)},
        "/admin/models": {"get": _call("List the models that come and go", _json("All of them", _ref("ModelList")))},
        "/admin/models/{name}/load": {"post": _call("Have a model in memory", a_model)},
        "/admin/models/{name}/unload": {"post": _call("Let it go when the requests in it have ended", a_model)},
        "/admin/reload": {
            "post": _call("Read the settings again", _json("What changed", {"type": "object", "properties": reloaded}))
        },
    }
    for item in paths.values():
        for operation in item.values():
            operation["tags"] = ["admin"]
            operation["description"] = "Needs the server's --admin-key; without one there is no such path."
            operation["security"] = [{"bearer": []}, {"api-key": []}, {"x-api-key": []}]
    return paths


def _call(
    summary: str,
    answer: dict[str, Any],
    query: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An operation; its path's parameters are added by `_with_ids`."""
    parameters = {"parameters": query} if query else {}
    request = {"requestBody": {"required": True, "content": body}} if body else {}
    return {"summary": summary, **parameters, **request, "responses": {"200": answer, "default": _ERROR}}


def _with_ids(paths: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The operations of the store with the ids of their paths, and a name each."""
    for path, item in paths.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        ids = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
        words = [part for part in path.removeprefix("/v1").split("/") if part and not part.startswith("{")]
        for method, operation in item.items():
            operation["parameters"] = [*ids, *operation.get("parameters", [])]
            operation["operationId"] = "_".join([*words, *(["one"] if ids else []), method])
    return paths


def _query(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    return [
        {"name": name, "in": "query", "schema": {key: value for key, value in field.items() if value is not None}}
        for name, field in schema["properties"].items()
    ]


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "example": example}}


def _list(entry: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": entry},
        "first_id": _TEXT_OR_NULL,
        "last_id": _TEXT_OR_NULL,
        "has_more": {"type": "boolean"},
    }
    return _json("One page", {"type": "object", "properties": fields, "required": list(fields)})


def _binary() -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    return {"description": "Its bytes", "content": {"application/octet-stream": {"schema": schema}}}


_QUESTION = [{"role": "user", "content": "Hello! What is your name?"}]


def _operations() -> list[_Operation]:
    return [*_texts(), *_responses(), *_scores(), *_anthropic(), *_tokens(), *_adapters()]


def _texts() -> list[_Operation]:
    """Chats and completions."""
    from langport.wire import chat, completions

    return [
        _Operation(
            "/v1/chat/completions",
            "Answer a conversation",
            chat.ChatRequest,
            chat.ChatCompletion,
            {"model": "langport-demo-chat", "messages": _QUESTION},
            required=["model", "messages"],
            streams=True,
        ),
        _Operation(
            "/v1/completions",
            "Continue a text",
            completions.CompletionRequest,
            completions.Completion,
            {"model": "langport-demo-chat", "prompt": "Once upon a time", "max_tokens": 64},
            required=["model"],
            streams=True,
        ),
    ]


def _responses() -> list[_Operation]:
    """Responses and decisions."""
    from langport.wire import decisions, responses

    return [
        _Operation(
            "/v1/responses",
            "Answer a conversation that the server may keep",
            responses.ResponseRequest,
            responses.Response,
            {"model": "langport-demo-chat", "input": "Hello! What is your name?"},
            required=["model", "input"],
            streams=True,
            meanings=_OF_RESPONSES,
        ),
        _Operation(
            "/v1/responses/input_tokens",
            "Count the tokens that a response's model would read",
            responses.InputTokensRequest,
            responses.InputTokens,
            {"model": "langport-demo-chat", "input": "Hello! What is your name?"},
            required=["model", "input"],
            meanings=_OF_RESPONSES,
        ),
        _Operation(
            "/v1/decisions",
            "Answer questions about an input with probabilities",
            decisions.DecisionRequest,
            decisions.Decision,
            {
                "model": "langport-demo-chat",
                "input": "The train was two hours late. I want my money back.",
                "questions": [{"type": "predicate", "instructions": "The customer is content."}],
            },
            required=["model", "input", "questions"],
            meanings={"input": "What the questions are about: a text, or a conversation."},
        ),
    ]


def _scores() -> list[_Operation]:
    """Vectors, and what texts have to do with each other."""
    from langport.wire import classify, embeddings, scores

    return [
        _Operation(
            "/v1/embeddings",
            "Turn texts into vectors",
            embeddings.EmbeddingRequest,
            embeddings.EmbeddingList,
            {"model": "langport-demo-embed", "input": ["first text", "second text"]},
            required=["model", "input"],
        ),
        _Operation(
            "/v1/rerank",
            "Rank documents by what they have to do with a query (also at /v2/rerank)",
            scores.RerankRequest,
            scores.Rerank,
            {
                "model": "langport-demo-embed",
                "query": "Where does the cat sit?",
                "documents": ["The cat sat on the mat.", "Quantum field theory."],
                "top_n": 1,
            },
            required=["model", "query", "documents"],
            meanings=_TRUNCATES,
        ),
        _Operation(
            "/v1/score",
            "Say how much texts have to do with each other",
            scores.ScoreRequest,
            scores.ScoreList,
            {"model": "langport-demo-embed", "text_1": "A cat.", "text_2": ["A kitten.", "Physics."]},
            required=["model"],
            meanings={**_TRUNCATES, "documents": "Another name of text_2, with queries."},
        ),
        _Operation(
            "/v1/classify",
            "Find the likeliest of a classifier's labels for texts",
            classify.ClassifyRequest,
            classify.ClassifiedList,
            {"model": "my-classifier", "input": ["I like it.", "I want my money back."]},
            required=["model", "input"],
            meanings=_TRUNCATES,
        ),
    ]


def _anthropic() -> list[_Operation]:
    """Anthropic's API."""
    from langport.wire import anthropic

    return [
        _Operation(
            "/v1/messages",
            "Answer a conversation, in Anthropic's form",
            anthropic.MessagesRequest,
            anthropic.MessageAnswer,
            {"model": "langport-demo-chat", "max_tokens": 64, "messages": _QUESTION},
            required=["model", "max_tokens", "messages"],
            streams=True,
            error="AnthropicError",
        ),
        _Operation(
            "/v1/messages/count_tokens",
            "Count the tokens of a conversation, in Anthropic's form",
            anthropic.CountTokensRequest,
            anthropic.TokenCount,
            {"model": "langport-demo-chat", "messages": _QUESTION},
            required=["model", "messages"],
            error="AnthropicError",
        ),
    ]


def _tokens() -> list[_Operation]:
    """Texts and token ids."""
    from langport.wire import tokens

    return [
        _Operation(
            "/tokenize",
            "Turn text into token ids",
            tokens.TokenizeRequest,
            tokens.TokenizeResponse,
            {"model": "langport-demo-chat", "prompt": "Hello!"},
            required=["model"],
        ),
        _Operation(
            "/detokenize",
            "Turn token ids into text",
            tokens.DetokenizeRequest,
            tokens.DetokenizeResponse,
            {"model": "langport-demo-chat", "tokens": [1, 2, 3]},
            required=["model", "tokens"],
        ),
    ]


def _adapters() -> list[_Operation]:
    """LoRA adapters that come and go."""
    from langport.wire import adapters

    return [
        _Operation(
            "/v1/load_lora_adapter",
            "Serve one more LoRA adapter (only with --allow-adapter-updates)",
            adapters.LoadAdapterRequest,
            None,
            {"lora_name": "polite", "lora_path": "/adapters/polite"},
            required=["lora_name", "lora_path"],
        ),
        _Operation(
            "/v1/unload_lora_adapter",
            "Serve a LoRA adapter no longer (only with --allow-adapter-updates)",
            adapters.UnloadAdapterRequest,
            None,
            {"lora_name": "polite"},
            required=["lora_name"],
        ),
    ]


def _shaped(request: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The struct without its unread fields: those have no type, and all but the inputs are refused by name."""
    fields = [
        (field.name, field.type, field.default)
        for field in msgspec.structs.fields(request)
        if field.type is not msgspec.Raw
    ]
    return msgspec.defstruct(request.__name__, fields, kw_only=True)


def _explain(schema: dict[str, Any], operation: _Operation) -> None:
    """Add to a request's schema what the struct does not say, the most important fields first."""
    fields = schema["properties"]
    for field in msgspec.structs.fields(operation.request):
        if field.name in ("prompt", "input") and field.type is msgspec.Raw:
            fields[field.name] = dict(_TEXT_INPUTS)
    for name, field_schema in fields.items():
        if field_schema.get("default", ...) is None:
            del field_schema["default"]
        meaning = operation.meanings.get(name) or _MEANINGS.get(name)
        if meaning:
            field_schema["description"] = meaning
    first = [name for name in ("model", "messages", "prompt", "input") if name in fields]
    schema["properties"] = {name: fields[name] for name in [*first, *fields]}
    schema["required"] = operation.required


def _post(operation: _Operation) -> dict[str, Any]:
    answers: dict[str, Any] = {"text/plain": {"schema": _TEXT}}
    if operation.answer is not None:
        answers = {"application/json": {"schema": _ref(operation.answer.__name__)}}
    if operation.streams:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"schema": _ref(operation.request.__name__), "example": operation.example}
    return {
        "summary": operation.summary,
        "operationId": operation.path.removeprefix("/v1").strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": {"description": "The answer", "content": answers}, "default": _error(operation.error)},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(schema: str) -> dict[str, Any]:
    return _json("What is wrong with the request, or with the server", _ref(schema))


_ERROR = _error("Error")
_STATE = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
_MODEL_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_OPEN: dict[str, Any] = {"security": []}

_GETS: dict[str, Any] = {
    "/v1/models": {
        "get": {
            "summary": "List the served models and aliases",
            "operationId": "models_list",
            "responses": {"200": _json("All of them", _ref("ModelList")), "default": _ERROR},
        }
    },
    "/v1/models/{id}": {
        "get": {
            "summary": "One model or alias",
            "operationId": "models_retrieve",
            "parameters": [{**_MODEL_ID, "description": "Its name; a slash may be raw or %2F."}],
            "responses": {"200": _json("Its entry", _ref("Model")), "default": _ERROR},
        }
    },
    "/health": {
        "get": {
            "summary": "Whether the process lives",
            "operationId": "health",
            "responses": {"200": _json("It does", _STATE)},
            **_OPEN,
        }
    },
    "/ready": {
        "get": {
            "summary": "Whether every model answers",
            "operationId": "ready",
            "responses": {"200": _json("All do", _STATE), "503": _json("Which do not, and why", _STATE)},
            **_OPEN,
        }
    },
    "/metrics": {
        "get": {
            "summary": "Figures for Prometheus",
            "operationId": "metrics",
            "responses": {
                "200": {
                    "description": "In its text format",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                },
                "default": _ERROR,
            },
        }
    },
}

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_SCHEMAS: dict[str, Any] = {
    "Model": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "root": {"type": "string", "description": "The model that answers; differs from id for an alias."},
            "parent": {"type": "string", "description": "Of a LoRA adapter: its base model."},
            "max_model_len": {"type": "integer", "description": "Context length in tokens."},
        },
        "required": ["id", "object", "created", "owned_by"],
    },
    "ModelList": {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
        "required": ["object", "data"],
    },
    "AnthropicError": {
        "type": "object",
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": _TEXT, "message": _TEXT},
                "required": ["type", "message"],
            },
            "request_id": _TEXT,
        },
        "required": ["type", "error", "request_id"],
    },
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _TEXT_OR_NULL,
                    "code": _TEXT_OR_NULL,
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
    },
}
