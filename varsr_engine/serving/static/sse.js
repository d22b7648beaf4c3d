// @ts-check
/** Server-sent events from a fetched stream: EventSource cannot post, nor send a key. */

/**
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} stream
 * @returns {AsyncGenerator<{name: string, data: string}>}
 */
export async function* readEvents(stream) {
  let name = "message";
  /** @type {string[]} */
  let data = [];
  for await (const line of lines(stream)) {
    if (line === "") {
      if (data.length > 0) yield { name, data: data.join("\n") };
      name = "message";
      data = [];
    } else if (line.startsWith("event: ")) {
      name = line.slice(7);
    } else if (line.startsWith("data: ")) {
      data.push(line.slice(6));
    } // else a comment: the server's sign of life
  }
}

/**
 * Lines as they are completed. A line may be tens of megabytes long: its parts are joined once.
 *
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} stream
 * @returns {AsyncGenerator<string>}
 */
async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  /** @type {string[]} */
  let parts = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const [first, ...rest] = value.split("\n");
      parts.push(first);
      for (const piece of rest) {
        yield parts.join("");
        parts = [piece];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection where it is still open
  }
}
