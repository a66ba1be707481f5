// One JSON request per line on stdin, one JSON answer per line on stdout.
import { createInterface } from "node:readline";

export const serve = async (commands) => {
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let answer;
    try {
      answer = { ok: (await commands[request.do](request)) ?? {} };
    } catch (error) {
      answer = { error: `${error?.name ?? "Error"}: ${error?.message ?? error}` };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
};
