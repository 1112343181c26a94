// The reference: Swagger UI on this service's own openapi.json.

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// What screen readers and keyboards need, and Swagger UI leaves out.
const accessible = {
  wrapComponents: {
    InfoContainer: (Info, { React }) => (properties) =>
      React.createElement("section", { "aria-label": "About this service" }, React.createElement(Info, properties)),
    // Headings of tags are of the third level.
    operations: (Operations, { React }) => (properties) =>
      React.createElement(
        React.Fragment,
        null,
        React.createElement("h2", { className: "operations-title" }, "Operations"),
        React.createElement(Operations, properties),
      ),
    // The path of an operation is a link within a button. The address still follows the operation that is open.
    DeepLink: (_, { React }) => ({ text }) => React.createElement("span", null, text),
    Input: (Input, { React }) => (properties) =>
      React.createElement(Input, properties.type === "file" ? { "aria-label": "File", ...properties } : properties),
    // Long answers and examples scroll.
    SyntaxHighlighter: (Highlighter, { React }) => (properties) =>
      React.createElement(
        "div",
        { ref: (shown) => shown?.querySelector("pre")?.setAttribute("tabindex", "0") },
        React.createElement(Highlighter, properties),
      ),
  },
};

SwaggerUIBundle({
  url: "openapi.json",
  domNode: document.getElementById("reference"),
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  requestSnippetsEnabled: true,
  tryItOutEnabled: true,
  plugins: [accessible],
  syntaxHighlight: { theme: "obsidian" },
  validatorUrl: null, // else it asks another host
});
