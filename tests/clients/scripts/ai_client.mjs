// What Vercel's ai, with @ai-sdk/openai-compatible, gets from a server. Usage: see calls.py.

import { BASE, BUSY_BASE, BUSY_KEY, HELLO, KEY_BASE, TEXTS, WEATHER, caught, given, packages, show, versionOf } from "./calls.mjs";

const { APICallError, Output, embedMany, generateObject, generateText, streamText, tool } = packages("ai");
const { createOpenAICompatible } = packages("@ai-sdk/openai-compatible");
const { z } = packages("zod");

const make = (baseURL = BASE, apiKey = "EMPTY") =>
  createOpenAICompatible({ name: "langport", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const demo = make();
const Weather = z.object({ city: z.enum(["Oslo", "Paris"]), degrees: z.int().min(-40).max(50) });
const tools = {
  get_weather: tool({
    description: "Current weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `Sunny in ${city}.`,
  }),
};

const asked = (fields = {}) => ({
  model: demo(given.chat),
  prompt: HELLO,
  temperature: 0,
  maxOutputTokens: 60,
  maxRetries: 0,
  ...fields,
});

await show(versionOf("ai"), {
  chat: async () => (await generateText(asked())).text,

  async stream() {
    const answer = streamText(asked());
    const pieces = await Array.fromAsync(answer.textStream);
    if (!((await answer.usage).outputTokens > 0)) throw new Error("no usage came");
    return pieces;
  },

  async tools() {
    // Required for the first step; the second has the result.
    const answer = await generateText(
      asked({
        prompt: WEATHER,
        tools,
        stopWhen: ({ steps }) => steps.length === 2,
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
      }),
    );
    const [found] = answer.steps[0].toolCalls;
    return { name: found.toolName, arguments: found.input, answer: answer.text };
  },

  structured: async () => [
    (await generateObject(asked({ prompt: WEATHER, schema: Weather }))).object,
    (await generateText(asked({ prompt: WEATHER, output: Output.object({ schema: Weather }) }))).output,
  ],

  embeddings: async () => (await embedMany({ model: demo.embeddingModel(given.embed), values: TEXTS })).embeddings,

  errors: async () => ({
    missing_model: await caught(APICallError, () => generateText(asked({ model: demo("gpt-4") }))),
    wrong_key: await caught(APICallError, () => generateText(asked({ model: make(KEY_BASE, "sk-wrong")(given.chat) }))),
    too_long: await caught(APICallError, () => generateText(asked({ prompt: "zebra ".repeat(9000) }))),
  }),

  async retries() {
    const busy = make(BUSY_BASE, BUSY_KEY);
    const text = async (name) => (await generateText(asked({ model: busy(name), maxRetries: 2 }))).text;
    return [await text("busy-429"), await text("busy-503")];
  },
});
