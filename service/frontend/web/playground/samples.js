// The pictures that come with the page. All but the photograph were drawn for this project.

export const SAMPLES = [
  { file: "web/samples/dog.jpg", name: "dog.jpg", title: "A white dog", about: "All three models are right." },
  { file: "web/samples/cat.jpg", name: "cat.jpg", title: "A black cat", about: "The outline misses its body." },
  { file: "web/samples/pair.jpg", name: "pair.jpg", title: "A dog and a cat", about: "Two heads, and two classes of outline." },
  { file: "web/samples/group.jpg", name: "group.jpg", title: "Many small animals", about: "Too small for the model's input: switch tiles on, and raise the minimum score." },
  { file: "web/samples/meadow.jpg", name: "meadow.jpg", title: "No animal", about: "Nothing to find; the classifier has to name a breed all the same." },
  { file: "web/samples/tabby.jpg", name: "tabby.jpg", title: "A tabby, close up", about: "A hard case: the face fills the picture, and the breed is a guess." },
];
