{ lib }:
rec {
  # The source folders that a text refers to.
  sourcesOf =
    text:
    let
      context = builtins.getContext text;
    in
    map (path: /. + path) (
      builtins.filter (path: context.${path}.path or false) (lib.attrNames context)
    );

  isWeights = name: builtins.match ".*\\.(bin|gguf|onnx|pt|safetensors)" name != null;

  pathHasWeights =
    path:
    let
      entries = builtins.readDir path;
    in
    builtins.any (
      name:
      if entries.${name} == "directory" then pathHasWeights (path + "/${name}") else isWeights name
    ) (lib.attrNames entries);

  textHasWeights = text: builtins.any pathHasWeights (sourcesOf text);
}
