// What can go wrong, and what to do about it. Every problem has a title, an advice, and what the page offers.

export class Problem extends Error {
  /** `kind` is "key" if the server wants a key, "file" if another try cannot help, else "again". */
  constructor(title, advice, kind = "again") {
    super(title);
    this.advice = advice;
    this.kind = kind;
  }
}

/** Return the problem behind an answer of the server that is not 2xx. */
export async function ofResponse(response) {
  const said = await message(response);
  const seconds = Number(response.headers.get("Retry-After"));
  switch (response.status) {
    case 401:
      return new Problem("This server needs a key", "Enter one of its API keys. The page keeps it until you close the tab.", "key");
    case 404:
      return new Problem("The server does not offer this", said || "It may be an older version.", "file");
    case 413:
      return new Problem("The recording is too large", said || "Record or choose a shorter one.", "file");
    case 429:
      return new Problem("The server is busy", `Try again ${seconds ? `in ${seconds} seconds` : "in a moment"}.`);
    case 503:
      return new Problem("The server is stopping", "Start it again, or try again in a moment.");
    case 504:
    case 408:
      return new Problem("The answer took too long", said || "Try again, or choose a shorter recording.");
    default:
      return response.status < 500
        ? new Problem("The server cannot use this", said || `It answered with status ${response.status}.`, "file")
        : new Problem("The server failed", `${said || `It answered with status ${response.status}.`} Its log says more.`);
  }
}

async function message(response) {
  try {
    const body = await response.json();
    return sentence(body.error?.message ?? body.detail);
  } catch {
    return "";
  }
}

/** Return a message of the server with a capital letter and a full stop. */
export function sentence(text) {
  if (typeof text !== "string" || !text) return "";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** Return the problem of a request without an answer. */
export function ofNetwork() {
  return navigator.onLine
    ? new Problem("The server does not answer", "Check that “ossicle serve” is still running, then try again.")
    : new Problem("This device is offline", "Connect it to the network, then try again.");
}

/** Return the problem behind any other exception. */
export function ofException(error) {
  return error instanceof Problem ? error : new Problem("Something went wrong", sentence(String(error?.message ?? error)));
}

/** Return the problem behind a microphone that does not open. */
export function ofMicrophone(error) {
  const other = "You can also choose a file.";
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new Problem("The microphone is blocked", `Allow it for this page in the address bar of your browser, then record again. ${other}`);
    case "NotFoundError":
    case "OverconstrainedError":
      return new Problem("There is no microphone", `Connect one, then record again. ${other}`);
    case "NotReadableError":
    case "AbortError":
      return new Problem("The microphone is in use", `Close the other program that uses it, then record again. ${other}`);
    case "InsecureContext":
      return new Problem("The microphone needs a secure page", `Browsers allow it on https:// and on localhost. ${other}`, "file");
    default:
      return new Problem("The microphone does not start", `${error?.message ?? error}. ${other}`);
  }
}
