# Packs each function as an OCI image, and once more with its bundled model where it has one:
#
#   <function>              CA certificates, binary             the model comes by MODEL_URI or a mount
#   <function>-with-model   CA certificates, binary, /model     answers with nothing set
#
# Every store path is a layer, so weights and code are never in the same one.
{
  pkgs,
  packages,
}:
let
  inherit (pkgs) lib;
  inherit (lib) fileset;

  architecture =
    {
      x86_64 = "amd64";
      aarch64 = "arm64";
    }
    .${pkgs.stdenv.hostPlatform.parsed.cpu.name};

  # What makes NVIDIA's container toolkit bring the driver, and where it then is.
  driver = [
    "NVIDIA_VISIBLE_DEVICES=all"
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    "LD_LIBRARY_PATH=/usr/lib64:/usr/lib/${pkgs.stdenv.hostPlatform.parsed.cpu.name}-linux-gnu:/run/opengl-driver/lib"
  ];

  image =
    {
      name,
      package,
      contents ? [ ],
    }:
    let
      config = {
        Entrypoint = [ (lib.getExe package) ];
        User = "65532:65532";
        Env = [
          "SSL_CERT_FILE=${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"
        ]
        ++ lib.optionals (lib.hasSuffix "-gpu" name) driver;
        ExposedPorts."8080/tcp" = { };
        Labels = {
          "org.opencontainers.image.title" = name;
          "org.opencontainers.image.version" = package.version;
          "org.opencontainers.image.source" = package.meta.homepage;
          "org.opencontainers.image.licenses" = package.meta.license;
        };
      };
    in
    pkgs.dockerTools.buildLayeredImage {
      inherit
        name
        architecture
        contents
        config
        ;
      tag = package.version;
      created = "1970-01-01T00:00:01Z";
      extraCommands = "mkdir -m 1777 tmp";
    }
    // {
      inherit config;
    };

  # The bundled model of a function as /model, without the scripts that made it.
  model =
    name:
    let
      root = ../functions + "/${name}/model";
      files = fileset.toSource {
        inherit root;
        fileset = fileset.difference root (
          fileset.unions (
            map (scripts: fileset.maybeMissing (root + "/${scripts}")) [
              "export"
              "train"
            ]
          )
        );
      };
    in
    pkgs.runCommand "${name}-model" { } "mkdir $out && cp -r ${files} $out/model";

  hasModel = name: builtins.pathExists (../functions + "/${name}/model/model.onnx");
in
lib.concatMapAttrs (
  name: package:
  {
    ${name} = image { inherit name package; };
  }
  // lib.optionalAttrs (hasModel name) {
    "${name}-with-model" = image {
      name = "${name}-with-model";
      inherit package;
      contents = [ (model name) ];
    };
  }
) packages
