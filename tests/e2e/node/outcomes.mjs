// What a client made of an answer, in terms that all clients share.

// What the first bytes of a file say that it is.
export const kindOf = bytes => {
  const head = Buffer.from(bytes).subarray(0, 12).toString("latin1");
  if (head.startsWith("\x89PNG")) return "png";
  if (head.startsWith("\xff\xd8\xff")) return "jpeg";
  return head.slice(8) === "WEBP" ? "webp" : "unknown";
};

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
