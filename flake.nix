{
  description = "Sanderling: transformer inference as small stateless functions";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    crane.url = "github:ipetkov/crane";
    rust-overlay = {
      url = "github:oxalica/rust-overlay";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    advisory-db = {
      url = "github:rustsec/advisory-db";
      flake = false;
    };
  };

  outputs =
    {
      nixpkgs,
      crane,
      rust-overlay,
      advisory-db,
      ...
    }:
    let
      inherit (nixpkgs) lib;

      perSystem =
        system:
        let
          pkgs = import nixpkgs {
            inherit system;
            overlays = [ rust-overlay.overlays.default ];
          };
          rust = import ./images/rust.nix { inherit pkgs crane advisory-db; };
          images = import ./images {
            inherit pkgs;
            inherit (rust) packages;
          };
        in
        {
          inherit (rust) packages;
          # Here and not under `packages`, which may not be nested: `nix build .#images.predict`.
          legacyPackages = { inherit images; };
          # `nix flake check` does not look into `legacyPackages`.
          checks =
            rust.checks
            // rust.packages
            // lib.mapAttrs' (name: lib.nameValuePair "image-${name}") images;
          devShells.default = rust.devShell;
        };

      systems = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] perSystem;
      output = name: lib.mapAttrs (_: outputs: outputs.${name}) systems;
    in
    lib.genAttrs [ "packages" "legacyPackages" "checks" "devShells" ] output;
}
