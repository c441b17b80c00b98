// Requests to the server: keys, errors, and answers that arrive piece by piece.

import { Problem, ofNetwork, ofResponse, sentence } from "./problems.js";

const KEY = "ossicle-key";

/** Keep the API key until the tab closes. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Send a request; raise a `Problem` unless the answer is 2xx. Paths are relative to the page, for proxies. */
export async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : ofNetwork();
  }
  if (!response.ok) throw await ofResponse(response);
  return response;
}

/** Return the names of the models; the first is the one that is asked. */
export async function models() {
  const found = await (await request("v1/models")).json();
  return found.data.map((model) => model.id);
}

/** Yield the events of a stream (text/event-stream), parsed. Raise a `Problem` for an event with an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.error) throw new Problem("The answer broke off", sentence(event.error.message) || "Try again.");
        yield event;
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? ofNetwork() : error; // the browser's word for a broken connection
  } finally {
    reader.cancel().catch(() => {}); // also after a `break`: the server stops decoding
  }
}

const isStream = (response) => (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");

function form(clip, fields) {
  const data = new FormData();
  data.append("file", clip.blob, clip.fileName);
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return data;
}

/**
 * Transcribe a clip ("transcriptions"), or translate it to English ("translations").
 * `onText` gets the text so far, and `onSegment` each {start, end, text}, if the server sends them.
 * Return the whole text.
 */
export async function hear(clip, task, { model, signal, onStart, onText, onSegment }) {
  const body = form(clip, { model, stream: "true" });
  const response = await request(`v1/audio/${task}`, { method: "POST", body, signal });
  onStart?.();
  if (!isStream(response)) {
    const whole = await response.json();
    onText(whole.text);
    return whole.text;
  }
  let text = "";
  for await (const event of events(response)) {
    if (event.type === "transcript.text.delta") onText((text += event.delta));
    else if (event.type === "transcript.text.segment") onSegment?.(event);
    else if (event.type === "transcript.text.done") {
      onText((text = event.text));
      return text;
    }
  }
  throw new Problem("The answer broke off", "The server closed the connection. Try again.");
}

/** Return the transcript of a clip in a form such as "srt". */
export async function subtitles(clip, form_, { model }) {
  const body = form(clip, { model, response_format: form_ });
  return (await request("v1/audio/transcriptions", { method: "POST", body })).text();
}

/** Answer a conversation whose messages are OpenAI's. `onText` gets the text so far. Return the whole text. */
export async function chat(messages, { model, signal, onText }) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  let text = "";
  for await (const event of events(response)) {
    text += event.choices?.[0]?.delta?.content ?? "";
    onText(text);
  }
  return text;
}

/** Return the message of a user who asks `text` about a clip. */
export async function spokenMessage(clip, text) {
  const bytes = new Uint8Array(await clip.blob.arrayBuffer());
  let binary = "";
  for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  const audio = { type: "input_audio", input_audio: { data: btoa(binary), format: clip.format } };
  return { role: "user", content: [audio, { type: "text", text }] };
}

/** Return where the words of `text` are in the speech tokens of `clip`, and the similarity by layer. */
export async function analysis(clip, text) {
  return (await request("ossicle/analysis", { method: "POST", body: form(clip, { text }) })).json();
}

/** Return the generated example recordings, [{id, text}]; none if the server has no voice. */
export async function examples() {
  try {
    return (await (await request("ossicle/examples")).json()).data;
  } catch {
    return [];
  }
}

/** Return the WAV file of an example. */
export async function exampleFile(id) {
  const blob = await (await request(`ossicle/examples/${id}.wav`)).blob();
  return new File([blob], `${id}.wav`, { type: "audio/wav" });
}
