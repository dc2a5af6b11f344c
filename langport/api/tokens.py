"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from langport.api.http import Call, send_json
from langport.api.messages import encode_prompt, read_tools, template_messages
from langport.api.model import ServedModel, check_vocabulary
from langport.errors import InvalidRequest
from langport.wire.error import decode_body
from langport.wire.generation import is_given
from langport.wire.tokens import (
    DETOKENIZE_DECODER,
    TOKENIZE_DECODER,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)


async def tokenize(model: ServedModel, call: Call) -> None:
    """The token ids of a text or of a conversation. Raises: ApiError before anything was sent."""
    request = decode_body(TOKENIZE_DECODER, call.body)
    headers = call.ignored(request)
    info = await model.ready()
    token_ids = await _token_ids(request, model)
    response = TokenizeResponse(token_ids, len(token_ids), info.max_model_len)
    if request.return_token_strs:
        response.token_strs = [model.tokenizer.backend.id_to_token(token_id) or "" for token_id in token_ids]
    await send_json(call.send, response, headers)


async def detokenize(model: ServedModel, call: Call) -> None:
    """The text of token ids, special ones included. Raises: ApiError before anything was sent."""
    request = decode_body(DETOKENIZE_DECODER, call.body)
    headers = call.ignored(request)
    if request.tokens is None:
        raise InvalidRequest("tokens is required.", param="tokens")
    info = await model.ready()
    check_vocabulary(request.tokens, info.vocab_size, "tokens")
    text = model.tokenizer.decode(request.tokens, skip_special_tokens=False)
    await send_json(call.send, DetokenizeResponse(text), headers)


async def _token_ids(request: TokenizeRequest, model: ServedModel) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("Give either prompt or messages.", param="prompt")
    if request.messages is not None:
        if is_given(request.chat_template):
            raise InvalidRequest("chat_template is not supported by this server; leave it out.", param="chat_template")
        if request.continue_final_message and request.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        prompt = await encode_prompt(
            model,
            template_messages(request.messages),
            tools=read_tools(request.tools or []),
            add_generation_prompt=request.add_generation_prompt,
            continues_last=bool(request.continue_final_message),
            variables=request.chat_template_kwargs,
            add_special_tokens=request.add_special_tokens,
        )
        return prompt.token_ids
    (token_ids,) = await model.tokenizer.encode_async(
        [request.prompt or ""], add_special_tokens=request.add_special_tokens is not False
    )
    return token_ids
