// The ordinary calls of the npm package `openai`; OPENAI_BASE_URL and OPENAI_API_KEY say where. Prints JSON.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const told = {};

told.models = (await client.models.list()).data.map((model) => model.id);
const chat = await client.chat.completions.create({ model: "whole", messages });
told.chat = chat.choices[0].message.content;
told.request = chat._request_id;

let text = "";
let usage = null;
const stream = await client.chat.completions.create({
  model: "whole", messages, stream: true, stream_options: { include_usage: true },
});
for await (const part of stream) {
  text += part.choices[0]?.delta?.content ?? "";
  usage = part.usage ?? usage;
}
told.stream = text;
told.usage = usage;

const left = await client.chat.completions.create({ model: "slowly", messages, stream: true });
for await (const _ of left) break; // which aborts the request

told.completion = (await client.completions.create({ model: "whole", prompt: "a" })).choices[0].text;
told.embedding = (await client.embeddings.create({ model: "whole", input: "a", encoding_format: "float" })).data[0].embedding;

told.errors = {};
for (const [name, ask] of Object.entries({
  unknown: () => client.chat.completions.create({ model: "another", messages }),
  theirs: () => client.chat.completions.create({ model: "status-429", messages }),
  cut: async () => { for await (const _ of await client.chat.completions.create({ model: "cut", messages, stream: true })); },
  key: () => new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 }).models.list(),
})) {
  try {
    await ask();
  } catch (error) {
    told.errors[name] = [error.constructor.name, error.status ?? null, error.code ?? null];
  }
}
console.log(JSON.stringify(told));
