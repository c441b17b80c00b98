// Recordings: from the microphone or a file, as 16 kHz mono WAV.

import { Problem } from "./problems.js";

export const RATE_HZ = 16_000;
export const LONGEST_S = 600; // of a recording from the microphone; it is kept in memory
const MOST_DECODED_BYTES = 100e6; // larger files are sent as they are, without a waveform

/**
 * A clip is {name, fileName, blob, format, samples, duration}. `samples` (Float32Array at 16 kHz) and `duration` are
 * null for a file that this browser cannot decode: the server reads more formats.
 */
export function clipOf(samples, name) {
  if (!samples.length) throw new Problem("The recording is empty", "Record again, or choose another file.", "file");
  const base = name.replace(/\.[^.]*$/, "") || "recording";
  const blob = wav(samples);
  return { name, fileName: `${base}.wav`, blob, format: "wav", samples, duration: samples.length / RATE_HZ };
}

/** Read a file that the user chose. */
export async function readFile(file) {
  if (!file.size) throw new Problem("The file is empty", "Choose another one.", "file");
  const raw = { name: file.name, fileName: file.name, blob: file, format: /\.mp3$/i.test(file.name) ? "mp3" : "wav", samples: null, duration: null };
  if (file.size > MOST_DECODED_BYTES) return raw;
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(await file.arrayBuffer());
  } catch {
    return raw;
  }
  return clipOf(mono(decoded), file.name);
}

/** Return samples `start` to `end` (seconds) of a clip as a clip of their own. */
export function cut(clip, start, end) {
  return clipOf(clip.samples.slice(Math.floor(start * RATE_HZ), Math.ceil(end * RATE_HZ)), clip.name);
}

function mono(buffer) {
  const mean = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const values = buffer.getChannelData(channel);
    for (let i = 0; i < mean.length; i++) mean[i] += values[i] / buffer.numberOfChannels;
  }
  return mean;
}

/** Return a WAV file of 16-bit samples. */
export function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE_HZ, true);
  view.setUint32(28, 2 * RATE_HZ, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i++) {
    const value = Math.max(-1, Math.min(1, samples[i]));
    view.setInt16(44 + 2 * i, Math.round(value * 32767), true);
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}

/** A recording in progress. `onLevel` gets the peak of each stretch of sound, 0 to 1, and the seconds so far. */
export class Recorder {
  static async start(onLevel, onEnd) {
    if (!navigator.mediaDevices?.getUserMedia) throw Object.assign(new Error("no microphone"), { name: "InsecureContext" });
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    const recorder = new Recorder(stream);
    try {
      await recorder.#open(onLevel, onEnd);
    } catch (error) {
      recorder.#close();
      throw error;
    }
    return recorder;
  }

  #stream;
  #context = new AudioContext();
  #parts = [];
  #count = 0;

  constructor(stream) {
    this.#stream = stream;
  }

  async #open(onLevel, onEnd) {
    await this.#context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    const node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      this.#parts.push(data.samples);
      this.#count += data.samples.length;
      const seconds = this.#count / this.#context.sampleRate;
      onLevel(data.peak, seconds);
      if (seconds >= LONGEST_S) onEnd();
    };
    this.#stream.getAudioTracks()[0].addEventListener("ended", onEnd); // unplugged
    this.#context.createMediaStreamSource(this.#stream).connect(node);
    await this.#context.resume();
  }

  #close() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#context.close();
  }

  /** Stop, and return the clip. */
  async stop(name) {
    this.#close();
    if (!this.#count) throw new Problem("The recording is empty", "No sound arrived from the microphone. Record again, a little longer.", "file");
    const rate = this.#context.sampleRate;
    const offline = new OfflineAudioContext(1, Math.ceil((this.#count * RATE_HZ) / rate), RATE_HZ);
    const buffer = offline.createBuffer(1, this.#count, rate);
    let at = 0;
    for (const part of this.#parts) {
      buffer.copyToChannel(part, 0, at);
      at += part.length;
    }
    const source = offline.createBufferSource();
    source.buffer = buffer;
    source.connect(offline.destination);
    source.start();
    return clipOf((await offline.startRendering()).getChannelData(0), name);
  }
}
