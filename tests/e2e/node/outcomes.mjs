// What a client made of an answer, in terms that all clients share.

// What the first bytes of a file say that it is.
export const kindOf = bytes => {
  const head = Buffer.from(bytes).subarray(0, 12).toString("latin1");
  if (head.startsWith("\x89PNG")) return "png";
  if (head.startsWith("\xff\xd8\xff")) return "jpeg";
  return head.slice(8) === "WEBP" ? "webp" : "unknown";
};

// A black PNG of 256x272, and a mask of one transparent pixel.
export const picture = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAQAAAAEQCAAAAAB6z/UhAAAAWklEQVR42u3BAQEAAACCIP+vbkhAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAMCfAREfAAF8w35cAAAAAElFTkSuQmCC", "base64",
);
export const clear = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR42mNgAAIAAAUAAen63NgAAAAASUVORK5CYII=", "base64",
);

// Width and height of a PNG.
export const sizeOf = bytes => [16, 20].map(at => Buffer.from(bytes).readUInt32BE(at));

// The value, or the class, status and message of what was thrown.
export const attempt = async act => {
  try {
    return { value: await act() };
  } catch (error) {
    const status = error.status ?? error.statusCode ?? error.httpResponse?.status ?? null;
    const message = String(error.message) + JSON.stringify(error.responseBody ?? error.httpResponse?.body ?? "");
    return { error: error.name === "Error" ? error.constructor.name : error.name, status, message };
  }
};
