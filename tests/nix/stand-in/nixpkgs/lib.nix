rec {
  inherit (builtins) attrNames mapAttrs;

  importTOML = path: builtins.fromTOML (builtins.readFile path);
  nameValuePair = name: value: { inherit name value; };
  genAttrs =
    names: value: builtins.listToAttrs (map (name: nameValuePair name (value name)) names);
  mapAttrs' = pair: set: builtins.listToAttrs (map (name: pair name set.${name}) (attrNames set));
  filterAttrs =
    keep: set:
    builtins.removeAttrs set (builtins.filter (name: !keep name set.${name}) (attrNames set));
  concatMapAttrs =
    attrs: set: builtins.foldl' (all: name: all // attrs name set.${name}) { } (attrNames set);
  optionalAttrs = condition: set: if condition then set else { };
  optionals = condition: list: if condition then list else [ ];
  hasSuffix =
    suffix: text:
    let
      start = builtins.stringLength text - builtins.stringLength suffix;
    in
    start >= 0 && builtins.substring start (-1) text == suffix;
  hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
  getExe =
    package:
    "${package}/bin/${
      package.meta.mainProgram or (throw "getExe: ${package.name} has no meta.mainProgram")
    }";

  # A file set is a path that exists, or `{ has = path: bool; }`.
  fileset = rec {
    has =
      set: path:
      if builtins.isAttrs set then
        set.has path
      else if builtins.pathExists set then
        path == toString set || hasPrefix "${toString set}/" path
      else
        throw "fileset: ${toString set} does not exist";
    unions = sets: { has = path: builtins.any (set: has set path) sets; };
    difference = positive: negative: { has = path: has positive path && !has negative path; };
    maybeMissing = path: if builtins.pathExists path then path else unions [ ];
    toSource =
      { root, fileset }:
      let
        keep = path: type: if type == "directory" then holdsFiles path else has fileset path;
        holdsFiles =
          folder:
          let
            entries = builtins.readDir (/. + folder);
          in
          builtins.any (name: keep "${folder}/${name}" entries.${name}) (attrNames entries);
      in
      builtins.path {
        path = root;
        name = "source";
        filter = keep;
      };
  };
}
