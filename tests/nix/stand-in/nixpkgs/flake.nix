# As much of nixpkgs as the flake uses: it evaluates, never builds, and knows nothing else.
{
  outputs = _: { lib = import ./lib.nix; };
}
