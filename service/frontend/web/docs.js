// The reference: openapi.json as a page. Text is inserted as text, never as markup.

const element = (id) => document.getElementById(id);

function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

function withChildren(node, ...children) {
  node.append(...children);
  return node;
}

// Text in which `this` is code.
function prose(tag, text = "", className = "") {
  const pieces = text.split("`").map((piece, at) => (at % 2 ? make("code", piece) : piece));
  return withChildren(make(tag, "", className), ...pieces);
}

function table(head, rows) {
  const cells = (kind, texts) => withChildren(make("tr"), ...texts.map((text) => prose(kind, text)));
  return withChildren(
    make("table"),
    withChildren(make("thead"), cells("th", head)),
    withChildren(make("tbody"), ...rows.map((row) => cells("td", row))),
  );
}

// A schema in a few words: its type, range, choices and default.
function inWords(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.map(inWords).join(" or ");
  if (schema.enum) return `${schema.enum.join(" · ")}${defaultOf(schema)}`;
  if (schema.type === "array") return `list of ${inWords(schema.items ?? {})}`;
  if (schema.properties) return `{${Object.entries(schema.properties).map(([name, value]) => `${name}: ${inWords(value)}`).join(", ")}}`;
  if (schema.contentMediaType) return "bytes";
  if (schema.const !== undefined) return `"${schema.const}"`;
  const type = schema.contentEncoding ? schema.contentEncoding : (schema.type ?? "any");
  return `${type}${rangeOf(schema)}${defaultOf(schema)}`;
}

function rangeOf(schema) {
  const [low, high] = [schema.minimum ?? schema.minLength, schema.maximum ?? schema.maxLength];
  if (low === undefined && high === undefined) return "";
  if (high === undefined) return ` from ${low}`;
  return low === undefined ? ` up to ${high}` : ` ${low} … ${high}`;
}

function defaultOf(schema) {
  return schema.default === undefined ? "" : `, default ${schema.default}`;
}

function contentInWords(content = {}) {
  return Object.entries(content).map(([kind, { schema }]) => [kind, schema ? inWords(schema) : ""]);
}

function operationCard(id, method, path, operation) {
  const card = make("section", "", "card operation");
  card.id = id;
  card.append(withChildren(make("h2"), make("span", method.toUpperCase(), "method"), make("code", path)));
  card.append(prose("p", operation.summary));
  if (operation.parameters?.length) {
    card.append(make("h3", "Parameters"), table(
      ["Name", "In", "Value", ""],
      operation.parameters.map(({ name, in: place, schema, description }) => [name, place, inWords(schema), description ?? ""]),
    ));
  }
  if (operation.requestBody) {
    card.append(make("h3", "Body"), prose("p", operation.requestBody.description));
    card.append(table(["Content-Type", "Content"], contentInWords(operation.requestBody.content)));
  }
  card.append(make("h3", "Responses"), table(
    ["Status", "", "Content"],
    Object.entries(operation.responses).map(([status, { description, content }]) => [
      status, description, contentInWords(content).map(([kind, schema]) => `${kind}${schema ? `: ${schema}` : ""}`).join("; "),
    ]),
  ));
  return card;
}

function schemaCard(name, schema) {
  const card = make("section", "", "card operation");
  card.id = `schema-${name}`;
  const required = schema.required ?? [];
  card.append(make("h2", name), prose("p", schema.description), table(
    ["Member", "Value", ""],
    Object.entries(schema.properties ?? {}).map(([member, value]) => [
      required.includes(member) ? member : `${member} (optional)`, inWords(value), value.description ?? "",
    ]),
  ));
  return card;
}

const reference = await (await fetch("openapi.json")).json();
element("title").textContent = reference.info.title;
element("version").textContent = reference.info.version;
element("description").append(prose("span", reference.info.description));

const links = [];
for (const [path, methods] of Object.entries(reference.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const id = `${method}${path.replaceAll(/[^a-z]/g, "-")}`;
    element("operations").append(operationCard(id, method, path, operation));
    links.push(Object.assign(make("a", `${method.toUpperCase()} ${path}`), { href: `#${id}` }));
  }
}
for (const [name, schema] of Object.entries(reference.components.schemas)) {
  element("operations").append(schemaCard(name, schema));
}
element("contents").append(...links);
