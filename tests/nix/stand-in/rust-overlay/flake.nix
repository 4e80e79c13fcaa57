# As much of rust-overlay as the flake uses.
{
  inputs.nixpkgs.url = "nixpkgs";

  outputs = _: {
    overlays.default =
      final: prev:
      let
        # The releases we rely on the locked rust-overlay to have; bump them together.
        releases = [ "1.95.0" ];

        toolchain =
          {
            channel,
            profile,
            components,
            targets ? [ ],
          }@args:
          prev.standIn.drv "rust-${profile}-${channel}" [ args ]
          // {
            inherit targets;
            override = { targets }: toolchain (args // { inherit targets; });
          };
      in
      {
        rust-bin.fromRustupToolchainFile =
          path:
          let
            file = (prev.lib.importTOML path).toolchain;
          in
          if builtins.elem file.channel releases then
            toolchain file
          else
            throw "the locked rust-overlay is not known to have Rust ${file.channel}";
      };
  };
}
