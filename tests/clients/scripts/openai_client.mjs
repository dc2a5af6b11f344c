// What npm's openai gets from a server. Usage: see calls.py.

import { BASE, BUSY_BASE, BUSY_KEY, HELLO, KEY_BASE, TEXTS, WEATHER, caught, given, packages, show, versionOf } from "./calls.mjs";

const { OpenAI, APIError } = packages("openai");
const { zodResponseFormat } = packages("openai/helpers/zod");
const { z } = packages("zod");

const make = (baseURL = BASE, apiKey = "EMPTY", maxRetries = 0) => new OpenAI({ baseURL, apiKey, maxRetries });
const client = make();
const Weather = z.object({ city: z.enum(["Oslo", "Paris"]), degrees: z.int().min(-40).max(50) });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", description: "Current weather of a city.", parameters } }];

function asked(text, fields = {}) {
  const messages = typeof text === "string" ? [{ role: "user", content: text }] : text;
  return { model: given.chat, messages, temperature: 0, max_completion_tokens: 60, ...fields };
}

const textOf = async (one, fields) => (await one.chat.completions.create(asked(HELLO, fields))).choices[0].message.content;

await show(versionOf("openai"), {
  chat: () => textOf(client),

  async stream() {
    const chunks = await Array.fromAsync(await client.chat.completions.create(asked(HELLO, { stream: true })));
    const helper = client.chat.completions.stream(asked(HELLO));
    const whole = await helper.finalContent();
    const pieces = chunks.map((chunk) => chunk.choices[0].delta.content ?? "");
    if (pieces.join("") !== whole) throw new Error(`the helper read ${whole}`);
    return pieces;
  },

  async tools() {
    const { message } = (await client.chat.completions.create(asked(WEATHER, { tools, tool_choice: "required" }))).choices[0];
    const results = message.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "Sunny." }));
    const talk = [{ role: "user", content: WEATHER }, message, ...results];
    const answer = await client.chat.completions.create(asked(talk, { tools, tool_choice: "none" }));
    const streamed = client.chat.completions.stream(asked(WEATHER, { tools, tool_choice: "required" }));
    const found = message.tool_calls[0].function;
    const again = (await streamed.finalMessage()).tool_calls[0].function;
    if (again.arguments !== found.arguments) throw new Error(`the stream called with ${again.arguments}`);
    return { name: found.name, arguments: JSON.parse(found.arguments), answer: answer.choices[0].message.content };
  },

  async structured() {
    const format = zodResponseFormat(Weather, "weather");
    return [(await client.chat.completions.parse(asked(WEATHER, { response_format: format }))).choices[0].message.parsed];
  },

  async responses() {
    const fields = { model: given.chat, input: HELLO, temperature: 0 };
    const answer = await client.responses.create(fields);
    const events = await Array.fromAsync(await client.responses.create({ ...fields, stream: true }));
    const deltas = events.filter(({ type }) => type === "response.output_text.delta").map(({ delta }) => delta);
    if (deltas.join("") !== answer.output_text) throw new Error(`the stream said ${deltas.join("")}`);
    return answer.output_text;
  },

  async embeddings() {
    return (await client.embeddings.create({ model: given.embed, input: TEXTS })).data.map((entry) => entry.embedding);
  },

  errors: async () => ({
    missing_model: await caught(APIError, () => textOf(client, { model: "gpt-4" })),
    wrong_key: await caught(APIError, () => textOf(make(KEY_BASE, "sk-wrong"))),
    too_long: await caught(APIError, () => client.chat.completions.create(asked("zebra ".repeat(9000)))),
  }),

  async retries() {
    const one = make(BUSY_BASE, BUSY_KEY, 2);
    return [await textOf(one, { model: "busy-429" }), await textOf(one, { model: "busy-503" })];
  },
});
