// Runs in the audio thread: hands on the sound of the microphone in stretches of about 50 ms.

class RecorderProcessor extends AudioWorkletProcessor {
  #samples = new Float32Array(Math.round(sampleRate / 20));
  #count = 0;
  #peak = 0;

  process([[channel]]) {
    if (!channel) return true;
    for (const value of channel) {
      this.#samples[this.#count++] = value;
      this.#peak = Math.max(this.#peak, Math.abs(value));
      if (this.#count === this.#samples.length) this.#send();
    }
    return true;
  }

  #send() {
    this.port.postMessage({ samples: this.#samples.slice(), peak: this.#peak });
    this.#count = 0;
    this.#peak = 0;
  }
}

registerProcessor("recorder", RecorderProcessor);
