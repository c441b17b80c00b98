// Subtitles from segments of {start, end, text}, in seconds.

function stamp(seconds, comma) {
  const milliseconds = Math.round(seconds * 1000);
  const two = (number, width = 2) => String(Math.floor(number)).padStart(width, "0");
  const whole = `${two(milliseconds / 3_600_000)}:${two((milliseconds / 60_000) % 60)}:${two((milliseconds / 1000) % 60)}`;
  return `${whole}${comma}${two(milliseconds % 1000, 3)}`;
}

const cue = (segment, comma) => `${stamp(segment.start, comma)} --> ${stamp(segment.end, comma)}\n${segment.text.trim()}\n`;

/** Return SubRip subtitles. */
export function srt(segments) {
  return segments.map((segment, i) => `${i + 1}\n${cue(segment, ",")}`).join("\n");
}

/** Return WebVTT subtitles. */
export function vtt(segments) {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return ["WEBVTT\n", ...segments.map((segment) => cue({ ...segment, text: escaped(segment.text) }, "."))].join("\n");
}
