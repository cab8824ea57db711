/**
 * What can go wrong with a request, from the body of an error or from a network that is not there.
 *
 * The codes are those of server/errors.py; the page adds `unreachable` and `interrupted`.
 */

/** A request that did not succeed; `param` names the field that is wrong. */
export class Failure extends Error {
  /**
   * @param {{code: string, message: string, param?: string | null, retryable?: boolean}} error
   * @param {number | null} retryAfterS
   */
  constructor({ code, message, param = null, retryable = false }, retryAfterS = null) {
    super(message);
    this.code = code;
    this.param = param;
    this.retryable = retryable;
    this.retryAfterS = retryAfterS;
  }
}

/** Nobody answered. */
export function unreachable() {
  return new Failure({ code: "unreachable", message: "The server does not answer.", retryable: true });
}

/** The stream broke off before its end. */
export function interrupted() {
  return new Failure({ code: "interrupted", message: "The connection to the server broke off.", retryable: true });
}

/**
 * The failure that a response tells of; what is between may answer in another shape.
 * @param {{status: number, headers: Headers, text(): Promise<string>}} response
 * @returns {Promise<Failure>}
 */
export async function failureOf(response) {
  const retryAfterS = Number(response.headers.get("retry-after")) || null;
  try {
    const { error } = JSON.parse(await response.text());
    return new Failure({ ...error, message: sentence(error.message) }, retryAfterS);
  } catch {
    const message = `The answer was ${response.status}, without a reason.`;
    return new Failure({ code: "unexpected", message, retryable: response.status >= 500 }, retryAfterS);
  }
}

/**
 * The failure that ended a stream.
 * @param {any} data of the event `error`
 */
export function failureInStream({ error }) {
  return new Failure({ ...error, message: sentence(error.message) });
}

/**
 * Messages of the API begin with a small letter and have no full stop.
 * @param {string} message
 */
function sentence(message) {
  const named = /^[a-z0-9_.]+ is /.test(message); // begins with the name of a field, which is no word
  const begun = named ? message : message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
