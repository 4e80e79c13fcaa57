# As much of crane as the flake uses. It refuses a source or an argument that a build would fail on.
{
  outputs = _: {
    mkLib =
      pkgs:
      let
        inherit (pkgs) lib standIn;

        # Every member of the workspace needs a match, or Cargo refuses the whole source.
        isMissing =
          src: member:
          let
            parent = "${src}/${dirOf member}";
          in
          if baseNameOf member == "*" then
            !builtins.any (name: builtins.pathExists "${parent}/${name}/Cargo.toml") (
              lib.attrNames (builtins.readDir parent)
            )
          else
            !builtins.pathExists "${src}/${member}/Cargo.toml";

        checkSource =
          src:
          let
            manifest = lib.importTOML "${src}/Cargo.toml";
            missing = builtins.filter (isMissing src) manifest.workspace.members;
          in
          if missing != [ ] then
            throw "source has no match for the members: ${toString missing}"
          else if !builtins.pathExists "${src}/Cargo.lock" then
            throw "source has no Cargo.lock"
          else
            manifest;

        cargo =
          suffix:
          args@{
            pname,
            version,
            src,
            strictDeps,
            ...
          }:
          let
            manifest = checkSource src;
            profile = args.CARGO_PROFILE or "release";
          in
          if profile != "dev" && !manifest.profile ? ${profile} then
            throw "Cargo.toml has no profile ${profile}"
          else
            standIn.drv "${pname}${suffix}-${version}" [ args ] // { inherit pname version; };

        withToolchain =
          toolchain:
          let
            compile =
              suffix: args:
              if !builtins.elem args.CARGO_BUILD_TARGET toolchain.targets then
                throw "toolchain lacks target ${args.CARGO_BUILD_TARGET}"
              else
                cargo suffix args;
            afterDependencies = suffix: args: compile suffix (args // { inherit (args) cargoArtifacts; });
          in
          {
            fileset.commonCargoSources = root: {
              has =
                path:
                lib.hasPrefix "${toString root}/" path
                && builtins.match ".*(\\.rs|\\.toml|/Cargo\\.lock)" path != null;
            };
            buildDepsOnly = compile "-deps";
            buildPackage =
              args:
              if standIn.pathHasWeights args.src then
                throw "${args.pname} is built from a source with weights in it"
              else if args.CARGO_PROFILE != "dist" then
                throw "${args.pname} is not built in profile dist"
              else if args.cargoExtraArgs != "--locked -p ${args.pname}" then
                throw "${args.pname} is not built alone"
              else if lib.hasSuffix "-gpu" args.pname == lib.hasSuffix "-musl" args.CARGO_BUILD_TARGET then
                throw "${args.pname} cannot load a driver, or is not static"
              else
                afterDependencies "" args // { inherit (args) meta; };
            cargoClippy = afterDependencies "-clippy";
            cargoDoc = afterDependencies "-doc";
            cargoDocTest = afterDependencies "-doctest";
            cargoNextest = afterDependencies "-nextest";
            cargoFmt = cargo "-fmt";
            cargoAudit = args: cargo "-audit" (args // { inherit (args) advisory-db; });
            cargoDeny = cargo "-deny";
            devShell = { packages }: pkgs.mkShell { packages = packages ++ [ toolchain ]; };
          };
      in
      {
        overrideToolchain = toolchain: withToolchain (toolchain pkgs);
      };
  };
}
