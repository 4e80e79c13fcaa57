# Builds and checks the Rust workspace: one binary for each folder under functions/, static but for those of
# a GPU, whose driver is a library of the host.
{
  pkgs,
  crane,
  advisory-db,
}:
let
  inherit (pkgs) lib;
  inherit (lib) fileset;

  workspace = (lib.importTOML ../Cargo.toml).workspace.package;
  functions = lib.attrNames (
    lib.filterAttrs (_: type: type == "directory") (builtins.readDir ../functions)
  );
  target = "${pkgs.stdenv.hostPlatform.parsed.cpu.name}-unknown-linux-musl";
  dynamicTarget = "${pkgs.stdenv.hostPlatform.parsed.cpu.name}-unknown-linux-gnu";

  toolchain =
    p: (p.rust-bin.fromRustupToolchainFile ../rust-toolchain.toml).override {
      targets = [
        target
        dynamicTarget
      ];
    };
  craneLib = (crane.mkLib pkgs).overrideToolchain toolchain;

  source =
    files:
    fileset.toSource {
      root = ../.;
      fileset = files;
    };
  models = fileset.unions (
    map (name: fileset.maybeMissing (../functions + "/${name}/model")) functions
  );
  # Bundled models stay out of what binaries are built from, so no weights can get into them.
  code = source (
    fileset.difference (fileset.unions [
      (craneLib.fileset.commonCargoSources ../.)
      ../functions
      ../runtime
    ]) models
  );

  base = {
    pname = "sanderling";
    inherit (workspace) version;
    src = code;
    strictDeps = true;
  };

  # Arguments of a build, its dependencies built once for all functions.
  built =
    settings:
    let
      args =
        base
        // {
          CARGO_BUILD_TARGET = target;
          CARGO_BUILD_RUSTFLAGS = "-C target-feature=+crt-static";
        }
        // settings;
    in
    args // { cargoArtifacts = craneLib.buildDepsOnly args; };
  shipped = built {
    CARGO_PROFILE = "dist";
    doCheck = false;
  };
  shippedForGpu = built {
    CARGO_PROFILE = "dist";
    doCheck = false;
    CARGO_BUILD_TARGET = dynamicTarget;
    CARGO_BUILD_RUSTFLAGS = "";
  };
  checked = built {
    CARGO_PROFILE = "dev";
    # The emulator of a GPU is C++, for which there is no compiler here.
    cargoExtraArgs = "--locked --workspace --exclude emulator-for-tests --exclude driver-for-tests";
  };
  # Tests may read any file of the repository, bundled models included.
  tested = checked // {
    src = source ../.;
  };

  # Alone in its derivation: built together, Cargo would unify the features of all functions.
  package =
    name:
    let
      isForGpu = lib.hasSuffix "-gpu" name;
    in
    craneLib.buildPackage (
      (if isForGpu then shippedForGpu else shipped)
      // {
        pname = name;
        cargoExtraArgs = "--locked -p ${name}";
        # No CUDA: kernels are in the binary, and the driver comes from the host.
        allowedReferences = lib.optionals isForGpu [
          pkgs.glibc
          pkgs.libgcc
        ];
        meta = {
          mainProgram = name;
          homepage = workspace.repository;
          inherit (workspace) license;
        };
      }
    );
in
{
  packages = lib.genAttrs functions package;

  checks = {
    fmt = craneLib.cargoFmt base;
    audit = craneLib.cargoAudit (base // { inherit advisory-db; });
    clippy = craneLib.cargoClippy (
      checked // { cargoClippyExtraArgs = "--all-targets -- -D warnings"; }
    );
    doc = craneLib.cargoDoc (checked // { RUSTDOCFLAGS = "-D warnings"; });
    test = craneLib.cargoNextest tested;
    doctest = craneLib.cargoDocTest tested;
  }
  // lib.optionalAttrs (builtins.pathExists ../deny.toml) { deny = craneLib.cargoDeny base; };

  devShell = craneLib.devShell {
    packages = [
      pkgs.cargo-audit
      pkgs.cargo-deny
      pkgs.cargo-nextest
      pkgs.nixfmt
      pkgs.skopeo
    ];
  };
}
