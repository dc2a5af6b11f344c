"""What openai 1.109 and later get from the Responses API, and 3.54 from decisions; prints one JSON object.

    python responses.py '{"url": ..., "chat": ..., "embed": ..., "text2text": ...}'

Runs in an environment that holds the openai package and nothing of LangPort.
"""

import json
import sys
import time

import openai
from weather import Weather

given = json.loads(sys.argv[1])
CHAT = given["chat"]
client = openai.OpenAI(base_url=given["url"] + "/v1", api_key="EMPTY", max_retries=0)
ASK = "Hello! What is your name?"
found = {"version": openai.__version__}

first = client.responses.create(model=CHAT, input=ASK, temperature=0)
found["text"], found["status"], found["total_tokens"] = first.output_text, first.status, first.usage.total_tokens
found["retrieved"] = client.responses.retrieve(first.id).output_text
found["input_items"] = [item.content[0].text for item in client.responses.input_items.list(first.id)]

second = client.responses.create(model=CHAT, input="Why?", previous_response_id=first.id, temperature=0)
found["grew"] = second.usage.input_tokens > first.usage.total_tokens

with client.responses.stream(model=CHAT, input=ASK, temperature=0) as stream:
    events = [(event.type, event.sequence_number) for event in stream]
    found["streamed"] = stream.get_final_response().output_text
found["types"], found["numbers"] = list(dict.fromkeys(kind for kind, _ in events)), [number for _, number in events]

working = client.responses.create(model=CHAT, input=ASK, background=True, stream=True, temperature=0)
events = [next(working) for _ in range(4)]
working.close()
rest = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=3))
found["resumed"] = [event.sequence_number for event in (*events, *rest)]
found["resumed_text"] = rest[-1].response.output_text

working = client.responses.create(model=CHAT, input="Tell me a story.", background=True)
found["background"] = working.status
found["cancelled"] = client.responses.cancel(working.id).status
working = client.responses.create(model=CHAT, input=ASK, background=True, temperature=0)
while working.status in ("queued", "in_progress"):
    time.sleep(0.02)
    working = client.responses.retrieve(working.id)
found["worked"] = working.output_text

client.responses.delete(first.id)
try:
    client.responses.retrieve(first.id)
except openai.NotFoundError as error:
    found["deleted"] = error.message
try:
    client.responses.create(model=CHAT, input=ASK, tools=[{"type": "web_search"}])
except openai.BadRequestError as error:
    found["refused"] = error.param

WEATHER = "What is the weather in Oslo?"
parsed = client.responses.parse(model=CHAT, input=WEATHER, text_format=Weather, temperature=0)
found["parsed"] = parsed.output_parsed.model_dump()
city = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
tool = {
    "type": "function",
    "name": "get_weather",
    "description": "Current weather.",
    "parameters": city,
    "strict": True,
}
fields = {"model": CHAT, "tools": [tool], "temperature": 0}
asked = client.responses.create(input=WEATHER, tool_choice="required", **fields)
(called, *_) = [item for item in asked.output if item.type == "function_call"]
found["called"] = {"name": called.name, "arguments": called.arguments}
results = [
    {"type": "function_call_output", "call_id": item.call_id, "output": "Sunny."}
    for item in asked.output
    if item.type == "function_call"
]
answered = client.responses.create(input=results, previous_response_id=asked.id, tool_choice="none", **fields)
found["answered"] = answered.status

grammar = {"syntax": "lark", "definition": 'start: ("up" | "down") "\\n"'}
flat = {"type": "custom", "name": "lift", "description": "Moves.", "format": {"type": "grammar", **grammar}}
fields = {"model": CHAT, "tools": [flat], "temperature": 0, "parallel_tool_calls": False}
with client.responses.stream(input="Go up.", tool_choice={"type": "custom", "name": "lift"}, **fields) as stream:
    events = [event for event in stream if event.type.startswith("response.custom_tool_call_input.")]
    asked = stream.get_final_response()
called = asked.output[0]
found["custom"] = {"type": called.type, "name": called.name, "input": called.input}
found["custom_streamed"] = ["".join(event.delta for event in events[:-1]), events[-1].input]
results = [{"type": "custom_tool_call_output", "call_id": item.call_id, "output": "It went."} for item in asked.output]
answered = client.responses.create(input=results, previous_response_id=asked.id, tool_choice="none", **fields)
found["custom_answered"] = answered.status

nested = {"name": "lift", "description": "Moves.", "format": {"type": "grammar", "grammar": grammar}}
messages = [{"role": "user", "content": "Go up."}]
fields = {
    "model": CHAT,
    "tools": [{"type": "custom", "custom": nested}],
    "temperature": 0,
    "parallel_tool_calls": False,
}
choice = {"type": "custom", "custom": {"name": "lift"}}
message = client.chat.completions.create(messages=messages, tool_choice=choice, **fields).choices[0].message
found["custom_chat"] = message.tool_calls[0].custom.model_dump()
pieces = [
    piece.custom["input"]
    for chunk in client.chat.completions.create(messages=messages, tool_choice=choice, stream=True, **fields)
    for piece in chunk.choices[0].delta.tool_calls or []
    if piece.index == 0
]
found["custom_chat_streamed"] = "".join(pieces)
messages += [
    message.model_dump(exclude_none=True),
    *({"role": "tool", "tool_call_id": call.id, "content": "It went."} for call in message.tool_calls),
]
answered = client.chat.completions.create(messages=messages, tool_choice="none", max_tokens=5, **fields)
found["custom_chat_answered"] = answered.choices[0].finish_reason

if hasattr(client, "decisions"):
    questions = [
        {"type": "predicate", "name": "sunny", "instructions": "The sun shines."},
        {"type": "choice", "instructions": "What is it about?", "choices": [{"value": "weather"}, {"value": True}]},
        {
            "type": "score",
            "instructions": "How warm?",
            "levels": [{"label": "cold"}, {"label": "mild"}, {"label": "hot"}],
        },
    ]
    found["decisions"] = {
        model: client.decisions.create(model=model, input="A hot day.", questions=questions).model_dump()
        for model in (CHAT, given["text2text"], given["embed"])
    }
print(json.dumps(found))
