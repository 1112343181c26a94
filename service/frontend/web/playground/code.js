// The request that was made, as code.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const literal = (value) => JSON.stringify(value);

// `request`: {path, tasks, parameters: Map of names and texts, file, key: whether one is needed}
export const LANGUAGES = {
  curl: ({ path, parameters, file, key }) => {
    const query = new URLSearchParams([...parameters]).toString().replaceAll("%2C", ",");
    const url = new URL(query ? `${path}?${query}` : path, document.baseURI).href;
    return `curl ${key ? '-H "Authorization: Bearer $CONVMLP_API_KEY" ' : ""}--data-binary ${quoted(`@${file}`)} \\\n  ${quoted(url)}`;
  },
  Python: ({ path, parameters, file, key }) => {
    const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
    const client = `Client(${literal(url)}${key ? ', api_key=os.environ["CONVMLP_API_KEY"]' : ""})`;
    const given = [literal(file), ...[...parameters].map(([name, value]) => `${name}=${pythonValue(name, value)}`)];
    return [
      ...(key ? ["import os", ""] : []),
      "from convmlp_client import Client  # pip install ./client",
      "",
      `with ${client} as client:`,
      `    result = client.${path}(${given.join(", ")})`,
      `    result.draw(${literal(file)}).save("answer.png")`,
      "    print(result)",
    ].join("\n");
  },
  JavaScript: ({ path, parameters, file, key }) => {
    const query = new URLSearchParams([...parameters]).toString().replaceAll("%2C", ",");
    const url = new URL(query ? `${path}?${query}` : path, document.baseURI).href;
    return [
      'import { readFile } from "node:fs/promises";',
      "",
      `const response = await fetch(${literal(url)}, {`,
      '  method: "POST",',
      `  body: await readFile(${literal(file)}),`,
      ...(key ? ["  headers: { Authorization: `Bearer ${process.env.CONVMLP_API_KEY}` },"] : []),
      "});",
      "const answer = await response.json();",
      "if (!response.ok) throw new Error(answer.detail);",
      "console.log(answer.results[0]);",
    ].join("\n");
  },
  gRPC: ({ path, parameters, file, key }) => {
    const method = path[0].toUpperCase() + path.slice(1);
    const fields = [...parameters].map(([name, value]) => `, ${name}=${grpcValue(name, value)}`).join("");
    return [
      ...(key ? ["import os", ""] : []),
      "import grpc",
      "from convmlp.v1 import vision_pb2, vision_pb2_grpc  # pip install './client[grpc]'",
      "",
      `with grpc.insecure_channel(${literal(`${location.hostname}:8001`)}) as channel, open(${literal(file)}, "rb") as file:  # --grpc-port`,
      "    vision = vision_pb2_grpc.VisionStub(channel)",
      `    request = vision_pb2.${method}Request(image=file.read()${fields})`,
      `    print(vision.${method}(request${key ? ', metadata=[("authorization", "Bearer " + os.environ["CONVMLP_API_KEY"])]' : ""}))`,
    ].join("\n");
  },
};

function pythonValue(name, value) {
  if (name === "tasks" || name === "models") return literal(value.split(",")).replaceAll('","', '", "');
  return value !== "" && Number.isFinite(Number(value)) ? value : literal(value);
}

function grpcValue(name, value) {
  if (name === "tasks") return `[${value.split(",").map((task) => `vision_pb2.TASK_${task.toUpperCase()}`).join(", ")}]`;
  return pythonValue(name, value);
}
