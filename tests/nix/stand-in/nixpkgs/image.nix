# `buildLayeredImage` that refuses an image which breaks a rule.
{
  lib,
  standIn,
  system,
}:
{
  name,
  tag,
  created,
  architecture,
  contents,
  config,
  extraCommands,
}@args:
let
  isWeights = layer: standIn.textHasWeights layer.script;
  # A layer with a derivation in it may hold a binary; a plain copy of source files may not.
  isCode =
    layer:
    builtins.any (input: input ? outputs) (
      builtins.attrValues (builtins.getContext layer.script)
    );
  weights = builtins.filter isWeights contents;
  filesOf =
    layer:
    builtins.concatMap (source: lib.attrNames (builtins.readDir source)) (
      standIn.sourcesOf layer.script
    );

  rules = {
    "created at the epoch" = created == "1970-01-01T00:00:01Z";
    "user 65532:65532" = config.User or "root" == "65532:65532";
    "architecture of the system" =
      {
        amd64 = "x86_64-linux";
        arm64 = "aarch64-linux";
      }
      .${architecture} or null == system;
    "port 8080" = builtins.attrNames config.ExposedPorts or { } == [ "8080/tcp" ];
    "certificates" = builtins.any (lib.hasPrefix "SSL_CERT_FILE=") config.Env or [ ];
    "a GPU's driver where there is one" =
      lib.hasSuffix "-gpu" name == builtins.any (lib.hasPrefix "LD_LIBRARY_PATH=") config.Env or [ ];
    "entrypoint is one binary" = builtins.length config.Entrypoint == 1;
    "a /tmp with mode 1777 and nothing else" = extraCommands == "mkdir -m 1777 tmp";
    "no weights in the settings" = !standIn.textHasWeights (builtins.toJSON config);
    "no weights in a code layer" = !builtins.any isCode weights;
    "weights exactly where the name says so" =
      builtins.length weights == (if builtins.match ".*-with-model" name == null then 0 else 1);
  };
  broken = builtins.filter (rule: !rules.${rule}) (lib.attrNames rules);
in
if broken != [ ] then
  throw "image ${name} breaks: ${builtins.concatStringsSep "; " broken}"
else
  standIn.drv "${name}.tar.gz" [ config contents ]
  // {
    standIn = args // {
      contents = builtins.listToAttrs (
        map (layer: lib.nameValuePair layer.name (filesOf layer)) contents
      );
    };
  }
