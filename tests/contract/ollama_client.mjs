// What the official JavaScript client makes of a gateway; one JSON object on stdout.
// node ollama_client.mjs PACKAGE URL SERVICE-AS-JSON

import { pathToFileURL } from "node:url";

const [, , packageDirectory, host, given] = process.argv;
const { Ollama } = await import(pathToFileURL(`${packageDirectory}/dist/index.mjs`));
const service = JSON.parse(given);
const client = new Ollama({ host });
const options = { temperature: 0, num_predict: 16 };
const said = {};

async function refusal(work) {
  try {
    await work();
  } catch (error) {
    return { name: error.name, message: error.message, status: error.status_code ?? null };
  }
  return null;
}

const chat = { model: service.model, messages: service.france, options };
const whole = await client.chat(chat);
said.chat = { done: whole.done, text: whole.message.content, tokens: whole.eval_count };

const parts = [];
for await (const part of await client.chat({ ...chat, stream: true })) parts.push(part);
said.streamed = {
  text: parts.map((part) => part.message.content).join(""),
  pieces: parts.length,
  done: parts.at(-1).done,
  early: parts.slice(0, -1).some((part) => part.done),
};

const generated = await client.generate({ model: service.model, prompt: "Hi", options });
said.generate = { done: generated.done, text: generated.response };

const structured = await client.chat({
  ...chat,
  format: service.schema,
  options: { temperature: 0, num_predict: 64 },
});
said.structured = JSON.parse(structured.message.content);

const called = await client.chat({
  model: service.tool_model,
  messages: service.tool_messages,
  tools: [service.tool],
  options: { temperature: 0, num_predict: 64 },
});
said.tool_calls = called.message.tool_calls ?? [];
said.tool_text = called.message.content;

const seeing = () =>
  client.chat({
    ...chat,
    model: service.vision_model || service.model,
    messages: [{ role: "user", content: "What is this?", images: [service.image] }],
  });
if (service.vision_model) {
  const seen = await seeing();
  said.image = { done: seen.done, text: seen.message.content };
} else {
  said.image = await refusal(seeing);
}

const embedded = await client.embed({ model: service.embedding_model, input: ["one", "two"] });
said.embeddings = embedded.embeddings.map((vector) => vector.length);

said.listed = (await client.list()).models.map((model) => model.model);
said.shown = (await client.show({ model: service.model })).details.format;
said.running = (await client.ps()).models.map((model) => model.model);

said.missing = await refusal(() => client.chat({ ...chat, model: "no-such-model" }));
said.missing_stream = await refusal(async () => {
  for await (const part of await client.generate({
    model: "no-such-model", prompt: "Hi", stream: true,
  })) void part;
});
said.wrong = await refusal(() => client.chat({ ...chat, options: { temperature: "hot" } }));

const leaving = await client.generate({
  model: service.model, prompt: "Tell a very long story.", stream: true,
  options: { num_predict: 2000 },
});
said.aborted = await refusal(async () => {
  for await (const part of leaving) {
    void part;
    leaving.abort();
  }
});

console.log(JSON.stringify(said));
